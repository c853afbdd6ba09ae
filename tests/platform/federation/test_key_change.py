"""A silo that changes its key: not in the middle of a round, and afterwards the study goes on without it and says so."""

from __future__ import annotations

import re

import pytest

from federation.models import Purpose, Stage
from federation.selectors.assignments import assignments_for
from governance.models import Study
from organisations.services import silo_rotate
from portal.problems import Refused
from protocol.key_rotation import KeyRotation, sign_rotation
from protocol.signing import SigningKey

NAME = "site-1"


def change(world, name=NAME):
    silo, new = world.silos[name], SigningKey.generate()
    statement = KeyRotation(name, silo.key.public, new.public, "2026-11-25T08:00:00Z")
    silo_rotate(silo=silo.row, envelope=sign_rotation(statement, old=silo.key, new=new))


def training(world):
    return world.round.purpose == Purpose.TRAIN


def joined(world):
    return training(world) and world.round.messages.filter(kind="keys", silo__name=NAME).exists()


def kinds(world):
    return [each["kind"] for each in assignments_for(world.silos[NAME].row)[1]]


def test_a_silo_in_a_round_is_told_when_to_try_again(network):
    world = network(5)
    world.play(until=joined)
    with pytest.raises(Refused) as caught:
        change(world)
    assert caught.value.code == "ROUND_OPEN" and caught.value.status == 409
    assert world.round.key in caught.value.sentence
    assert re.search(r"ends at \d{4}-\d\d-\d\d \d\d:\d\d UTC", caught.value.sentence)
    key = world.round.key
    world.play(until=lambda w: w.round.key != key and training(w))
    assert world.rounds[-2].stage == Stage.FINISHED and NAME in world.rounds[-2].members
    change(world)  # announced, and not joined


def test_a_round_that_it_has_not_joined_ends_without_it_and_so_does_the_study(network):
    world = network(5)
    world.play(until=training)
    assert NAME in world.round.announced
    change(world)
    assert kinds(world) == ["other_key"]
    world.silos[NAME].dead = True
    world.go_on()
    assert world.state == "completed"
    trained = [item for item in world.rounds if item.stage == Stage.FINISHED and item.purpose != Purpose.INITIAL]
    assert trained and not any(NAME in item.members for item in trained)
    assert not any(NAME in item.announced for item in world.rounds[2:])


def test_a_silo_that_refused_the_round_or_fell_out_of_it_may_change_its_key(network):
    world = network(5)
    world.play(until=joined)
    world.silos[NAME].refuse(world.round.key, "Not today.")  # after its keys: in training, say
    change(world)
    world.silos["site-2"].stops_before = {"ready"}
    world.go_on(until=lambda w: training(w) and w.round.ready_set is not None)
    assert "site-2" not in world.round.ready_set
    change(world, "site-2")


def test_with_too_few_left_the_study_is_paused_and_names_whose_key_changed(network):
    world = network(3)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    change(world)
    world.silos[NAME].dead = True
    world.play()
    world.later(700)  # the round waits for it until its stage is over
    study = Study.objects.get(pk=world.study.pk)
    assert (study.state, study.paused_reason["code"]) == ("paused", "KEY_ROTATED")
    assert "Hospital site-1 (site-1)" in study.paused_reason["sentence"]
    assert "site-2" not in study.paused_reason["sentence"]
