"""Who is lost, what a deadline ends, and that a beat that comes too often does nothing."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from federation.models import Purpose, Seat, SiloStage, Stage
from federation.services.liveness import lost_silos
from federation.services.sweep import sweep


def at(stage):
    return lambda world: world.round.purpose == Purpose.TRAIN and world.round.stage == stage


def after(seconds):
    return timezone.now() + timedelta(seconds=seconds)


def test_a_silo_without_a_heartbeat_for_ten_seconds_is_lost_and_one_with_is_not(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    item = world.round
    now = after(30)
    assert lost_silos(item, list(world.silos), now) == set(world.silos)
    Seat.objects.filter(round=item, silo__name="site-2").update(seen_at=now - timedelta(seconds=9))
    assert lost_silos(item, list(world.silos), now) == {"site-1", "site-3", "site-4"}


def test_a_message_is_a_sign_of_life_too(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    item = world.round
    limit = max(item.stage_at, *(message.received_at for message in item.messages.filter(kind="ready")))
    assert lost_silos(item, ["site-1"], limit + timedelta(seconds=9)) == set()


def test_a_heartbeat_is_noted_with_what_the_silo_does(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    silo, key = world.silos["site-1"], world.round.key
    silo.heartbeat(key)
    silo.heartbeat(key)
    silo.heartbeat(key, stage="upload")
    seat = Seat.objects.get(round=world.round, silo__name="site-1")
    assert seat.working_on == "upload"
    assert timezone.now() - seat.seen_at < timedelta(seconds=5)
    assert list(SiloStage.objects.order_by("pk").values_list("stage", flat=True)) == ["training", "upload"]


def test_a_heartbeat_signed_by_another_silo_is_refused(network):
    import pytest

    from portal.problems import Refused

    world = network(4)
    world.play(until=at(Stage.UPDATE))
    silo = world.silos["site-1"]
    silo.key = world.silos["site-2"].key
    with pytest.raises(Refused, match="BAD_MESSAGE"):
        silo.heartbeat(world.round.key)


def test_silos_that_train_are_waited_for_and_the_lost_one_is_not(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    for silo in list(world.silos.values())[:2]:
        silo.act()
    world.silos["site-4"].dead = True
    assert world.later(60) == [], "site-3 still trains"
    world.silos["site-3"].act()
    assert world.later(60) == [world.rounds[1].key]
    assert world.rounds[1].members == ["site-1", "site-2", "site-3"]


def test_a_silo_that_is_slow_beyond_the_deadline_is_not_waited_for(network):
    world = network(4, round_seconds=30)
    world.play(until=at(Stage.UPDATE))
    for silo in list(world.silos.values())[:3]:
        silo.act()
    assert world.later(20) == []
    world.later(31)
    assert world.round.stage == Stage.LIST
    assert world.round.members == ["site-1", "site-2", "site-3"]


def test_a_round_that_nobody_answers_fails_at_its_deadline_and_is_announced_again(network):
    world = network(4)
    world.play(until=at(Stage.KEYS))
    for silo in world.silos.values():
        silo.dead = True
    sweep(after(60))
    assert world.round.stage == Stage.KEYS, "they may come back"
    sweep(after(121))
    assert (world.round.number, world.round.attempt) == (1, 2)
    assert "did not answer in time" in world.rounds[1].failure["sentence"]


def test_a_lost_silo_that_comes_back_in_time_is_in_the_sum(network):
    world = network(4, max_rounds=1)
    world.play(until=at(Stage.UPDATE))
    back = [world.silos["site-3"], world.silos["site-4"]]
    for silo in back:
        silo.dead = True
    world.play()
    assert world.later(60) == [], "two of four are too few: the round waits"
    for silo in back:
        silo.dead = False
    world.play()
    assert world.rounds[1].members == sorted(world.silos)
    assert world.state == "completed"


def test_a_sweep_of_quiet_rounds_writes_nothing(network, django_assert_max_num_queries):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    with django_assert_max_num_queries(5) as captured:
        assert sweep() == []
    assert not [query for query in captured.captured_queries if query["sql"].startswith(("UPDATE", "INSERT"))]


def test_a_study_between_rounds_after_a_crash_goes_on(network):
    from federation.models import Round, StudyRun

    world = network(4)
    world.play(until=at(Stage.KEYS))
    # As if the process had died after the round's end, before the next announcement was written.
    world.round.delete()
    Round.objects.filter(study=world.study, number=0).update(newest=True)
    assert StudyRun.objects.filter(study=world.study).exists()
    sweep()
    assert (world.round.number, world.round.stage) == (1, Stage.KEYS)
