"""Only a hospital's own signed statement is its decision. The portal verifies it, shows it, and can't make one."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from evidence.models import Entry
from evidence.services import proof_for, sequence
from governance.decisions import Decision, decision_of
from governance.models import Approval, Study
from governance.selectors import approving_silos, decisions_waiting
from governance.services import review_decide, study_submit
from organisations.models import Silo
from portal.keys import log_vkey
from protocol.signing import SigningKey, sign_envelope
from protocol.transparency.proof import verify_proof

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def hospitals(make_hospital):
    return [make_hospital(f"site-{n}") for n in (1, 2, 3, 4)]


@pytest.fixture
def manifest(hospitals, make_study, make_user, actor_of):
    """A study that the network approved and that waits for four hospitals."""
    study, owner = make_study([hospital.name for hospital in hospitals])
    manifest = study_submit(actor=owner, study=study)
    admin = make_user("admin")
    review_decide(actor=actor_of(admin), reviewer=admin, study=study, decision="approve", reason="Sound.")
    return manifest


def _send(hospital: Any, manifest: Any, envelope: Any) -> tuple[int, dict[str, Any]]:
    answer = hospital.node.send("PUT", f"/api/v1/studies/{manifest.study_id}/approval", envelope.as_dict())
    return answer.status_code, json.loads(answer.content)


def _decision(manifest: Any, name: str) -> Decision:
    return decision_of(manifest, Silo.objects.get(name=name)).decision


def test_a_signed_approval_is_stored_as_it_came_and_provable(hospitals, manifest):
    silo = Silo.objects.get(name="site-1")
    assert decisions_waiting(silo) == [manifest]
    envelope = hospitals[0].statement(manifest)
    status, content = _send(hospitals[0], manifest, envelope)
    assert status == 200 and content["decision"] == "approve" and content["complete"] is True
    stored = Approval.objects.select_related("entry").get()
    assert stored.envelope == envelope.as_dict()
    record = json.loads(bytes(stored.entry.record))
    assert record["type"] == "study.approved" and record["subject"]["version"] == manifest.digest
    assert record["refs"]["approval"] == envelope.digest and record["refs"]["manifest"] == manifest.digest
    assert record["actor"]["id"] == hospitals[0].steward.keyid and record["data"]["silo"] == "site-1"
    assert b"board" not in bytes(stored.entry.record) and b"Steward of" not in bytes(stored.entry.record)
    assert decisions_waiting(silo) == [] and _decision(manifest, "site-1") == Decision.APPROVED
    assert [found.name for found, _ in approving_silos(manifest)] == ["site-1"]


@pytest.mark.django_db(transaction=True)
def test_the_approvals_record_is_proved_by_the_published_log(hospitals, manifest):
    _send(hospitals[0], manifest, hospitals[0].statement(manifest))
    sequence()
    entry = Approval.objects.select_related("entry").get().entry
    data, proof = proof_for(entry)
    verify_proof(proof, leaf_data=data, vkey=log_vkey())


def test_the_same_approval_again_is_the_same_row(hospitals, manifest):
    envelope = hospitals[0].statement(manifest)
    assert _send(hospitals[0], manifest, envelope) == _send(hospitals[0], manifest, envelope)
    assert Approval.objects.count() == 1


def test_the_portal_can_not_make_an_approval(hospitals, manifest):
    """No key that the portal holds is accepted, and no code of the portal signs a statement."""
    from portal.keys import answer_key

    payload = hospitals[0].statement(manifest).payload
    for key in (answer_key(), hospitals[0].key, hospitals[1].steward, SigningKey.generate()):
        forged = sign_envelope("application/vnd.consilium.approval+json", payload, key)
        status, content = _send(hospitals[0], manifest, forged)
        assert (status, content["code"]) == (422, "APPROVAL_SIGNATURE")
    assert not Approval.objects.exists()
    code = "".join(path.read_text() for path in (ROOT / "platform").rglob("*.py"))
    assert "sign_statement" not in code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"digest": "sha256:" + "1" * 64}, "APPROVAL_OTHER_MANIFEST"),
        ({"policy": "sha256:" + "1" * 64}, "APPROVAL_OTHER_POLICY"),
        ({"match": "sha256:" + "1" * 64}, "APPROVAL_OTHER_POLICY"),
        ({"silo": "site-2"}, "APPROVAL_OTHER_SILO"),
        ({"study": "st-other"}, "APPROVAL_OTHER_SILO"),
        ({"not_before": timezone.now() + timedelta(days=1)}, "APPROVAL_NOT_YET"),
        (
            {"not_before": timezone.now() - timedelta(days=9), "not_after": timezone.now() - timedelta(days=1)},
            "APPROVAL_EXPIRED",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_an_approval_of_something_else_is_refused_and_recorded(hospitals, manifest, changes, code):
    status, content = _send(hospitals[0], manifest, hospitals[0].statement(manifest, **changes))
    assert (status, content["code"]) == (422, code)
    assert not Approval.objects.exists()
    assert Entry.objects.filter(type="study.approved", outcome="denied").count() == 1


def test_another_hospital_can_not_deliver_it(hospitals, manifest, make_hospital):
    envelope = hospitals[0].statement(manifest)
    assert _send(hospitals[1], manifest, envelope)[1]["code"] == "APPROVAL_SIGNATURE"
    stranger = make_hospital("site-9")
    assert _send(stranger, manifest, stranger.statement(manifest))[1]["code"] == "NOT_YOUR_STUDY"


def test_a_changed_byte_in_the_statement_breaks_it(hospitals, manifest):
    envelope = hospitals[0].statement(manifest)
    changed = type(envelope)(
        envelope.payload_type, envelope.payload.replace(b'"approve"', b'"revoke" '), envelope.signatures
    )
    assert _send(hospitals[0], manifest, changed)[1]["code"] == "APPROVAL_SIGNATURE"


def test_a_hospital_whose_policy_denies_can_not_be_counted_as_approving(hospitals, manifest):
    hospital = hospitals[0]
    hospital.node.send("PUT", "/api/v1/silo/policy", hospital.policy(2, permission="DUO:0000011").as_dict())
    status, content = _send(hospital, manifest, hospital.statement(manifest))
    assert (status, content["code"]) == (409, "POLICY_DENIES") and len(content["detail"]) > 60
    assert _decision(manifest, "site-1") == Decision.DENIED


def test_a_rejection_is_shown_with_its_reason_and_can_be_followed_by_an_approval(hospitals, manifest):
    status, _ = _send(hospitals[0], manifest, hospitals[0].statement(manifest, "reject", reason="Too many rounds."))
    assert status == 200
    row = decision_of(manifest, Silo.objects.get(name="site-1"))
    assert (row.decision, row.reason) == (Decision.REJECTED, "Too many rounds.")
    assert Entry.objects.filter(type="study.rejected", outcome="success").count() == 1
    later = hospitals[0].statement(manifest, now=timezone.now() + timedelta(seconds=2))
    assert _send(hospitals[0], manifest, later)[0] == 200
    assert _decision(manifest, "site-1") == Decision.APPROVED


def test_a_revocation_ends_an_approval_at_once_and_an_older_approval_does_not_bring_it_back(hospitals, manifest):
    now = timezone.now()
    old = hospitals[0].statement(manifest, now=now - timedelta(seconds=30))
    _send(hospitals[0], manifest, hospitals[0].statement(manifest, now=now))
    _send(hospitals[0], manifest, hospitals[0].statement(manifest, "revoke", now=now + timedelta(seconds=1)))
    assert _decision(manifest, "site-1") == Decision.REVOKED
    assert _send(hospitals[0], manifest, old)[1]["code"] == "APPROVAL_REVOKED"
    assert _decision(manifest, "site-1") == Decision.REVOKED
    assert approving_silos(manifest) == []


def test_two_of_two_needs_two_people(hospitals, manifest):
    """An approval by the first of two people is kept and does not count."""
    from protocol.canonical import b64
    from protocol.trust import TRUST_TYPE, add_signature, freeze_trust

    hospital, second = hospitals[0], SigningKey.generate()
    entry = {"kind": "ed25519", "role": "steward", "not_after": "2099-01-01T00:00:00Z"}
    document = {
        "schema": "consilium/trust/1",
        "version": 1,
        "keys": {
            hospital.steward.keyid: {**entry, "public": b64(hospital.steward.public), "person": "First"},
            second.keyid: {**entry, "public": b64(second.public), "person": "Second"},
        },
        "roles": {"steward": 2},
    }
    trust = add_signature(sign_envelope(TRUST_TYPE, freeze_trust(document), hospital.steward), second)
    Silo.objects.filter(name="site-1").update(trust=trust.as_dict())
    first = _send(hospital, manifest, hospital.statement(manifest))[1]
    assert first["complete"] is False and _decision(manifest, "site-1") == Decision.WAITING
    both = _send(hospital, manifest, hospital.statement(manifest, key=second))[1]
    assert both["complete"] is True and _decision(manifest, "site-1") == Decision.APPROVED


def test_a_study_that_is_over_takes_no_decisions(hospitals, manifest):
    Study.objects.update(state="withdrawn")
    assert _send(hospitals[0], manifest, hospitals[0].statement(manifest))[1]["code"] == "OUT_OF_STAGE"


def test_a_hospital_reads_exactly_the_bytes_that_it_is_asked_to_approve(hospitals, manifest, make_hospital):
    path = f"/api/v1/studies/{manifest.study_id}/manifest"
    answer = hospitals[0].node.send("GET", path)
    assert answer.content == manifest.data
    assert make_hospital("site-9").node.send("GET", path).status_code == 404


@pytest.mark.parametrize("page", ["silo", "portal"])
def test_a_passkeys_approval_counts_and_says_where_it_was_made(hospitals, manifest, page):
    from governance.pages_selectors import read_decision
    from protocol.statement import APPROVAL_TYPE
    from tests.protocol.software_passkey import SoftwarePasskey

    hospital, key = hospitals[0], SoftwarePasskey()
    trust = hospital.next_trust(**{key.passkey.keyid: key.entry("Second", page=page, not_after="2099-01-01T00:00:00Z")})
    answer = hospital.node.send("PUT", "/api/v1/silo/trust", {"versions": [trust.as_dict()]})
    assert answer.status_code == 200, answer.content

    class Signer:
        keyid = key.passkey.keyid
        sign = staticmethod(lambda message: b"")

    draft = hospital.statement(manifest, key=Signer)
    status, taken = _send(hospital, manifest, key.envelope(APPROVAL_TYPE, draft.payload))
    assert status == 200 and taken["complete"] is True and _decision(manifest, "site-1") == Decision.APPROVED
    assert read_decision(Approval.objects.get()).on_portal_page is (page == "portal")
    elsewhere = key.envelope(
        APPROVAL_TYPE, hospital.statement(manifest, key=Signer).payload, origin="https://x.example"
    )
    assert _send(hospital, manifest, elsewhere)[1]["code"] == "APPROVAL_SIGNATURE"
