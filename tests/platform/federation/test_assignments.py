"""What a silo is told to do: all that is open, nothing that is done, and a version that changes with the situation."""

from __future__ import annotations

from federation.models import Purpose, Stage
from federation.selectors.assignments import assignments_for
from governance.models import Approval


def at(stage):
    return lambda world: world.round.purpose == Purpose.TRAIN and world.round.stage == stage


def kinds(silo, **how):
    return [task["kind"] for task in assignments_for(silo.row, **how)[1]]


def test_a_hospital_that_has_not_decided_is_asked_to(network):
    world = network(4)
    Approval.objects.filter(silo__name="site-4").delete()
    silo = world.silos["site-4"]
    assert "study" in kinds(silo)
    assert "study" not in kinds(world.silos["site-1"])


def test_a_silo_that_restarts_gets_all_that_is_still_open(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    silo = world.silos["site-1"]
    assert kinds(silo) == ["announce", "ready"]
    assert kinds(silo, fresh=False) == ["ready"]


def test_what_was_answered_is_not_asked_again_and_keeps_the_version(network):
    world = network(4)
    world.play(until=at(Stage.BUNDLES))
    silo = world.silos["site-1"]
    before, tasks = assignments_for(silo.row)
    assert [task["kind"] for task in tasks] == ["announce", "roster"]
    silo.act()
    after, tasks = assignments_for(silo.row, fresh=False)
    assert tasks == []
    assert after == before, "an own answer is no news"


def test_the_version_changes_when_the_round_goes_on(network):
    world = network(4, sketch=True)
    seen = set()
    stages = [
        Stage.KEYS,
        Stage.BUNDLES,
        Stage.READY,
        Stage.UPDATE,
        Stage.LIST,
        Stage.SKETCH,
        Stage.SECOND,
        Stage.UNMASK,
    ]
    stages += [Stage.NONCE, Stage.CHECK, Stage.STATE]
    for stage in stages:
        if world.round.stage != stage or world.round.purpose != Purpose.TRAIN:
            world.play(until=at(stage))
        seen.add(assignments_for(world.silos["site-1"].row)[0])
    assert len(seen) == 11


def test_an_announcement_carries_the_approvals_proof_and_t_signed_states(network):
    world = network(4)
    world.play(until=at(Stage.KEYS))
    task = assignments_for(world.silos["site-2"].row)[1][0]
    assert task["kind"] == "announce"
    assert task["record"] and task["proof"].startswith("c2sp.org/tlog-proof@v1")
    assert len(task["states"]) == 3
    assert task["participants_approved"] == sorted(world.silos)
    assert task["model_length"] == 136
    # Each hospital computes from it the context that the states must name.
    assert task["origin"] == {"manifest": task["manifest"], "number": 0, "attempt": 1, "model": None}


def test_nothing_is_announced_before_the_approval_is_published(transactional_db, portal_home, eager):
    import importlib.util
    import sys
    from pathlib import Path

    name = "federation_conftest"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    from evidence.services import sequence
    from federation.services.activation import study_activate

    world = module.Network(4)
    study_activate(study=world.study)
    silo = world.silos["site-1"]
    before, tasks = assignments_for(silo.row)
    assert tasks == []
    sequence()
    after, tasks = assignments_for(silo.row)
    assert [task["kind"] for task in tasks] == ["announce"]
    assert after != before, "the silo that waits is told"


def test_a_silo_that_fell_out_is_asked_for_nothing_more(network):
    world = network(4)
    world.play(until=at(Stage.KEYS))
    lost = world.silos["site-3"]
    lost.stops_before = {"chunks"}
    world.go_on(until=at(Stage.LIST))
    assert kinds(lost) == []


def test_the_end_of_a_study_is_told(network):
    world = network(4, max_rounds=1)
    world.play()
    assert kinds(world.silos["site-1"]) == ["closed", "completed"]


def test_the_queries_of_a_poll_do_not_grow_with_the_rounds_before(network, django_assert_max_num_queries):
    world = network(4, max_rounds=4)
    world.play(until=lambda w: w.round.number == 3)
    row = world.silos["site-1"].row
    assignments_for(row)
    with django_assert_max_num_queries(5):
        assignments_for(row)
    with django_assert_max_num_queries(5):
        assignments_for(row, fresh=False)
