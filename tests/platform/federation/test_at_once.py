"""All hospitals at once, in threads, against one database: a stage changes once, nothing is lost, the sum is exact."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from django.db import connections

from evidence.models import Entry
from federation.models import GlobalModel, Purpose, Stage


def together(world, functions):
    """Run each function in a thread of its own, with a database connection of its own."""

    def run(function):
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(max_workers=len(functions)) as pool:
        return [future.result() for future in [pool.submit(run, function) for function in functions]]


@pytest.mark.parametrize("sketch", [False, True])
def test_a_study_whose_silos_all_act_at_once_ends_with_exact_sums(network, sketch):
    world = network(4, max_rounds=2, sketch=sketch)
    checked = set()
    while any(together(world, [silo.act for silo in world.silos.values()])):
        item = world.round
        if item.purpose == Purpose.TRAIN and item.stage == Stage.STATE:
            assert np.array_equal(world.stored_sum(item), world.plain_sum(item.key, item.members))
            checked.add(item.key)
    assert world.state == "completed"
    assert [(item.number, item.attempt) for item in world.rounds] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert GlobalModel.objects.filter(study=world.study).count() == 3
    for item in world.rounds:
        for type in ("round.started", "round.finished"):
            assert Entry.objects.filter(type=type, subject_id=item.key).count() == 1
    assert checked
    assert [item.verified for item in world.rounds] == [None, True, True, True]


def test_the_same_piece_sent_twice_at_once_is_kept_once(network):
    from federation.models import ChunkReceipt
    from protocol.signing import Envelope

    world = network(4)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN and w.round.stage == Stage.UPDATE)
    silo, key = world.silos["site-1"], world.round.key
    machine = silo.rounds[key]
    machine.accept_ready(map(Envelope.from_dict, silo.assignments()[-1]["ready"]))
    machine.begin_update(*silo.update(key, machine.parameters.words))
    chunk = machine.masked_chunk(0)
    together(world, [lambda: silo.ask("PUT", f"rounds/{key}/update/0", body=chunk)] * 4)
    assert ChunkReceipt.objects.filter(round=world.round).count() == 1


def test_two_sweeps_at_once_end_a_stage_once(network):
    from datetime import timedelta

    from django.utils import timezone

    from federation.services.sweep import sweep

    world = network(4)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    late = timezone.now() + timedelta(seconds=500)
    together(world, [lambda: sweep(late)] * 3)
    first = world.rounds[1]
    assert (first.number, first.attempt, first.stage) == (1, 1, Stage.FAILED)
    assert Entry.objects.filter(type="round.failed", subject_id=world.rounds[1].key).count() == 1
    assert sum(item.newest for item in world.rounds) == 1
