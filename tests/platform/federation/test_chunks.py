"""Pieces of updates: whole or not at all, once, and only where they belong."""

from __future__ import annotations

import hashlib
import json
import os
import resource

import numpy as np
import pytest

from federation import storage
from federation.models import ChunkReceipt, Purpose, RoundMessage, Stage
from federation.storage import AtomicFile, Damaged, StorageFull, chunk_path, read_chunk
from portal.problems import Refused


def uploading(world):
    return world.round.purpose == Purpose.TRAIN and world.round.stage == Stage.UPDATE


@pytest.fixture
def ready(network):
    """A network in the stage `update`, and one silo that is about to send."""
    world = network(4)
    world.play(until=uploading)
    silo, key = world.silos["site-1"], world.round.key
    task = next(task for task in silo.assignments() if task["kind"] == "ready")
    from protocol.signing import Envelope

    machine = silo.rounds[key]
    machine.accept_ready(map(Envelope.from_dict, task["ready"]))
    machine.begin_update(*silo.update(key, machine.parameters.words))
    return world, silo, machine


def put(silo, key, index, body):
    return json.loads(silo.ask("PUT", f"rounds/{key}/update/{index}", body=body).body)


def test_a_piece_is_kept_with_its_digest_and_the_same_one_twice_is_fine(ready):
    world, silo, machine = ready
    chunk = machine.masked_chunk(0)
    digest = "sha256:" + hashlib.sha256(chunk).hexdigest()
    assert put(silo, world.round.key, 0, chunk) == {"chunk": 0, "digest": digest, "new": True}
    assert put(silo, world.round.key, 0, chunk)["new"] is False
    assert json.loads(silo.ask("GET", f"rounds/{world.round.key}/update").body) == {"chunks": [0]}


def test_another_piece_in_its_place_is_refused_and_the_first_stays(ready):
    world, silo, machine = ready
    chunk = machine.masked_chunk(0)
    put(silo, world.round.key, 0, chunk)
    with pytest.raises(Refused) as refused:
        put(silo, world.round.key, 0, bytes(len(chunk)))
    assert (refused.value.code, refused.value.status) == ("CHUNK_DIFFERS", 409)
    assert chunk_path(world.round.key, silo.name, 0).read_bytes() == chunk


@pytest.mark.parametrize("change", [-1, 1])
def test_a_piece_of_another_length_is_refused(ready, change):
    world, silo, machine = ready
    chunk = machine.masked_chunk(0)
    with pytest.raises(Refused, match="BAD_MESSAGE"):
        put(silo, world.round.key, 0, (chunk + b"x")[: len(chunk) + change])
    assert not ChunkReceipt.objects.exists()


def test_a_piece_that_the_update_does_not_have_is_refused(ready):
    world, silo, _ = ready
    with pytest.raises(Refused, match="has the pieces 0 to 1"):
        put(silo, world.round.key, 2, b"")


def test_an_update_whose_pieces_are_missing_or_others_is_refused(ready):
    world, silo, machine = ready
    key = world.round.key
    with pytest.raises(Refused, match="CHUNKS_MISSING"):
        silo.post(key, "update", machine.finish_update())
    put(silo, key, 0, bytes(len(machine.masked_chunk(0))))
    put(silo, key, 1, machine.masked_chunk(1))
    with pytest.raises(Refused, match="CHUNK_DIFFERS"):
        silo.post(key, "update", machine.finish_update())
    assert not RoundMessage.objects.filter(kind="update").exists()


def test_a_piece_outside_the_upload_stage_is_refused(network):
    world = network(4)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    with pytest.raises(Refused, match="OUT_OF_STAGE"):
        put(world.silos["site-1"], world.round.key, 0, b"x")


def test_a_full_disk_is_said_and_leaves_nothing_behind(ready, settings):
    world, silo, machine = ready
    settings.FEDERATION_DISK_RESERVE = 1 << 60
    with pytest.raises(Refused) as refused:
        put(silo, world.round.key, 0, machine.masked_chunk(0))
    assert (refused.value.code, refused.value.status) == ("DISK_FULL", 507)
    assert not ChunkReceipt.objects.exists()
    folder = chunk_path(world.round.key, silo.name, 0).parent
    assert not folder.exists() or list(folder.iterdir()) == []
    settings.FEDERATION_DISK_RESERVE = 0
    assert put(silo, world.round.key, 0, machine.masked_chunk(0))["new"] is True


def test_a_disk_that_fills_up_while_writing_leaves_no_half_file(portal_home):
    path = chunk_path("st-a.1.1", "site-1", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageFull), AtomicFile(path) as file:
            file.write(bytes(90_000))
            file.write(bytes(90_000))
            file.keep()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(path.parent.iterdir()) == []


def test_a_file_that_was_not_kept_is_gone(portal_home):
    path = chunk_path("st-a.1.1", "site-1", 0)
    with pytest.raises(RuntimeError), AtomicFile(path) as file:
        file.write(b"half")
        raise RuntimeError("the connection broke")
    assert list(path.parent.iterdir()) == []


def test_other_bytes_on_the_disk_are_noticed_when_they_are_read(portal_home):
    path = chunk_path("st-a.1.1", "site-1", 0)
    with AtomicFile(path) as file:
        file.write(b"whole")
        file.keep()
    assert bytes(read_chunk("st-a.1.1", "site-1", 0, digest=file.digest, into=bytearray(5))) == b"whole"
    path.write_bytes(b"whale")
    with pytest.raises(Damaged):
        read_chunk("st-a.1.1", "site-1", 0, digest=file.digest, into=bytearray(5))
    os.truncate(path, 3)
    with pytest.raises(Damaged):
        read_chunk("st-a.1.1", "site-1", 0, digest=file.digest, into=bytearray(5))
    path.unlink()
    with pytest.raises(Damaged):
        read_chunk("st-a.1.1", "site-1", 0, digest=file.digest, into=bytearray(5))


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "A", ".sum2"])
def test_no_name_leads_out_of_the_store(portal_home, name):
    with pytest.raises(ValueError, match="not a name"):
        chunk_path("st-a.1.1", name, 0)
    if name != storage.SUM:
        with pytest.raises(ValueError, match="not a name"):
            chunk_path(name, "site-1", 0)


def test_a_silo_that_dies_in_its_upload_sends_only_what_is_missing(ready):
    world, silo, machine = ready
    put(silo, world.round.key, 1, machine.masked_chunk(1))
    silo.words[world.round.key] = silo.update(world.round.key, machine.parameters.words)[0]
    silo.upload(world.round.key)
    silo.post(world.round.key, "update", machine.finish_update())
    world.play(until=lambda w: w.rounds[1].stage == Stage.STATE)
    item = world.rounds[1]
    assert np.array_equal(world.stored_sum(item), world.plain_sum(item.key, item.members))
