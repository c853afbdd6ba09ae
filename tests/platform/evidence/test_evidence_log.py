"""The audit log: written with the act, numbered by one sequencer, published as files that a stranger can check."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evidence.models import Entry, LogCheckpoint
from evidence.records import RecordError, leaf_data
from evidence.sequencer import LogForked, published, store
from evidence.services import (
    SYSTEM,
    Actor,
    NotPublished,
    Subject,
    acting,
    erase_private,
    export_log,
    proof_for,
    record,
    sequence,
)
from portal.ids import uuid7
from portal.keys import log_vkey
from portal.problems import Refused
from protocol import canonical
from protocol.transparency.proof import verify_proof
from protocol.transparency.record import private_digest
from protocol.transparency.tiles import entries
from protocol.transparency.verify import main as verify_main

ACTOR = Actor(str(uuid7()), "admin", "network", "password+totp")


def _write(count: int = 1, **content: Any) -> list[Entry]:
    with transaction.atomic():
        return [
            record(**{"type": "policy.changed", "actor": ACTOR, "subject": Subject("policy", f"site-{n}"), **content})
            for n in range(count)
        ]


def _verify(folder: Path) -> int:
    try:
        return verify_main([str(folder)]) or 0
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.django_db(transaction=True)
def test_an_entry_outside_a_transaction_is_refused():
    with pytest.raises(transaction.TransactionManagementError):
        record(type="policy.changed", actor=ACTOR, subject=Subject("policy", "site-1"))
    assert not Entry.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_act_that_fails_leaves_no_entry_and_a_refused_one_leaves_only_the_refusal():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        record(type="policy.changed", actor=ACTOR, subject=Subject("policy", "site-1"))
        raise ZeroDivisionError
    assert not Entry.objects.exists()
    with pytest.raises(Refused), acting(type="policy.changed", actor=ACTOR, subject=Subject("policy", "site-1")) as act:
        act.record()
        raise Refused("VERSION", "too old")
    entry = Entry.objects.get()
    content = json.loads(bytes(entry.record))
    assert (entry.outcome, content["reasons"]) == ("denied", ["VERSION"])


@pytest.mark.django_db(transaction=True)
def test_the_log_begins_with_its_genesis_whatever_was_written_before():
    _write(3)
    sequence()
    first = json.loads(next(iter(entries(store(), 4))))
    assert first["type"] == "log.genesis"
    assert first["data"]["vkey"] == log_vkey()
    assert published().size == 4


@pytest.mark.django_db(transaction=True)
def test_the_first_entry_can_be_proved_after_hundreds_more():
    first = _write(1)[0]
    sequence()
    _write(600)
    sequence()
    first.refresh_from_db()
    data, proof = proof_for(first)
    assert data == bytes(first.record)
    assert verify_proof(proof, leaf_data=data, vkey=log_vkey()).size == 602


@pytest.mark.django_db(transaction=True)
def test_an_entry_that_is_not_published_yet_has_no_proof():
    with pytest.raises(NotPublished):
        proof_for(_write()[0])


@pytest.mark.django_db(transaction=True)
def test_two_sequencers_at_once_give_every_entry_one_place():
    _write(40)
    start = threading.Barrier(3)
    errors: list[BaseException] = []

    def run() -> None:
        start.wait()
        try:
            for _ in range(5):
                _write(4)
                sequence()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    sequence()
    indices = list(Entry.objects.order_by("index").values_list("index", flat=True))
    assert indices == list(range(40 + 3 * 5 * 4 + 1))
    leaves = list(entries(store(), published().size))
    assert leaves == [bytes(item) for item in Entry.objects.order_by("index").values_list("record", flat=True)]


@pytest.mark.django_db(transaction=True)
def test_a_crash_between_checkpoint_and_publication_is_made_good_by_the_next_run(settings):
    _write(2)
    sequence()
    earlier = (settings.LOG_FOLDER / "checkpoint").read_bytes()
    _write(2)
    sequence()
    later = (settings.LOG_FOLDER / "checkpoint").read_bytes()
    (settings.LOG_FOLDER / "checkpoint").write_bytes(earlier)  # as if the process had died before publishing
    sequence()
    assert (settings.LOG_FOLDER / "checkpoint").read_bytes() == later


@pytest.mark.django_db(transaction=True)
def test_a_database_from_an_old_backup_does_not_fork_the_log():
    _write(2)
    sequence()
    _write(2)
    sequence()
    Entry.objects.filter(index__gte=3).delete()
    LogCheckpoint.objects.filter(size__gt=3).delete()
    _write(1)
    with pytest.raises(LogForked):
        sequence()


@pytest.mark.django_db(transaction=True)
def test_consilium_verify_accepts_the_export_and_names_the_entry_after_one_changed_byte(tmp_path, capsys):
    chosen = _write(300)[7]
    sequence()
    folder = tmp_path / "export"
    chosen.refresh_from_db()
    assert export_log(folder, actor=SYSTEM, proofs=[chosen]) == 301
    assert _verify(folder) == 0
    capsys.readouterr()
    bundle = folder / "tile" / "entries" / "000"
    data = bytearray(bundle.read_bytes())
    place = data.index(f"site-{chosen.index - 1}".encode())
    data[place] ^= 1
    bundle.write_bytes(data)
    assert _verify(folder) == 1
    shown = capsys.readouterr()
    assert str(chosen.index) in shown.out + shown.err


@pytest.mark.django_db(transaction=True)
def test_a_private_payload_stays_out_of_the_leaf_and_can_be_erased_while_the_proof_still_verifies():
    entry = _write(private={"reason": "A name: Erika Mustermann"})[0]
    content = json.loads(bytes(entry.record))
    assert b"Mustermann" not in bytes(entry.record)
    assert content["private"] == private_digest(bytes(entry.salt), entry.private)
    sequence()
    entry.refresh_from_db()
    erase_private(entry=entry, actor=ACTOR)
    entry.refresh_from_db()
    assert entry.private is None and entry.salt is None
    data, proof = proof_for(entry)
    verify_proof(proof, leaf_data=data, vkey=log_vkey())
    with pytest.raises(Refused, match="NOTHING_PRIVATE"):
        erase_private(entry=entry, actor=ACTOR)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "content",
    [
        {"data": {"epsilon": 1.5}},
        {"data": {"note": "free text"}},
        {"data": {"who": "Erika Mustermann"}},
        {"data": {"raw": b"x"}},
        {"data": {"list": ["ok", "not ok"]}},
        {"data": {"a key": 1}},
        {"reasons": ("a sentence",)},
        {"refs": {"manifest": "sha256:.. or so"}},
        {"type": "policy.invented"},
        {"outcome": "maybe"},
        {"data": {"much": ["x" * 300] * 300}},
    ],
)
def test_floats_free_text_and_names_have_no_place_in_a_record(content):
    with pytest.raises(RecordError), transaction.atomic():
        _write(**content)
    assert not Entry.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_record_has_the_documented_members_and_canonical_bytes():
    entry = _write(refs={"manifest": "sha256:" + "0" * 64}, data={"n": 3})[0]
    content = canonical.decode(bytes(entry.record))
    assert set(content) == {
        "v",
        "id",
        "time",
        "type",
        "actor",
        "subject",
        "outcome",
        "reasons",
        "refs",
        "data",
        "private",
    }
    assert set(content["actor"]) == {"id", "role", "org", "auth"}
    assert set(content["subject"]) == {"kind", "id", "version"}
    assert content["time"].endswith("Z") and len(content["time"]) == len("2026-11-23T10:00:00.000Z")
    assert content["id"] == str(entry.pk) and entry.pk.version == 7


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**53) + 1, 2**53 - 1),
            st.floats(),
            st.text(max_size=12),
            st.binary(max_size=4),
        ),
        max_size=5,
    )
)
def test_whatever_becomes_a_leaf_is_canonical_and_without_white_space(data):
    from django.utils import timezone

    try:
        leaf = leaf_data(
            id=uuid7(), time=timezone.now(), type="policy.changed", actor=ACTOR, subject=Subject("policy", "x"),
            outcome="success", reasons=(), refs={}, data=data, private=None,
        )  # fmt: skip
    except RecordError:
        return
    assert canonical.decode(leaf)["data"] == data
    assert b" " not in leaf


@pytest.mark.django_db(transaction=True)
def test_the_published_log_is_served_as_files_and_nothing_else_is():
    _write(300)
    sequence()
    client = Client()
    assert client.get("/api/v1/log/checkpoint").content == store().read("checkpoint")
    full = client.get("/api/v1/log/tile/entries/000")
    assert full.content == store().read("tile/entries/000")
    assert "immutable" in full.headers["Cache-Control"]
    assert client.get("/api/v1/log/tile/0/001.p/45").content == store().read("tile/0/001.p/45")
    for bad in ("0/../../../keys/log.key", "0/1", "0/000.p/0", "9x/000", "entries/..%2f..%2fcheckpoint"):
        answer = client.get(f"/api/v1/log/tile/{bad}")
        assert answer.status_code == 404, bad
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert client.post("/api/v1/log/checkpoint").status_code == 405


@pytest.mark.django_db(transaction=True)
def test_init_portal_can_run_twice_and_keeps_its_keys(capsys):
    call_command("init_portal", "--json")
    first = json.loads(capsys.readouterr().out)
    call_command("init_portal", "--json")
    second = json.loads(capsys.readouterr().out)
    assert first["log_vkey"] == second["log_vkey"]
    assert second["log_size"] == first["log_size"] == 1
    assert second["made"] is False
    assert Entry.objects.filter(type="log.genesis").count() == 1


@pytest.mark.django_db(transaction=True)
def test_export_refuses_a_folder_with_files_in_it(tmp_path):
    _write()
    sequence()
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError):
        export_log(tmp_path)
