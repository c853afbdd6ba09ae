"""The sum, made by tasks a piece at a time: exact, in any order, twice, after a crash, and in little memory."""

from __future__ import annotations

import tracemalloc
from datetime import timedelta

import numpy as np
import pytest
from django.utils import timezone

from federation import tasks
from federation.models import GlobalModel, Purpose, Stage, SumChunk
from federation.services.sweep import sweep
from federation.storage import SUM, chunk_path
from portal.celery import app as celery
from protocol.model_state import TensorSpec
from protocol.secure_aggregation import CHUNK_WORDS

WORDS = 2 * CHUNK_WORDS + 1000


@pytest.fixture
def unsummed(network, settings):
    """A round of three pieces and a tail in the stage `sum`, whose tasks were lost with the broker."""
    settings.FEDERATION_INLINE_WORDS = 0
    world = network(4, max_rounds=1, table=(TensorSpec("layer.weight", (WORDS // 8, 8)),))
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    celery.conf.task_always_eager = False  # what is sent now lies in the broker, and nobody works
    world.play(until=lambda w: w.rounds[1].stage == Stage.SUM)
    assert world.round.stage == Stage.SUM
    return world


def test_pieces_in_any_order_give_the_exact_sum(unsummed):
    item = unsummed.round
    for index in (2, 0, 3, 1):
        assert unsummed.round.stage == Stage.SUM
        tasks.sum_chunk(item.key, index)
    item = unsummed.round
    assert item.stage == Stage.STATE
    assert np.array_equal(unsummed.stored_sum(item), unsummed.plain_sum(item.key, item.members))
    celery.conf.task_always_eager = True
    unsummed.play()
    assert unsummed.state == "completed"
    last = GlobalModel.objects.get(study=unsummed.study, number=1)
    assert all(last.digest in silo.states for silo in unsummed.silos.values())


def test_a_task_that_runs_twice_changes_nothing(unsummed):
    key = unsummed.round.key
    for index in (0, 0, 1, 1, 2, 3, 3, 0):
        tasks.sum_chunk(key, index)
    tasks.finish_sum(key)
    assert unsummed.rounds[1].stage == Stage.STATE
    assert SumChunk.objects.filter(round=unsummed.rounds[1]).count() == 4


def test_tasks_that_the_broker_lost_are_made_again_from_the_database(unsummed, eager):
    tasks.sum_chunk(unsummed.round.key, 1)
    celery.conf.task_always_eager = True
    sweep(timezone.now() + timedelta(seconds=5))
    assert unsummed.round.stage == Stage.SUM, "they may still be under way"
    sweep(timezone.now() + timedelta(seconds=60))
    assert unsummed.round.stage == Stage.STATE


def test_a_piece_of_the_sum_that_was_damaged_is_made_again(unsummed):
    key = unsummed.round.key
    for index in (0, 1, 2):
        tasks.sum_chunk(key, index)
    chunk_path(key, SUM, 1).write_bytes(b"not the sum")
    with pytest.raises(Exception, match="other bytes"):
        tasks.sum_chunk(key, 3)
    for index in range(4):
        tasks.sum_chunk(key, index)
    item = unsummed.round
    assert item.stage == Stage.STATE
    assert np.array_equal(unsummed.stored_sum(item), unsummed.plain_sum(item.key, item.members))


def test_an_update_that_was_damaged_fails_the_round_and_never_gives_a_wrong_sum(unsummed):
    item = unsummed.round
    path = chunk_path(item.key, "site-2", 1)
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    tasks.sum_chunk(item.key, 1)
    failed, following = unsummed.rounds[1:3]
    assert (failed.stage, failed.failure["code"]) == (Stage.FAILED, "UPDATE_DAMAGED")
    assert (following.number, following.model_digest) == (2, failed.model_digest)


def test_a_sum_out_of_range_fails_the_round(network):
    world = network(4, max_rounds=1)
    liar = world.silos["site-1"]
    honest = liar.update

    def poisoned(key, d):
        words, tail = honest(key, d)
        words[5 % max(d, 1) : 6] = np.uint32(2**30)
        return words, tail

    liar.update = poisoned
    world.play()
    failed = [item for item in world.rounds if item.stage == Stage.FAILED]
    assert {item.failure["code"] for item in failed} == {"SUM_NOT_VALID"}
    assert "out of range" in failed[0].failure["sentence"]
    assert GlobalModel.objects.filter(study=world.study).count() == 1


def test_a_tail_that_is_no_sum_of_tails_fails_the_round(network):
    world = network(4, max_rounds=1)
    liar = world.silos["site-1"]
    honest = liar.update
    liar.update = lambda key, d: (honest(key, d)[0], honest(key, d)[1] + np.uint64(2**40))
    world.play()
    assert {item.failure["code"] for item in world.rounds if item.failure} == {"SUM_NOT_VALID"}


def test_the_memory_of_a_sum_does_not_grow_with_model_or_silos(unsummed):
    key = unsummed.round.key
    tracemalloc.start()
    try:
        for index in range(4):
            tasks.sum_chunk(key, index)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert unsummed.round.stage == Stage.STATE
    assert peak < 5 * 4 * CHUNK_WORDS, f"{peak / 1e6:.0f} MB for pieces of 4 MiB"
