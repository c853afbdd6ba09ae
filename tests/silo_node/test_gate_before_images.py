"""Each refusal of the gate comes before anything of the data folder is opened, and its reason reaches the portal."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import pytest

from protocol.canonical import b64, digest
from protocol.manifest import freeze
from protocol.signing import Envelope
from silo_node.errors import Refused
from silo_node.imaging import decode
from silo_node.steward.reasons import reason
from tests.silo_node import test_gate_cohort
from tests.silo_node.opened_files import watched  # noqa: F401

door = test_gate_cohort.door


def no_approval(door):
    for path in (door.silo.config.approvals / door.portal.manifest.study).iterdir():
        path.unlink()
    return {}


def expired(door):
    no_approval(door)
    door.silo.decide(until=date.today())
    return {"now": datetime.now(UTC) + timedelta(days=2)}


def revoked(door):
    door.silo.decide("revoke", "The ethics committee has doubts.")
    return {}


def rejected(door):
    door.silo.decide("reject", "Not at this hospital.")
    return {}


def other_manifest(door):
    document = json.loads(door.portal.manifest_bytes)
    document["plan"]["local_epochs"] += 1
    data = freeze(document)
    return {"announcement": door.announcement(manifest=digest(data)), "manifest": data}


def one_byte_of_the_manifest(door):
    data = bytearray(door.portal.manifest_bytes)
    data[len(data) // 2] ^= 1
    return {"manifest": bytes(data)}


def one_byte_of_the_manifest_and_its_digest(door):
    """The portal announces the changed bytes as what was approved."""
    data = door.portal.manifest_bytes.replace(b'"local_epochs":1', b'"local_epochs":9')
    assert sum(a != b for a, b in zip(data, door.portal.manifest_bytes, strict=True)) == 1
    return {"announcement": door.announcement(manifest=digest(data)), "manifest": data}


def one_byte_of_the_approval(door):
    [path] = (door.silo.config.approvals / door.portal.manifest.study).iterdir()
    value = json.loads(path.read_text())
    payload = Envelope.from_dict(value).payload.replace(b'"max_rounds":2', b'"max_rounds":9')
    path.write_text(json.dumps({**value, "payload": b64(payload)}))
    return {}


def denied(door):
    door.silo.policy(permission="DUO:0000007", diseases=["DOID:162"])
    return {}


def denied_though_approved_again(door):
    """The steward approved while the policy allowed it; today's policy is what counts."""
    door.silo.policy(modifiers=[{"code": "DUO:0000045"}])
    door.silo.decide()
    door.silo.policy(permission="DUO:0000011")
    return {}


def no_policy(door):
    door.silo.config.policy.unlink()
    return {}


def other_policy(door):
    door.silo.policy(share_metrics=True)
    return {}


def paused(door):
    path = door.silo.config.studies / door.portal.manifest.study / "paused.json"
    path.write_text(json.dumps({"code": "STUDY_PAUSED", "sentence": "Three lists were signed."}))
    return {}


CASES = [
    (denied, "POLICY_DENY"),
    (denied_though_approved_again, "POLICY_DENY"),
    (no_policy, "POLICY_MISSING"),
    (other_policy, "APPROVAL_OTHER_POLICY"),
    (no_approval, "APPROVAL_MISSING"),
    (expired, "APPROVAL_EXPIRED"),
    (revoked, "APPROVAL_REVOKED"),
    (rejected, "APPROVAL_REJECTED"),
    (other_manifest, "APPROVAL_OTHER_MANIFEST"),
    (one_byte_of_the_manifest, "MANIFEST_DIFFERS"),
    (one_byte_of_the_manifest_and_its_digest, "APPROVAL_OTHER_MANIFEST"),
    (one_byte_of_the_approval, "APPROVAL_SIGNATURE"),
    (paused, "STUDY_PAUSED"),
]


@pytest.mark.parametrize(("prepare", "code"), CASES, ids=[prepare.__name__ for prepare, _ in CASES])
def test_refused_before_anything_of_the_data_folder_is_opened(door, watched, prepare, code):  # noqa: F811
    question = {"announcement": door.announcement(), **prepare(door)}
    with watched() as opened, pytest.raises(Refused) as caught:
        door.ask(**question)
    assert opened, "the watch sees what the gate reads"
    data = door.silo.config.data
    assert [path for path in opened if path == data or data in path.parents] == []
    said = reason(caught.value)  # what the portal gets to show
    assert said.code == code
    assert len(said.sentence.split()) > 4
    for identity in (*test_gate_cohort.PATIENTS, "Musterfrau", str(door.silo.folder)):
        assert identity not in said.sentence


def test_the_same_watch_sees_an_image_that_a_permitted_round_opens(door, watched):  # noqa: F811
    with watched() as opened:
        cohort = door.ask().cohort
    data = door.silo.config.data
    assert {path.name for path in opened if data in path.parents} == {"labels.csv"}
    with watched() as opened:
        decode.read(cohort.train[0].path, size=(16, 16))
    assert cohort.train[0].path in opened
