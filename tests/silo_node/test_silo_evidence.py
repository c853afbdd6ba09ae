"""The silo's own audit log: durable, ordered, provable, and erasable where it names people."""

from __future__ import annotations

import json
import threading

import pytest

from protocol import canonical
from protocol.transparency.note import open_checkpoint
from protocol.transparency.tiles import FolderTileStore, entries, inclusion_from_tiles, root_at
from protocol.transparency.tree import leaf_hash, verify_inclusion
from silo_node.evidence.evidence_log import EvidenceDamaged, EvidenceLog, uuid7
from silo_node.keys import Keys

SUBJECT = ("round", "st-x.1.1", None)


@pytest.fixture
def log(silo):
    node = silo.node()
    yield node.evidence
    node.close()


def test_every_record_can_be_proved_from_the_files_alone(silo, log):
    for number in range(300):
        log.record("data.accessed", subject=SUBJECT, data={"number": number})
        if number % 70 == 0:
            log.sequence()
    note = log.sequence()
    checkpoint = open_checkpoint(note, Keys(silo.config).log_vkey)
    store = FolderTileStore(silo.folder / "log")
    assert root_at(store, checkpoint.size) == checkpoint.root
    found = list(entries(store, checkpoint.size))
    assert len(found) == log.counts()["entries"] == checkpoint.size
    for index in (0, 1, 255, 256, checkpoint.size - 1):
        proof = inclusion_from_tiles(store, index, checkpoint.size)
        verify_inclusion(leaf_hash(found[index]), index, checkpoint.size, proof, checkpoint.root)


def test_a_record_is_there_before_it_is_sequenced(silo, log):
    name = log.record("data.accessed", subject=SUBJECT)
    again = EvidenceLog(silo.folder, Keys(silo.config), silo="site-1")
    assert again.records("data.accessed")[-1]["id"] == name


def test_a_crash_between_checkpoint_and_rows_changes_nothing(silo, log, monkeypatch):
    log.sequence()
    for number in range(5):
        log.record("data.accessed", subject=SUBJECT, data={"number": number})
    with monkeypatch.context() as patch:
        calls = []

        def killed(rows, start):
            calls.append(start)
            if rows:
                raise KeyboardInterrupt

        patch.setattr(log, "_place", killed)
        with pytest.raises(KeyboardInterrupt):
            log.sequence()
    before = log.checkpoint()
    again = EvidenceLog(silo.folder, Keys(silo.config), silo="site-1")
    again.record("data.accessed", subject=SUBJECT, data={"number": 5})
    note = again.sequence()
    after = open_checkpoint(note, Keys(silo.config).log_vkey)
    assert after.size == before.size + 1
    store = FolderTileStore(silo.folder / "log")
    numbers = [canonical.decode(data)["data"].get("number") for data in entries(store, after.size)]
    assert numbers[-6:] == [0, 1, 2, 3, 4, 5]


def test_changed_tiles_are_noticed_before_anything_is_appended(silo, log):
    log.record("data.accessed", subject=SUBJECT)
    log.sequence()
    [tile] = [path for path in (silo.folder / "log" / "tile" / "0").rglob("*") if path.is_file()][-1:]
    data = bytearray(tile.read_bytes())
    data[0] ^= 1
    tile.write_bytes(bytes(data))
    log.record("data.accessed", subject=SUBJECT)
    with pytest.raises(EvidenceDamaged):
        log.sequence()


def test_what_is_private_stays_beside_the_log(silo, log):
    log.record("data.accessed", subject=SUBJECT, private={"subjects": ["very private"]})
    log.sequence()
    files = b"".join(path.read_bytes() for path in (silo.folder / "log").rglob("*") if path.is_file())
    assert b"very private" not in files
    assert b'"private":"sha256:' in files


def test_several_processes_may_record_while_one_sequences(silo, log):
    def write():
        other = EvidenceLog(silo.folder, Keys(silo.config), silo="site-1")
        for number in range(20):
            other.record("data.accessed", subject=SUBJECT, data={"number": number})
            other.sequence()
        other.close()

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.sequence()
    counts = log.counts()
    assert counts["entries"] == counts["sequenced"] == log.checkpoint().size
    store = FolderTileStore(silo.folder / "log")
    ids = [canonical.decode(data)["id"] for data in entries(store, log.checkpoint().size)]
    assert len(ids) == len(set(ids)) == counts["entries"]


def test_no_float_and_no_overlong_record(log):
    with pytest.raises(canonical.CanonicalError):
        log.record("data.accessed", subject=SUBJECT, data={"x": 0.5})
    with pytest.raises(ValueError, match="65,535"):
        log.record("data.accessed", subject=SUBJECT, data={"x": "y" * 70_000})


def test_ids_are_in_the_order_of_time():
    ids = [uuid7() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(each[14] == "7" and each[19] in "89ab" for each in ids)
    assert json.dumps(sorted(each[:8] for each in ids)) == json.dumps([each[:8] for each in ids])
