"""A silo's next key enters only on the present key's signature, once, and the old key is refused from then on."""

from __future__ import annotations

import json

import pytest

from evidence.models import Entry
from organisations.models import KeyRotation, Silo
from organisations.services import silo_revoke, silo_rotate
from portal.actors import SYSTEM
from portal.problems import Refused
from protocol.key_rotation import KeyRotation as Statement
from protocol.key_rotation import sign_rotation
from protocol.signing import SigningKey, keyid

pytestmark = pytest.mark.django_db
PATH = "/api/v1/silo/key"


def statement(old, new, silo="site-1"):
    return sign_rotation(Statement(silo, old.public, new.public, "2026-11-25T08:00:00Z"), old=old, new=new)


def put(hospital, key, envelope):
    hospital.node.key = key
    answer = hospital.node.send("PUT", PATH, envelope.as_dict())
    content = json.loads(answer.content)
    return content.get("code", "taken")


def test_the_new_key_is_taken_once_and_the_old_one_is_refused(make_hospital):
    hospital, new = make_hospital("site-1"), SigningKey.generate()
    envelope = statement(hospital.key, new)
    assert put(hospital, hospital.key, envelope) == "taken"
    assert put(hospital, new, envelope) == "taken"  # the answer was lost
    assert put(hospital, hospital.key, envelope) == "UNKNOWN_KEY"
    assert Silo.objects.get(name="site-1").keyid == keyid(new.public)
    assert KeyRotation.objects.count() == 1
    entry = Entry.objects.get(type="key.rotated", outcome="success")
    assert envelope.digest in str(vars(entry))


def test_an_old_statement_does_not_bring_an_old_key_back(make_hospital):
    hospital, new = make_hospital("site-1"), SigningKey.generate()
    first = hospital.key
    put(hospital, first, statement(first, new))
    assert put(hospital, new, statement(new, first)) == "KEY_TAKEN"
    third = SigningKey.generate()
    assert put(hospital, new, statement(new, third)) == "taken"
    assert put(hospital, third, statement(first, new)) == "OUT_OF_STAGE"


def test_another_silo_s_key_or_name_changes_nothing(make_hospital):
    hospital, other = make_hospital("site-1"), make_hospital("site-2")
    new = SigningKey.generate()
    assert put(other, other.key, statement(hospital.key, new)) == "OUT_OF_STAGE"
    assert put(other, other.key, statement(other.key, new)) == "OUT_OF_STAGE"
    assert put(hospital, hospital.key, statement(hospital.key, other.key)) == "KEY_TAKEN"
    assert not KeyRotation.objects.exists()


def test_of_two_rotations_at_once_one_wins(make_hospital):
    hospital = make_hospital("site-1")
    stale = Silo.objects.select_related("organisation").get(name="site-1")
    assert put(hospital, hospital.key, statement(hospital.key, SigningKey.generate())) == "taken"
    with pytest.raises(Refused, match="present key"):
        silo_rotate(silo=stale, envelope=statement(hospital.key, SigningKey.generate()))


def test_a_revoked_silo_cannot_give_itself_a_key(make_hospital):
    hospital = make_hospital("site-1")
    silo_revoke(actor=SYSTEM, silo=Silo.objects.get(name="site-1"), reason="stolen")
    assert put(hospital, hospital.key, statement(hospital.key, SigningKey.generate())) == "SILO_REVOKED"
