"""Where the plan has fewer than all hospitals drawn a round: who is asked, who is not, and that everybody can check it."""

from __future__ import annotations

from evidence.models import Entry
from federation.models import Purpose, Stage
from federation.selectors.assignments import assignments_for
from protocol.canonical import decode
from protocol.participation import draw


def test_each_training_round_asks_those_that_model_number_and_names_draw(network):
    world = network(5, max_rounds=4, drawn=3)
    world.play()
    assert world.state == "completed"
    trained = [item for item in world.rounds if item.purpose == Purpose.TRAIN]
    for item in trained:
        drawn = draw(world.silos, count=3, model=item.model_digest, round_number=item.number)
        assert item.announced == item.members == list(drawn)
        assert {seat.silo.name for seat in item.seats.all()} == set(drawn)
        started = Entry.objects.get(type="round.started", subject_id=item.key)
        said = decode(bytes(started.record))
        assert (said["data"]["silos"], said["refs"]["model"]) == (list(drawn), item.model_digest)
    assert len({tuple(item.announced) for item in trained}) > 1, "four draws of three of five"
    for item in (world.rounds[0], world.rounds[-1]):
        assert item.announced == sorted(world.silos), "the first model and the evaluation are everybody's"


def test_a_hospital_that_is_not_drawn_is_asked_for_nothing(network):
    world = network(5, drawn=3)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    (rest, *_) = set(world.silos) - set(world.round.announced)
    assert assignments_for(world.silos[rest].row)[1] == []


def test_another_attempt_draws_the_same_hospitals(network):
    world = network(5, drawn=3)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    for silo in world.silos.values():
        silo.refuses = {"train": "Not today."}
    world.play()
    attempts = [item for item in world.rounds if item.number == 1]
    assert [item.stage for item in attempts] == [Stage.FAILED] * 3
    assert len({tuple(item.announced) for item in attempts}) == 1


def test_without_a_number_everybody_is_asked(network):
    world = network(5)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    assert world.round.announced == sorted(world.silos)
