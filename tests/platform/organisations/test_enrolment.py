"""A silo's key enters by a one-time token and two people who compare a fingerprint; nothing else lets it in."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from evidence.models import Entry
from organisations.models import Silo
from organisations.services import (
    organisation_register,
    role_grant,
    role_remove,
    silo_confirm,
    silo_invite,
    silo_revoke,
)
from portal.actors import SYSTEM
from portal.keys import answer_key, log_vkey
from portal.problems import Refused
from protocol.canonical import b64, unb64
from protocol.signing import SigningKey, fingerprint, sign_request

pytestmark = pytest.mark.django_db
ENROL = "/api/v1/silo/enrol"


@pytest.fixture
def invited(organisation):
    """A silo that is invited, with its token."""
    return silo_invite(actor=SYSTEM, organisation=organisation, name="site-1")


def _code(response: Any) -> str:
    return json.loads(response.content)["code"]


def test_a_token_and_a_signed_key_enrol_a_silo_that_then_waits_for_a_person(invited, new_hospital):
    silo, token = invited
    hospital = new_hospital("site-1")
    answer = hospital.node.send("POST", ENROL, hospital.enrol_body(token))
    content = json.loads(answer.content)
    assert answer.status_code == 200 and content["silo"] == "site-1" and content["state"] == "pending"
    assert unb64(content["portal"]["answer_public"]) == answer_key().public
    assert content["portal"]["log_vkey"] == log_vkey()
    assert _code(hospital.node.send("PUT", "/api/v1/silo/policy", b"{}")) == "SILO_PENDING"
    silo.refresh_from_db()
    assert silo.public == hospital.key.public and silo.trust == hospital.trust.as_dict()


def test_the_token_is_not_in_the_database(invited):
    silo, token = invited
    row = Silo.objects.values().get(pk=silo.pk)
    assert token not in str(row)


def test_sending_the_same_again_is_allowed_until_the_confirmation(invited, new_hospital):
    _, token = invited
    hospital = new_hospital("site-1")
    for _ in range(2):
        assert hospital.node.send("POST", ENROL, hospital.enrol_body(token)).status_code == 200
    assert Entry.objects.filter(type="key.enrolled", outcome="success").count() == 1


def test_a_token_works_for_one_key_only(invited, new_hospital):
    _, token = invited
    first, thief = new_hospital("site-1"), new_hospital("site-1")
    first.node.send("POST", ENROL, first.enrol_body(token))
    answer = thief.node.send("POST", ENROL, thief.enrol_body(token))
    assert (answer.status_code, _code(answer)) == (403, "TOKEN")
    assert Silo.objects.get().public == first.key.public


@pytest.mark.parametrize("case", ["unknown", "expired", "empty"])
def test_a_token_that_is_unknown_or_expired_is_refused_and_recorded(invited, new_hospital, case):
    silo, token = invited
    if case == "expired":
        Silo.objects.update(token_expires_at=timezone.now() - timedelta(seconds=1))
    hospital = new_hospital("site-1")
    body = hospital.enrol_body({"unknown": token + "x", "expired": token, "empty": ""}[case])
    assert _code(hospital.node.send("POST", ENROL, body)) == "TOKEN"
    silo.refresh_from_db()
    assert silo.state == "invited" and silo.public_key is None
    assert Entry.objects.get(type="key.enrolled").outcome == "denied"


def test_a_used_token_is_gone_after_the_confirmation(make_hospital, new_hospital, organisation):
    silo, token = silo_invite(actor=SYSTEM, organisation=organisation, name="site-9")
    hospital = new_hospital("site-9")
    hospital.node.send("POST", ENROL, hospital.enrol_body(token))
    make_hospital("site-1")  # leaves the user who confirms
    from organisations.models import User

    silo_confirm(actor=SYSTEM, user=User.objects.get(), silo=silo, fingerprint=fingerprint(hospital.key.public))
    assert _code(hospital.node.send("POST", ENROL, hospital.enrol_body(token))) == "TOKEN"


def test_the_key_must_sign_its_own_enrolment(invited, new_hospital):
    _, token = invited
    hospital, other = new_hospital("site-1"), SigningKey.generate()
    body = json.dumps(hospital.enrol_body(token)).encode()
    headers = sign_request(other, method="POST", path=ENROL, body=body)
    assert _code(hospital.node.send_raw("POST", ENROL, body, headers)) == "UNKNOWN_KEY"
    headers = sign_request(hospital.key, method="POST", path=ENROL, body=body + b" ")
    assert _code(hospital.node.send_raw("POST", ENROL, body, headers)) == "BAD_SIGNATURE"
    assert Silo.objects.get().public_key is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("public", "AAAA"),
        ("public", "not base64!"),
        ("public", 5),
        ("log_vkey", "nonsense"),
        ("witness_vkey", None),
        ("version", "a version"),
        ("trust", "text"),
        ("token", ["x"]),
        ("extra", 1),
    ],
)
def test_a_malformed_enrolment_is_refused_with_the_field_named(invited, new_hospital, field, value):
    hospital = new_hospital("site-1")
    answer = hospital.node.send("POST", ENROL, {**hospital.enrol_body(invited[1]), field: value})
    assert _code(answer) in ("BAD_MESSAGE", "UNKNOWN_KEY")
    if field != "extra":
        assert field in json.loads(answer.content)["detail"]


def test_a_witness_key_in_the_place_of_the_log_key_is_refused(invited, new_hospital):
    hospital = new_hospital("site-1")
    body = hospital.enrol_body(invited[1])
    assert _code(hospital.node.send("POST", ENROL, {**body, "log_vkey": body["witness_vkey"]})) == "BAD_MESSAGE"


def test_a_trust_file_that_its_stewards_did_not_sign_is_refused(invited, new_hospital):
    hospital, stranger = new_hospital("site-1"), new_hospital("site-1")
    body = hospital.enrol_body(invited[1])
    body["trust"]["signatures"] = stranger.trust.as_dict()["signatures"]
    answer = hospital.node.send("POST", ENROL, body)
    assert (answer.status_code, _code(answer)) == (422, "TRUST")
    assert Silo.objects.get().state == "invited"


def test_one_key_can_not_serve_two_silos(make_hospital, organisation):
    hospital = make_hospital("site-1")
    _, token = silo_invite(actor=SYSTEM, organisation=organisation, name="site-2")
    assert _code(hospital.node.send("POST", ENROL, hospital.enrol_body(token))) == "KEY_TAKEN"


class TestConfirmation:
    """Two people compare the fingerprint."""

    @pytest.fixture
    def pending(self, invited, new_hospital):
        hospital = new_hospital("site-1")
        hospital.node.send("POST", ENROL, hospital.enrol_body(invited[1]))
        return invited[0], hospital

    def test_the_right_fingerprint_makes_the_silo_active(self, pending, make_user, actor_of):
        silo, hospital = pending
        admin = make_user("admin")
        read_aloud = fingerprint(hospital.key.public).upper().replace(" ", "")
        silo_confirm(actor=actor_of(admin), user=admin, silo=silo, fingerprint=read_aloud)
        silo.refresh_from_db()
        assert (silo.state, silo.confirmed_by, silo.token_hash) == ("active", admin, "")
        assert _code(hospital.node.send("GET", "/api/v1/studies/st-x/manifest")) == "NOT_YOUR_STUDY"

    @pytest.mark.parametrize("wrong", ["", "abcd", None])
    def test_another_fingerprint_changes_nothing_and_is_recorded(self, pending, make_user, actor_of, wrong):
        silo, _hospital = pending
        admin = make_user("admin")
        given = fingerprint(SigningKey.generate().public) if wrong is None else wrong
        with pytest.raises(Refused, match="FINGERPRINT"):
            silo_confirm(actor=actor_of(admin), user=admin, silo=silo, fingerprint=given)
        silo.refresh_from_db()
        assert silo.state == "pending"
        assert Entry.objects.get(outcome="denied").actor_id == str(admin.pk)

    def test_a_beginning_of_the_fingerprint_is_not_enough(self, pending, make_user, actor_of):
        silo, hospital = pending
        admin = make_user("admin")
        with pytest.raises(Refused, match="FINGERPRINT"):
            silo_confirm(
                actor=actor_of(admin), user=admin, silo=silo, fingerprint=fingerprint(hospital.key.public)[:-1]
            )


def test_a_revoked_silo_is_refused_at_once_and_can_be_invited_anew(make_hospital, new_hospital):
    hospital = make_hospital("site-1")
    silo = Silo.objects.select_related("organisation").get()
    silo_revoke(actor=SYSTEM, silo=silo, reason="The laptop was stolen.")
    assert _code(hospital.node.send("GET", "/api/v1/studies/st-x/manifest")) == "SILO_REVOKED"
    entry = Entry.objects.get(type="key.revoked")
    assert b"stolen" not in bytes(entry.record) and entry.private == {"reason": "The laptop was stolen."}
    _, token = silo_invite(actor=SYSTEM, organisation=silo.organisation, name="site-1")
    fresh = new_hospital("site-1")
    assert fresh.node.send("POST", ENROL, fresh.enrol_body(token)).status_code == 200
    assert _code(hospital.node.send("GET", "/api/v1/studies/st-x/manifest")) == "UNKNOWN_KEY"


def test_an_active_silo_can_not_be_invited_over(make_hospital):
    make_hospital("site-1")
    silo = Silo.objects.select_related("organisation").get()
    with pytest.raises(Refused, match="SILO_ACTIVE"):
        silo_invite(actor=SYSTEM, organisation=silo.organisation, name="site-1")


def test_another_hospital_can_not_take_a_silos_name(make_hospital, organisation):
    make_hospital("site-1")
    with pytest.raises(Refused, match="NAME_TAKEN"):
        silo_invite(actor=SYSTEM, organisation=organisation, name="site-1")


@pytest.mark.parametrize(
    "change",
    [{"slug": "Nörth"}, {"slug": ""}, {"name": " "}, {"country": "de"}, {"country": "DEU"}, {"contact_email": "x"}],
)
def test_a_hospital_with_a_wrong_field_is_refused_and_the_refusal_carries_no_free_text(db, change):
    values = {"slug": "west", "name": "West", "country": "DE", **change}
    with pytest.raises(Refused):
        organisation_register(actor=SYSTEM, **values)
    entry = Entry.objects.get()
    assert entry.outcome == "denied" and " " not in bytes(entry.record).decode()


def test_roles_nobody_promotes_themselves_and_the_last_admin_stays(make_user, actor_of, organisation):
    admin, person = make_user("admin"), make_user(None)
    with pytest.raises(Refused, match="OWN_ROLE"):
        role_grant(actor=actor_of(admin), user=admin, role="auditor")
    with pytest.raises(Refused, match="ROLE_PLACE"):
        role_grant(actor=actor_of(admin), user=person, role="steward")
    with pytest.raises(Refused, match="ROLE_PLACE"):
        role_grant(actor=actor_of(admin), user=person, role="admin", organisation=organisation)
    with pytest.raises(Refused, match="LAST_ADMIN"):
        role_remove(actor=actor_of(admin), membership=admin.memberships.get())
    role_grant(actor=actor_of(admin), user=person, role="steward", organisation=organisation)
    with pytest.raises(Refused, match="ROLE_HELD"):
        role_grant(actor=actor_of(admin), user=person, role="steward", organisation=organisation)
    assert Entry.objects.filter(type="role.changed", outcome="success").count() == 1
    assert Entry.objects.filter(type="role.changed", outcome="denied").count() == 5


def test_the_fingerprint_is_of_the_key_that_signs(make_hospital):
    hospital = make_hospital("site-1")
    assert b64(Silo.objects.get().public) == b64(hospital.key.public)
