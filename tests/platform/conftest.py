"""Fixtures of the portal's tests: a home folder and keys of its own for every test, people in roles, signed requests.

Nothing is mocked: keys are real, requests are signed, the database is a file.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client

from portal.keys import answer_key, create_keys
from protocol.signing import SigningKey, sign_request, verify_answer

PASSWORD = "a long password for tests"


@pytest.fixture(autouse=True)
def portal_home(tmp_path: Path, settings: Any) -> Path:
    """CONSILIUM_HOME of this test, with the portal's keys."""
    home = tmp_path / "portal"
    for name, folder in {
        "CONSILIUM_HOME": home,
        "LOG_FOLDER": home / "log",
        "KEY_FOLDER": home / "keys",
        "CHUNK_FOLDER": home / "chunks",
        "MODEL_FOLDER": home / "models",
    }.items():
        folder.mkdir(parents=True, exist_ok=True)
        setattr(settings, name, folder)
    create_keys(settings.KEY_FOLDER)
    cache.clear()
    return home


@pytest.fixture
def make_user(db: Any):
    """make_user("admin") or make_user("steward", organisation) -> a user with that role."""
    from organisations.models import Membership, User

    made = []

    def make(role: str | None = None, organisation: Any = None, name: str | None = None) -> Any:
        made.append(role)
        user = User.objects.create_user(name or f"{role or 'nobody'}-{len(made)}", password=PASSWORD)
        if role is not None:
            Membership.objects.create(user=user, organisation=organisation, role=role)
        return user

    return make


@pytest.fixture
def sign_in():
    """sign_in(user) -> a test client in a session with password and, unless second_factor=False, TOTP."""
    from allauth.account.internal.userkit import user_id_to_str

    def enter(user: Any, *, second_factor: bool = True) -> Client:
        client = Client()
        client.force_login(user, backend="allauth.account.auth_backends.AuthenticationBackend")
        session = client.session
        records = [{"method": "password", "at": time.time()}]
        if second_factor:
            records.append({"method": "mfa", "at": time.time(), "type": "totp"})
        session["account_authentication_methods"] = records
        session["account_authentication_methods_user"] = user_id_to_str(user)
        session.save()
        return client

    return enter


@pytest.fixture
def organisation(db: Any):
    """A hospital."""
    from organisations.models import Organisation

    return Organisation.objects.create(slug="north", name="North Hospital", country="DE")


@pytest.fixture
def actor_of():
    """actor_of(user) -> the Actor that the access check would build for a person with a second factor."""
    from portal.actors import Actor

    def make(user: Any) -> Actor:
        membership = user.memberships.select_related("organisation").first()
        org = membership.organisation.slug if membership.organisation else "network"
        return Actor(str(user.pk), membership.role, org, "password+totp")

    return make


class NodeClient:
    """Signs requests with a silo's key, sends them through Django's test client, and verifies every answer."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key

    def send(
        self, method: str, path: str, body: Any = b"", *, query: str = "", verify: bool = True, **signing: Any
    ) -> Any:
        """The Django response; `body` may be bytes or a value for JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = sign_request(self.key, method=method, path=path, query=query, body=data, **signing)
        return self.send_raw(method, path, data, headers, query=query, verify=verify)

    def send_raw(
        self, method: str, path: str, data: bytes, headers: dict[str, str], *, query: str = "", verify: bool = True
    ) -> Any:
        """Send with headers as given (to replay, to forge)."""
        target = f"{path}?{query}" if query else path
        response = Client().generic(method, target, data, content_type="application/json", headers=headers)
        if verify:
            verify_answer(
                answer_key().public,
                status=response.status_code,
                headers=response.headers,
                body=response.content,
                request_headers=headers,
                method=method,
                path=path,
                query=query,
                now=time.time(),
            )
        return response


@pytest.fixture
def node():
    """node(key) -> NodeClient."""
    return NodeClient


class Hospital:
    """A hospital as its people and its node act: keys of its own, and what they sign."""

    def __init__(self, name: str, *, country: str = "DE", person: str = "Steward of the test") -> None:
        from protocol.trust import first_trust

        self.name = name
        self.country = country
        self.key = SigningKey.generate()
        self.log_key = SigningKey.generate()
        self.witness_key = SigningKey.generate()
        self.steward = SigningKey.generate()
        self.trust = first_trust(self.steward, person=person, not_after="2099-01-01T00:00:00Z")
        self.node = NodeClient(self.key)

    def enrol_body(self, token: str) -> dict[str, Any]:
        """What `silo enrol` sends."""
        from protocol.canonical import b64
        from protocol.transparency.note import vkey

        return {
            "token": token,
            "public": b64(self.key.public),
            "trust": self.trust.as_dict(),
            "log_vkey": vkey(f"{self.name}.example/log", self.log_key.public, 1),
            "witness_vkey": vkey(f"{self.name}.example/witness", self.witness_key.public, 4),
            "version": "0.1.0",
        }

    def change_key(self) -> Any:
        """`silo key rotate`: the portal's answer; the new key is this node's where it was taken."""
        from protocol.key_rotation import KeyRotation, sign_rotation

        new = SigningKey.generate()
        statement = KeyRotation(self.name, self.key.public, new.public, "2026-11-25T08:00:00Z")
        envelope = sign_rotation(statement, old=self.key, new=new)
        answer = self.node.send("PUT", "/api/v1/silo/key", envelope.as_dict())
        if answer.status_code == 200:
            self.key = self.node.key = new
        return answer

    def next_trust(self, *, needed: int = 1, signed_by: Any = (), **entries: Any) -> Any:
        """Version n+1 of trust.json with these entries added (keyid -> entry), signed by the steward and others."""
        from protocol.canonical import decode
        from protocol.signing import sign_envelope
        from protocol.trust import TRUST_TYPE, add_signature, freeze_trust

        document = decode(self.trust.payload)
        document["version"] += 1
        document["keys"] |= entries
        document["roles"]["steward"] = needed
        envelope = sign_envelope(TRUST_TYPE, freeze_trust(document), self.steward)
        for key in signed_by:
            envelope = add_signature(envelope, key)
        return envelope

    def policy(self, version: int = 1, **changes: Any) -> Any:
        """A signed policy: general research, no limits, unless changed."""
        from protocol import canonical
        from protocol.policy import POLICY_TYPE
        from protocol.signing import sign_envelope

        document = {
            "schema": "consilium/policy/1",
            "silo": self.name,
            "organisation": f"Hospital {self.name}",
            "version": version,
            "permission": "DUO:0000042",
            "modifiers": [],
            "diseases": [],
            "limits": {},
            "legal_basis": None,
            "consent_default": "opt-in",
            "share_metrics": True,
            "partners": {"keys": {}, "min_known": 0},
            "log_max_age_seconds": 86_400,
            "issued": "2026-11-23T10:00:00Z",
            **changes,
        }
        return sign_envelope(POLICY_TYPE, canonical.encode(document), self.steward)

    def statement(
        self,
        manifest: Any,
        decision: str = "approve",
        *,
        key: SigningKey | None = None,
        digest: str | None = None,
        **changes: Any,
    ) -> Any:
        """A signed decision on a manifest (governance.Manifest), for the policy and match that the portal knows."""
        from datetime import timedelta

        from django.utils import timezone

        from governance.predictions import match_digest_for
        from governance.selectors import current_policy
        from organisations.models import Silo
        from organisations.trust import trust_of
        from protocol.approval import ApprovalLimits, sign_statement

        silo = Silo.objects.get(name=self.name)
        policy = current_policy(silo)
        now = timezone.now()
        values = {
            "decision": decision,
            "reason": "Because the board agreed.",
            "silo": self.name,
            "study": manifest.study_id,
            "manifest": digest or manifest.digest,
            "policy": policy.digest if policy else "sha256:" + "0" * 64,
            "match": match_digest_for(policy=policy, manifest=manifest) if policy else "sha256:" + "0" * 64,
            "limits": ApprovalLimits(epsilon_micro=0, max_rounds=50, min_cohort=1),
            "not_before": now - timedelta(minutes=1),
            "not_after": now + timedelta(days=30),
            "now": now,
            **changes,
        }
        return sign_statement(key or self.steward, trust_of(silo), **values)


@pytest.fixture
def new_hospital():
    """new_hospital("site-1") -> a Hospital that the portal knows nothing of yet."""
    return Hospital


@pytest.fixture
def make_hospital(db: Any):
    """make_hospital("site-1") -> a Hospital whose silo is enrolled, confirmed and (unless policy=None) has a policy."""
    from django.contrib.auth import get_user_model

    from organisations.models import Organisation
    from organisations.services import silo_confirm, silo_invite
    from portal.actors import SYSTEM
    from protocol.signing import fingerprint

    def make(name: str, *, country: str = "DE", policy: dict[str, Any] | None = {}) -> Hospital:  # noqa: B006 - read only
        hospital = Hospital(name, country=country)
        organisation = Organisation.objects.create(slug=name, name=f"Hospital {name}", country=country)
        silo, token = silo_invite(actor=SYSTEM, organisation=organisation, name=name)
        answer = hospital.node.send("POST", "/api/v1/silo/enrol", hospital.enrol_body(token))
        assert answer.status_code == 200, answer.content
        admin, _ = get_user_model().objects.get_or_create(username="who-confirms")
        silo_confirm(actor=SYSTEM, user=admin, silo=silo, fingerprint=fingerprint(hospital.key.public))
        if policy is not None:
            answer = hospital.node.send("PUT", "/api/v1/silo/policy", hospital.policy(**policy).as_dict())
            assert answer.status_code == 200, answer.content
        return hospital

    return make


@pytest.fixture
def make_study(make_user: Any, organisation: Any, actor_of: Any):
    """make_study(["site-1", ..]) -> (study in draft, actor of its owner)."""
    from datetime import timedelta

    from django.utils import timezone

    from governance.services import study_draft
    from governance.study_templates import template

    def make(silos: list[str], **changes: Any) -> Any:
        owner = make_user("researcher", organisation)
        today = timezone.now().date()
        draft = {
            **template("chest").draft(),
            "title": "Pneumonia on chest X-rays",
            "summary": "One finding.",
            "participants": [{"silo": name, "weight": 1} for name in silos],
            "dates": {"start": str(today), "end": str(today + timedelta(days=90))},
            **changes,
        }
        study = study_draft(
            actor=actor_of(owner), owner=owner, organisation=organisation, title=draft["title"], draft=draft
        )
        return study, actor_of(owner)

    return make
