"""A hospital changes who decides for it: the portal takes what both versions' stewards signed, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evidence.models import Entry
from organisations.models import Silo
from protocol.canonical import b64
from protocol.signing import SigningKey

pytestmark = pytest.mark.django_db
PATH = "/api/v1/silo/trust"
SECOND = SigningKey.from_bytes(bytes([9]) * 32)
ENTRY = {
    SECOND.keyid: {
        "kind": "ed25519",
        "public": b64(SECOND.public),
        "role": "steward",
        "person": "Second",
        "not_after": "2099-01-01T00:00:00Z",
    }
}


def _send(hospital: Any, *versions: Any) -> tuple[int, dict[str, Any]]:
    answer = hospital.node.send("PUT", PATH, {"versions": [each.as_dict() for each in versions]})
    return answer.status_code, json.loads(answer.content)


@pytest.fixture
def hospital(make_hospital: Any) -> Any:
    return make_hospital("site-1")


def test_a_version_that_both_sides_signed_is_registered_and_recorded_once(hospital: Any) -> None:
    second = hospital.next_trust(needed=2, signed_by=[SECOND], **ENTRY)
    for _ in range(2):
        assert _send(hospital, second) == (200, {"trust": second.digest, "version": 2})
    assert Silo.objects.get(name="site-1").trust == second.as_dict()
    (entry,) = Entry.objects.filter(type="role.changed", subject_kind="silo", outcome="success")
    data = json.loads(bytes(entry.record))["data"]
    assert data["added"] == [SECOND.keyid] and data["needed"] == 2 and data["removed"] == []


def test_versions_that_were_missed_come_in_one_request(hospital: Any) -> None:
    second = hospital.next_trust(**ENTRY)
    hospital.trust = second
    third = hospital.next_trust(needed=2, signed_by=[SECOND])
    assert _send(hospital, third)[1]["code"] == "TRUST"
    assert _send(hospital, second, third) == (200, {"trust": third.digest, "version": 3})
    assert _send(hospital, second, third)[0] == 200


def test_what_the_old_or_the_new_stewards_did_not_sign_changes_nothing(hospital: Any) -> None:
    before = Silo.objects.get(name="site-1").trust
    too_few = hospital.next_trust(needed=2, **ENTRY)
    assert _send(hospital, too_few)[1]["code"] == "TRUST"
    hospital.steward, own = SECOND, hospital.steward
    by_the_new_one_only = hospital.next_trust(**ENTRY)
    hospital.steward = own
    assert _send(hospital, by_the_new_one_only)[1]["code"] == "TRUST"
    assert Silo.objects.get(name="site-1").trust == before


def test_another_document_under_a_registered_version_is_refused(hospital: Any) -> None:
    assert _send(hospital, hospital.next_trust(**ENTRY))[0] == 200
    status, problem = _send(hospital, hospital.next_trust())
    assert (status, problem["code"]) == (409, "VERSION")


@pytest.mark.parametrize(
    "body", [{}, {"versions": []}, {"versions": {}}, {"versions": [], "more": 1}, {"versions": [1] * 65}]
)
def test_a_body_of_another_form_is_refused(hospital: Any, body: dict[str, Any]) -> None:
    assert json.loads(hospital.node.send("PUT", PATH, body).content)["code"] == "BAD_MESSAGE"
