"""A silo's own log is anchored in the portal's: it can grow, never shrink or change, and only its own key speaks for it."""

from __future__ import annotations

import json

import pytest

from evidence.models import Entry
from protocol.signing import SigningKey
from protocol.transparency.note import Checkpoint, LogKey, sign_checkpoint

pytestmark = pytest.mark.django_db
PATH = "/api/v1/log/silo-checkpoint"


def _note(hospital, size: int, fill: bytes = b"r", key: SigningKey | None = None) -> str:
    origin = f"{hospital.name}.example/log"
    return sign_checkpoint(Checkpoint(origin, size, fill * 32), LogKey(origin, key or hospital.log_key))


def _send(hospital, note: object) -> tuple[int, dict]:
    answer = hospital.node.send("POST", PATH, {"note": note})
    return answer.status_code, json.loads(answer.content)


def test_a_silos_checkpoint_becomes_a_leaf_from_which_the_note_can_be_made_again(make_hospital):
    hospital = make_hospital("site-1")
    note = _note(hospital, 5)
    status, content = _send(hospital, note)
    entry = Entry.objects.get(type="silo.checkpoint")
    assert status == 200 and content == {"entry": str(entry.pk)}
    data = json.loads(bytes(entry.record))["data"]
    again = f"{data['origin']}\n{data['size']}\n{data['root']}\n\n— {data['origin']} {data['signature']}\n"
    assert again == note


def test_the_same_checkpoint_again_is_the_same_entry_and_a_larger_one_another(make_hospital):
    hospital = make_hospital("site-1")
    first = _send(hospital, _note(hospital, 5))
    assert _send(hospital, _note(hospital, 5)) == first
    assert _send(hospital, _note(hospital, 6, b"s"))[0] == 200
    assert Entry.objects.filter(type="silo.checkpoint").count() == 2


@pytest.mark.parametrize(("size", "fill"), [(4, b"r"), (5, b"x")])
def test_a_silos_log_that_shrinks_or_changes_is_refused_and_stays_visible(make_hospital, size, fill):
    hospital = make_hospital("site-1")
    _send(hospital, _note(hospital, 5))
    status, content = _send(hospital, _note(hospital, size, fill))
    assert (status, content["code"]) == (409, "SILO_LOG_FORKED")
    assert Entry.objects.filter(type="silo.checkpoint", outcome="denied").count() == 1


def test_another_key_or_no_note_at_all_is_refused(make_hospital):
    hospital = make_hospital("site-1")
    assert _send(hospital, _note(hospital, 5, key=SigningKey.generate()))[1]["code"] == "BAD_MESSAGE"
    for wrong in ("", "text", 5, None, {"a": 1}):
        assert _send(hospital, wrong)[1]["code"] == "BAD_MESSAGE"
    assert not Entry.objects.filter(type="silo.checkpoint", outcome="success").exists()
