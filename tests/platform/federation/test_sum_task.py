"""The sum, made by tasks a piece at a time: exact, in any order, twice, after a crash, and in little memory."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from django.db import connections
from django.utils import timezone

from evidence.models import Entry
from federation import tasks
from federation.models import GlobalModel, Purpose, Stage, SumChunk
from federation.services.sweep import sweep
from federation.services.verifying import sum_sketch
from federation.storage import SUM, chunk_path
from portal.celery import app as celery
from protocol.messages import Check, seal
from protocol.model_state import TensorSpec
from protocol.secure_aggregation import CHUNK_WORDS
from protocol.signing import Envelope

WORDS = 2 * CHUNK_WORDS + 1000


@pytest.fixture
def unsummed(network, settings, request):
    """A round of three pieces and a tail in the stage `sum`, whose tasks were lost with the broker."""
    settings.FEDERATION_INLINE_WORDS = 0
    table = (TensorSpec("layer.weight", (WORDS // 8, 8)),)
    # The bound is that of a sum of four within 32 bits; an update of random words of this length is longer.
    world = network(4, max_rounds=1, table=table, sketch=getattr(request, "param", False), clip_norm=1000.0)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    celery.conf.task_always_eager = False  # what is sent now lies in the broker, and nobody works
    world.play(until=lambda w: w.rounds[1].stage == Stage.SUM)
    assert world.round.stage == Stage.SUM
    return world


@pytest.fixture
def unchecked(unsummed):
    """The same round in the stage `check`, with all check words; the task that holds the sum against them was lost."""
    for index in range(4):
        tasks.sum_chunk(unsummed.round.key, index)
    unsummed.play(until=lambda w: w.round.messages.filter(kind="check").count() == 4)
    assert unsummed.round.stage == Stage.CHECK
    return unsummed


def test_pieces_in_any_order_give_the_exact_sum(unsummed):
    item = unsummed.round
    for index in (2, 0, 3, 1):
        assert unsummed.round.stage == Stage.SUM
        tasks.sum_chunk(item.key, index)
    item = unsummed.round
    assert item.stage == Stage.NONCE
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
    assert unsummed.rounds[1].stage == Stage.NONCE
    assert SumChunk.objects.filter(round=unsummed.rounds[1]).count() == 4


def test_tasks_that_the_broker_lost_are_made_again_from_the_database(unsummed, eager):
    tasks.sum_chunk(unsummed.round.key, 1)
    celery.conf.task_always_eager = True
    sweep(timezone.now() + timedelta(seconds=5))
    assert unsummed.round.stage == Stage.SUM, "they may still be under way"
    sweep(timezone.now() + timedelta(seconds=60))
    assert unsummed.round.stage == Stage.NONCE


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
    assert item.stage == Stage.NONCE
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
    assert unsummed.round.stage == Stage.NONCE
    assert peak < 5 * 4 * CHUNK_WORDS, f"{peak / 1e6:.0f} MB for pieces of 4 MiB"


def test_a_large_sum_is_checked_by_a_task_that_may_run_twice(unchecked):
    item = unchecked.round
    tasks.check_sum(item.key)
    tasks.check_sum(item.key)
    item = unchecked.round
    assert (item.stage, item.verified) == (Stage.STATE, True)
    assert unchecked.state == "running"


def test_two_workers_that_check_at_once_move_the_round_once(unchecked):
    key = unchecked.round.key
    _together([lambda: tasks.check_sum(key)] * 3)
    assert (unchecked.round.stage, unchecked.round.verified) == (Stage.STATE, True)


def test_two_workers_that_find_a_sum_false_fail_the_round_once(unchecked):
    item = unchecked.round
    other = _other_word(unchecked.silos["site-2"], item.messages.get(kind="check", silo__name="site-2").envelope)
    item.messages.filter(kind="check", silo__name="site-2").update(envelope=other.as_dict(), digest=other.digest)
    _together([lambda: tasks.check_sum(item.key)] * 3)
    assert unchecked.rounds[1].failure["code"] == "SUM_NOT_TRUE"
    assert Entry.objects.filter(type="round.failed", subject_id=item.key).count() == 1
    assert [each.number for each in unchecked.rounds] == [0, 1, 2]


def test_a_stored_message_that_is_not_the_one_that_was_received_is_never_used(unchecked):
    """Signed by the same silo, but put in its place in the database afterwards."""
    item = unchecked.round
    other = _other_word(unchecked.silos["site-2"], item.messages.get(kind="check", silo__name="site-2").envelope)
    item.messages.filter(kind="check", silo__name="site-2").update(envelope=other.as_dict())
    tasks.check_sum(item.key)
    assert unchecked.rounds[1].failure["code"] == "SUM_DAMAGED"
    assert "the stored 'check' of site-2" in unchecked.rounds[1].failure["sentence"]


def _other_word(silo, envelope):
    """The same check message with another word, signed by the silo."""
    message = Check.parse(Envelope.from_dict(envelope).payload)
    return seal(replace(message, word=bytes(8)), silo.key)


def test_a_check_that_the_broker_lost_is_made_again_from_the_database(unchecked):
    celery.conf.task_always_eager = True
    sweep(timezone.now() + timedelta(seconds=15))
    assert unchecked.round.stage == Stage.CHECK, "it may still be under way"
    sweep(timezone.now() + timedelta(seconds=60))
    assert (unchecked.round.stage, unchecked.round.verified) == (Stage.STATE, True)


def test_a_check_before_the_last_check_word_does_nothing(unchecked):
    item = unchecked.round
    item.messages.filter(kind="check", silo__name="site-2").update(late=True)
    tasks.check_sum(item.key)
    assert unchecked.round.stage == Stage.CHECK


def test_a_published_sum_that_was_damaged_fails_the_round(unchecked):
    item = unchecked.round
    chunk_path(item.key, SUM, 1).write_bytes(b"not the sum")
    tasks.check_sum(item.key)
    failed = unchecked.rounds[1]
    assert (failed.stage, failed.failure["code"]) == (Stage.FAILED, "SUM_DAMAGED")


@pytest.mark.parametrize("unsummed", [True], indirect=True)
def test_the_memory_of_the_checks_does_not_grow_with_the_model(unchecked):
    item = unchecked.round
    assert item.sketches["silos"].keys() == set(unchecked.silos)
    tracemalloc.start()
    try:
        sum_sketch(item)
        tasks.check_sum(item.key)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert unchecked.round.verified is True
    assert peak < 7 * CHUNK_WORDS, f"{peak / 1e6:.2f} MB for pieces of 4 MiB; two pieces would be more than 8"


def _together(functions):
    def run(function):
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(max_workers=len(functions)) as pool:
        return [future.result() for future in [pool.submit(run, function) for function in functions]]
