"""What a round does when hospitals refuse, repeat themselves, lie, or are gone; and that a stage changes only once."""

from __future__ import annotations

import copy
import json

import pytest
from django.utils import timezone

from evidence.models import Entry
from federation.models import Purpose, Round, RoundMessage, Stage
from federation.services.activation import study_go_on, study_resumed
from federation.services.facts import facts_of
from federation.services.stages import round_move
from governance import services
from governance.models import Study
from portal.actors import SYSTEM
from portal.problems import Refused
from protocol.initial_model import initial_state


def training(world):
    return world.round.purpose == Purpose.TRAIN


def at(stage):
    return lambda world: world.round.purpose == Purpose.TRAIN and world.round.stage == stage


def send(silo, key, kind, envelope):
    return json.loads(silo.ask("POST", f"rounds/{key}/{kind}", body=json.dumps(envelope).encode()).body)


def test_refusals_below_the_roster_fail_the_round_and_name_each_hospitals_reason(network):
    world = network(4)
    world.play(until=training)
    for name in ("site-1", "site-2"):
        world.silos[name].refuses = {"train": f"Too few patients at {name}."}
    world.play()
    failed = [item for item in world.rounds if item.stage == Stage.FAILED]
    assert [(item.number, item.attempt) for item in failed] == [(1, 1), (1, 2), (1, 3)]
    assert failed[0].failure["code"] == "ROSTER_TOO_SMALL"
    for name in ("site-1", "site-2"):
        assert f"Hospital {name} ({name}) refused: Too few patients at {name}." in failed[0].failure["sentence"]


def test_three_failures_in_a_row_pause_the_study_with_the_reason(network):
    world = network(4)
    world.play(until=training)
    for name in ("site-1", "site-2"):
        world.silos[name].refuses = {"train": "Not today."}
    world.play()
    study = Study.objects.get(pk=world.study.pk)
    assert study.state == "paused"
    assert study.paused_reason["code"] == "ROUNDS_FAILED"
    assert "Not today." in study.paused_reason["sentence"]
    kinds = [task["kind"] for task in world.silos["site-1"].assignments()]
    assert kinds == ["closed", "paused"]


def test_a_resumed_study_goes_on_with_the_next_attempt_and_counts_failures_anew(network):
    world = network(4, max_rounds=1)
    world.play(until=training)
    for name in ("site-1", "site-2"):
        world.silos[name].refuses = {"train": "Not today."}
    world.play()
    for silo in world.silos.values():
        silo.refuses = {}
    services.study_resume(actor=SYSTEM, study=Study.objects.get(pk=world.study.pk))
    assert (world.round.number, world.round.attempt) == (1, 4)
    world.play()
    assert world.state == "completed"


def test_one_refusal_does_not_stop_the_others(network):
    world = network(4, max_rounds=1)
    world.play(until=training)
    world.silos["site-4"].refuses = {"train": "The policy was changed.", "evaluate": "The policy was changed."}
    world.play()
    assert world.rounds[1].members == ["site-1", "site-2", "site-3"]
    assert world.state == "completed"
    refusals = Entry.objects.filter(type="round.refused")
    assert {entry.actor_id for entry in refusals} == {"silo:site-4"}


def test_failure_before_a_list_repeats_the_round_with_the_next_attempt(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    for name in ("site-1", "site-2"):
        world.silos[name].dead = True
    world.play()
    world.later(601)
    first, second = world.rounds[1:3]
    assert (first.stage, first.failure["code"]) == (Stage.FAILED, "TOO_FEW_SILOS")
    assert (second.number, second.attempt, second.model_digest) == (1, 2, first.model_digest)


def test_failure_after_a_list_announces_the_next_round_on_the_same_model(network):
    world = network(4)
    world.play(until=training)
    for name in ("site-1", "site-2"):
        world.silos[name].stops_before = {"list"}
    world.play()
    world.later(601)
    first, second = world.rounds[1:3]
    assert first.failure["stage"] == Stage.LIST
    assert (second.number, second.attempt, second.model_digest) == (2, 1, first.model_digest)


def test_a_list_that_t_have_signed_is_unmasked_even_a_day_later(network):
    world = network(4, max_rounds=1)
    world.play(until=training)
    for name in ("site-1", "site-2"):
        world.silos[name].stops_before = {"unmask"}
    world.play()
    assert world.round.stage == Stage.UNMASK
    world.later(3600)
    assert world.round.stage == Stage.UNMASK
    for name in ("site-1", "site-2"):
        world.silos[name].stops_before, world.silos[name].dead = set(), False
    world.play()
    assert world.state == "completed"


def test_the_same_message_twice_changes_nothing_and_another_in_its_place_is_refused(network):
    world = network(4)
    world.play(until=training)
    silo = world.silos["site-1"]
    silo.act()
    item = world.round
    first = RoundMessage.objects.get(round=item, kind="keys", silo=silo.row)
    assert send(silo, item.key, "keys", first.envelope) == {"stage": "keys", "new": False}
    machine = type(silo.rounds[item.key])(
        silo.rounds[item.key].parameters, silo=silo.name, key=silo.key, journal=type(silo.journal)()
    )
    with pytest.raises(Refused, match="MESSAGE_DIFFERS"):
        send(silo, item.key, "keys", machine.keys().as_dict())
    assert RoundMessage.objects.filter(round=item, kind="keys").count() == 1


def test_a_message_out_of_stage_is_refused(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    silo = world.silos["site-1"]
    keys = RoundMessage.objects.get(round=world.round, kind="keys", silo=silo.row).envelope
    RoundMessage.objects.filter(round=world.round, kind="keys", silo=silo.row).delete()
    with pytest.raises(Refused, match="OUT_OF_STAGE"):
        send(silo, world.round.key, "keys", keys)


def test_a_silo_cannot_send_anothers_message_or_a_message_of_another_round(network):
    world = network(4)
    world.play(until=at(Stage.BUNDLES))
    one, two = world.silos["site-1"], world.silos["site-2"]
    item = world.round
    one.on_roster({"round": item.key, "keys": one.assignments()[-1]["keys"]})
    mine = RoundMessage.objects.get(round=item, kind="bundles", silo=one.row).envelope
    with pytest.raises(Refused, match="BAD_MESSAGE"):
        send(two, item.key, "bundles", mine)
    old = RoundMessage.objects.get(round=world.rounds[0], kind="state", silo=two.row).envelope
    with pytest.raises(Refused, match=r"BAD_MESSAGE|OUT_OF_STAGE"):
        send(two, item.key, "state", old)


def test_a_flipped_bit_in_a_message_is_refused_and_nothing_is_stored(network):
    world = network(4)
    world.play(until=at(Stage.BUNDLES))
    silo, item = world.silos["site-1"], world.round
    envelope = (
        silo.rounds[item.key]
        .accept_roster([world.silos[name].rounds[item.key].keys() for name in item.roster])
        .as_dict()
    )
    bad = copy.deepcopy(envelope)
    signature = bad["signatures"][0]["sig"]
    bad["signatures"][0]["sig"] = ("B" if signature[0] == "A" else "A") + signature[1:]
    with pytest.raises(Refused, match="BAD_MESSAGE"):
        send(silo, item.key, "bundles", bad)
    assert not RoundMessage.objects.filter(round=item, kind="bundles").exists()


def test_a_hospital_outside_the_study_sees_no_round(network):
    from organisations.models import Organisation, Silo

    world = network(4)
    home = Organisation.objects.create(slug="other", name="Other", country="DE")
    stranger = Silo.objects.create(name="stranger", organisation=home, state="active", public_key=b"1" * 32, keyid="1")
    from federation.api import answer_for

    paths = [f"rounds/{world.round.key}/update", f"rounds/{world.round.key}/sum", f"models/{'0' * 64}"]
    for path in paths:
        with pytest.raises(Refused) as refused:
            answer_for(silo=stranger, method="GET", path=f"/api/v1/{path}", query="", body=b"")
        assert refused.value.status == 404


def test_of_two_that_move_a_round_one_wins(network):
    world = network(4)
    world.play(until=training)
    one, other = Round.objects.get(pk=world.round.pk), Round.objects.get(pk=world.round.pk)
    facts = facts_of(one.manifest_digest)
    now = timezone.now()
    assert round_move(one, to=Stage.BUNDLES, facts=facts, wake=(), now=now, roster=["site-1"])
    assert not round_move(other, to=Stage.FAILED, facts=facts, wake=(), now=now)
    assert Round.objects.get(pk=one.pk).stage == Stage.BUNDLES


def test_a_first_model_that_is_not_the_manifests_is_refused_by_the_portal(network):
    world = network(4)
    world.seed = 8  # the silos use another seed than the manifest names
    world.play()
    failed = [item for item in world.rounds if item.stage == Stage.FAILED]
    assert {item.failure["code"] for item in failed} == {"INITIAL_MODEL_DIFFERS"}
    assert world.state == "paused"


def test_the_first_model_needs_t_equal_signatures(network):
    world = network(4)
    world.silos["site-1"].first_state = lambda: initial_state(world.table, 99)
    world.play(until=training)
    assert world.rounds[0].stage == Stage.FINISHED
    assert world.rounds[0].members == ["site-2", "site-3", "site-4"]


def test_a_paused_study_finishes_its_round_and_announces_no_other(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    services.study_pause(actor=SYSTEM, study=Study.objects.get(pk=world.study.pk), reason="A question came up.")
    world.play()
    assert (world.round.number, world.round.stage) == (1, Stage.FINISHED)
    assert study_go_on(study=world.study) is None
    services.study_resume(actor=SYSTEM, study=Study.objects.get(pk=world.study.pk))
    assert world.round.number == 2


def test_a_withdrawn_study_ends_its_open_round(network):
    world = network(4)
    world.play(until=at(Stage.UPDATE))
    services.study_withdraw(actor=SYSTEM, study=Study.objects.get(pk=world.study.pk), reason="Not needed any more.")
    assert world.round.stage == Stage.FAILED
    assert world.round.failure["code"] == "STUDY_ENDED"
    assert len(world.rounds) == 2


def test_a_study_whose_approvals_are_revoked_is_paused(network):
    from governance.models import Approval

    world = network(4)
    world.play(until=at(Stage.UPDATE))
    Approval.objects.filter(silo__name__in=["site-1", "site-2"]).update(decision="revoke")
    world.play()
    assert world.state == "paused"
    assert Study.objects.get(pk=world.study.pk).paused_reason["code"] == "APPROVALS_MISSING"


def test_going_on_twice_announces_one_round(network):
    world = network(4)
    assert study_go_on(study=world.study) is None
    assert study_resumed(study=world.study) is None
    assert len(world.rounds) == 1


def test_a_silo_that_enrolled_with_another_key_is_not_asked(network):
    from organisations.models import Silo

    world = network(4)
    world.play(until=at(Stage.UPDATE))
    Silo.objects.filter(name="site-4").update(keyid="0" * 64)
    world.play(until=lambda w: w.round.number == 2)
    assert world.round.announced == ["site-1", "site-2", "site-3"]
