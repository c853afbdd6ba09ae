"""After the list: who is out of bounds is left out, and no sum is believed that the members' check words don't hold."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from evidence.models import Entry
from federation.models import ORDER, Purpose, Round, RoundMessage, Stage
from federation.selectors.assignments import assignments_for
from federation.services import facts, work
from federation.services.messages import LATE
from portal.problems import Refused
from protocol.canonical import decode
from protocol.messages import KINDS, Check, Nonce, SecondList, Sketch, Unmask, seal
from protocol.secure_aggregation import SiloRound
from protocol.secure_aggregation.sparse.messages import SPARSE
from protocol.signing import Envelope, sign_envelope

OTHERS = ["site-1", "site-3", "site-4"]
TAKING = [stage for stage in ORDER if stage not in (Stage.SUM, Stage.FINISHED)]
CHECKED = ("sketch", "second", "unmask", "nonce", "check")


def at(stage):
    return lambda world: world.round.purpose == Purpose.TRAIN and world.round.stage == stage


def training(world):
    return world.round.purpose == Purpose.TRAIN


def send(silo, key, kind, envelope):
    return json.loads(silo.ask("POST", f"rounds/{key}/{kind}", body=json.dumps(envelope.as_dict()).encode()).body)


def kinds(silo):
    return [task["kind"] for task in assignments_for(silo.row)[1]]


def stored(item, kind, **where):
    return RoundMessage.objects.filter(round=item, kind=kind, **where).order_by("silo__name")


def lengthen(silo, factor):
    """The silo's update is so many times as long as it would be."""
    honest = silo.update
    silo.update = lambda key, d: (honest(key, d)[0] * np.uint32(factor), honest(key, d)[1])


def lie_about(silo, method):
    """In one call of its state machine the silo speaks of another update than the one it sent."""
    before = silo.on_ready

    def on_ready(task):
        before(task)
        machine = silo.rounds[task["round"]]
        if not machine.parameters.words:
            return
        honest, own = getattr(machine, method), machine._own_body

        def lying(envelopes):
            machine._own_body = lambda: iter([np.ones(machine.parameters.words, dtype="<i4")])
            try:
                return honest(envelopes)
            finally:
                machine._own_body = own

        setattr(machine, method, lying)

    silo.on_ready = on_ready


def seen_stages(world, purpose):
    """Play to the end; the stages of the first round of this purpose, in order."""
    seen = []

    def look(world):
        item = next((item for item in world.rounds if item.purpose == purpose), None)
        if item and (not seen or seen[-1] != item.stage):
            seen.append(item.stage)
        return False

    world.play(until=look)
    return seen


# --- the right order -------------------------------------------------------------------------------------------------


def test_a_round_with_both_checks_goes_through_every_stage_and_ends_verified(network):
    world = network(4, max_rounds=1, sketch=True)
    assert seen_stages(world, Purpose.TRAIN) == [
        *("keys", "bundles", "ready", "update", "list", "sketch", "second", "unmask", "nonce", "check", "state"),
        "finished",
    ]
    item = world.rounds[1]
    assert item.verified is True
    assert item.first_list == item.members == sorted(world.silos)
    assert {row["code"] for row in item.sketches["silos"].values()} == {None}
    verified = [silo.verified[item.key] for silo in world.silos.values() if item.key in silo.verified]
    assert verified == [True] * 3, "t of four sign the next state, each after it has verified the sum itself"
    assert world.state == "completed"


def test_before_a_sketch_check_the_list_waits_for_all(network):
    world = network(4, sketch=True)
    world.play(until=at(Stage.SKETCH))
    assert stored(world.round, "list", late=False).count() == 4
    assert {len(silo.assignments()[-1]["lists"]) for silo in world.silos.values()} == {4}


def test_a_round_without_sketches_goes_from_the_list_to_the_unmasking(network):
    stages = seen_stages(network(4, max_rounds=1), Purpose.TRAIN)
    assert stages[4:7] == ["list", "unmask", "nonce"]


def test_a_round_that_only_evaluates_ends_with_its_check_words(network):
    world = network(4, max_rounds=1, sketch=True)
    assert seen_stages(world, Purpose.EVALUATE) == [
        *("keys", "bundles", "ready", "update", "list", "unmask", "nonce", "check"),
        "finished",
    ]
    assert world.rounds[-1].verified is True


def test_stages_have_the_names_and_the_order_of_the_protocols_messages():
    for protocol in (KINDS, SPARSE):
        named = [kind for kind in protocol if kind not in ("refusal", "metrics", "heartbeat")]
        assert [stage for stage in TAKING if stage in named] == named
    assert {*TAKING} <= {*KINDS, *SPARSE}


def test_no_message_is_taken_before_its_stage(network):
    world = network(4, sketch=True)
    world.play(until=training)
    tried = 0
    for stage in (stage for stage in TAKING if stage != Stage.ROW):
        world.play(until=at(stage))
        assert world.round.stage == stage
        silo, item = world.silos["site-1"], world.round
        message = silo.rounds[item.key].keys()
        for kind in TAKING[TAKING.index(stage) + 1 :]:
            with pytest.raises(Refused, match="OUT_OF_STAGE"):
                send(silo, item.key, kind, message)
            tried += 1
    few = len(TAKING) - 1  # `row` is never waited for among few; it is tried once, at the start
    assert tried == few * (few - 1) // 2 + 1


def test_no_message_but_a_late_one_is_taken_after_its_stage(network):
    world = network(4, sketch=True)
    world.play(until=at(Stage.STATE))
    silo, item = world.silos["site-1"], world.round
    RoundMessage.objects.filter(round=item, silo=silo.row).delete()
    for kind in ("keys", "bundles", "ready", "update"):
        with pytest.raises(Refused, match="OUT_OF_STAGE"):
            send(silo, item.key, kind, silo.rounds[item.key].keys())
    for kind in LATE:
        with pytest.raises(Refused, match="BAD_MESSAGE"):
            send(silo, item.key, kind, silo.rounds[item.key].keys())


def test_a_sketch_or_a_second_list_is_refused_where_the_plan_has_no_sketch_check(network):
    world = network(4)
    world.play(until=at(Stage.UNMASK))
    silo, item, empty = world.silos["site-1"], world.round, "sha256:" + "0" * 64
    roster = decode(Envelope.from_dict(stored(item, "list").first().envelope).payload)["roster"]
    common = {"ctx": facts.parameters_of(item).ctx.hex(), "silo": silo.name, "roster": roster, "first_list": empty}
    for message in (
        Sketch(**common, nonces=empty, sums=bytes(2048)),
        SecondList(**common, members=tuple(item.members), sketches=empty),
    ):
        with pytest.raises(Refused, match="NO_SKETCH"):
            send(silo, item.key, message.STAGE, seal(message, silo.key))


# --- twice, another, another's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*CHECKED, "state"])
def test_a_message_twice_changes_nothing_and_another_in_its_place_is_refused(network, kind):
    world = network(4, sketch=True)
    world.play(until=lambda w: training(w) and stored(w.round, kind).exists())
    item, letter = world.round, stored(world.round, kind).first()
    silo = world.silos[letter.silo.name]
    envelope = Envelope.from_dict(letter.envelope)
    assert send(silo, item.key, kind, envelope) == {"stage": item.stage, "new": False}
    content = decode(envelope.payload) | {"roster": "sha256:" + "0" * 64}
    other = sign_envelope(envelope.payload_type, json.dumps(content).encode(), silo.key)
    with pytest.raises(Refused, match="MESSAGE_DIFFERS"):
        send(silo, item.key, kind, other)
    assert stored(item, kind).count() == 1


@pytest.mark.parametrize("kind", [*CHECKED, "state"])
def test_a_message_of_another_silo_is_refused(network, kind):
    world = network(4, sketch=True)
    world.play(until=lambda w: training(w) and stored(w.round, kind).exists())
    item, letter = world.round, stored(world.round, kind).first()
    thief = next(silo for name, silo in world.silos.items() if name != letter.silo.name)
    with pytest.raises(Refused, match="BAD_MESSAGE"):
        send(thief, item.key, kind, Envelope.from_dict(letter.envelope))
    assert stored(item, kind).count() == 1


def test_a_sketch_under_another_seed_and_a_nonce_that_was_not_committed_to_are_refused(network):
    world = network(4, sketch=True)
    silo = world.silos["site-1"]
    world.play(until=at(Stage.SKETCH))
    item = world.round
    common = {"ctx": facts.parameters_of(item).ctx.hex(), "silo": silo.name}
    roster = decode(Envelope.from_dict(stored(item, "list").first().envelope).payload)["roster"]
    wrong = Sketch(
        **common, roster=roster, first_list="sha256:" + "1" * 64, nonces="sha256:" + "1" * 64, sums=bytes(2048)
    )
    with pytest.raises(Refused, match="OTHER_SET"):
        send(silo, item.key, "sketch", seal(wrong, silo.key))
    world.play(until=at(Stage.NONCE))
    made_up = Nonce(**common, roster=roster, sum=world.round.sum_digest, nonce=bytes(32))
    with pytest.raises(Refused, match="BAD_NONCE"):
        send(silo, item.key, "nonce", seal(made_up, silo.key))
    other = Nonce(**common, roster=roster, sum="sha256:" + "2" * 64, nonce=bytes(32))
    with pytest.raises(Refused, match="OTHER_SUM"):
        send(silo, item.key, "nonce", seal(other, silo.key))


def test_a_check_word_that_no_update_has_is_refused_and_its_sender_may_send_the_true_one(network):
    world = network(4, max_rounds=1)
    silo = world.silos["site-1"]
    world.play(until=at(Stage.CHECK))
    item = world.round
    true = silo.rounds[item.key].send_check(map(Envelope.from_dict, silo.assignments()[-1]["nonces"]))
    for word in (2**61 - 1, 2**64 - 1):
        false = replace(Check.parse(true.payload), word=word.to_bytes(8, "big"))
        with pytest.raises(Refused, match="must be below"):
            send(silo, item.key, "check", seal(false, silo.key))
    assert not stored(item, "check").exists()
    world.play()
    assert world.rounds[1].verified is True


# --- out of bounds ---------------------------------------------------------------------------------------------------


def test_a_hospital_out_of_bounds_is_left_out_before_the_unmasking_and_the_log_says_so(network):
    world = network(4, max_rounds=1, sketch=True, weights={"site-3": 2})
    liar = world.silos["site-2"]
    lengthen(liar, 100)
    world.play(until=at(Stage.UNMASK))
    item = world.round
    assert (item.first_list, item.members) == (sorted(world.silos), OTHERS)
    assert item.total_weight == 4
    assert kinds(liar) == []
    world.play(until=at(Stage.STATE))
    assert np.array_equal(world.stored_sum(item), world.plain_sum(item.key, OTHERS))
    world.play()
    item = world.rounds[1]
    assert (item.stage, item.verified) == (Stage.FINISHED, True)
    row = item.sketches["silos"]["site-2"]
    assert row["code"] == "NORM_OVER_BOUND"
    true = float(np.linalg.norm(liar.words[item.key].view("<i4").astype(float))) / 2**16
    assert row["norm"] / 1e6 == pytest.approx(true, rel=0.4)
    assert [(fault["silo"], fault["code"]) for fault in item.faults] == [("site-2", "NORM_OVER_BOUND")]
    assert "longer than the study allows" in item.faults[0]["sentence"]
    end = decode(bytes(Entry.objects.get(type="round.finished", subject_id=item.key).record))
    assert end["data"]["left_out"] == [{"silo": "site-2", "code": "NORM_OVER_BOUND", "norm": row["norm"]}]
    assert end["data"]["verified"] is True
    assert end["refs"]["sketches"] == item.sketches["digest"]
    assert world.state == "completed", "it is asked again in the next round"


def test_nobody_reveals_the_mask_of_a_hospital_that_was_left_out(network):
    world = network(4, sketch=True)
    lengthen(world.silos["site-2"], 100)
    world.play(until=at(Stage.NONCE))
    letters = stored(world.round, "unmask")
    assert letters
    for letter in letters:
        message = Unmask.parse(Envelope.from_dict(letter.envelope).payload)
        assert sorted(message.self_shares) == OTHERS
        assert sorted(message.list_shares) == ["site-2"]


def test_too_few_within_bounds_fail_the_round_with_each_reason_and_the_next_round_follows(network):
    world = network(5, sketch=True)
    for name in ("site-2", "site-3"):
        lengthen(world.silos[name], 100)
    world.play(until=lambda w: w.round.number == 2)
    failed, following = world.rounds[1:3]
    assert failed.failure["code"] == "TOO_FEW_IN_BOUNDS"
    for name in ("site-2", "site-3"):
        assert f"Hospital {name} ({name}): Its update is longer" in failed.failure["sentence"]
    assert {row["code"] for row in failed.sketches["silos"].values()} == {None, "NORM_OVER_BOUND"}
    assert (following.number, following.attempt, following.model_digest) == (2, 1, failed.model_digest)
    end = decode(bytes(Entry.objects.get(type="round.failed", subject_id=failed.key).record))
    assert [row["silo"] for row in end["data"]["left_out"]] == ["site-2", "site-3"]


# --- lies ------------------------------------------------------------------------------------------------------------


def test_a_sum_that_is_not_what_the_sketches_show_is_never_published(network):
    world = network(4, sketch=True, clip_norm=0.01)
    lie_about(world.silos["site-2"], "show_sketch")
    for silo in world.silos.values():
        silo.update = lambda key, d, honest=silo.update: (np.ones(d, dtype="<u4") * np.uint32(2), honest(key, d)[1])
    world.play(until=lambda w: w.rounds[-1].number == 2 or w.round.purpose == Purpose.EVALUATE)
    failed = world.rounds[1]
    assert (failed.failure["code"], failed.failure["stage"]) == ("SKETCH_DIFFERS", Stage.SUM)
    assert failed.sum is None
    assert failed.verified is None


def test_a_sum_that_is_not_what_the_check_words_say_is_signed_by_nobody(network):
    world = network(4)
    lie_about(world.silos["site-2"], "send_check")
    world.play(until=lambda w: w.rounds[-1].number == 2)
    failed, following = world.rounds[1:3]
    assert (failed.failure["code"], failed.failure["stage"]) == ("SUM_NOT_TRUE", Stage.CHECK)
    assert failed.verified is None
    assert not stored(failed, "state").exists()
    assert following.model_digest == failed.model_digest


# --- who is lost, late, or refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check_words", ["required", "optional"])
@pytest.mark.parametrize("dies_before", ["list", "sketch"])
def test_a_silo_lost_before_its_sketch_falls_out_and_the_round_goes_on(network, dies_before, check_words):
    world = network(4, max_rounds=1, sketch=True, check_words=check_words)
    world.play(until=training)
    world.silos["site-2"].stops_before = {dies_before}
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FINISHED)
    item = world.rounds[1]
    assert (item.stage, item.members, item.verified) == (Stage.FINISHED, OTHERS, True)
    assert item.sketches["missing"] == ["site-2"]
    assert [(fault["silo"], fault["code"]) for fault in item.faults] == [("site-2", "SKETCH_MISSING")]


@pytest.mark.parametrize("dies_before", ["second", "unmask", "nonce", "check"])
def test_a_lost_silos_check_word_is_waited_for_where_all_are_required(network, dies_before):
    world = network(4, max_rounds=1, sketch=True)
    world.play(until=training)
    lost = world.silos["site-2"]
    lost.stops_before = {dies_before}
    world.go_on()
    stage = Stage.CHECK if dies_before == "check" else Stage.NONCE
    assert world.round.stage == stage
    assert world.later(3600) == []
    lost.stops_before, lost.dead = set(), False
    world.play()
    assert world.rounds[1].verified is True
    assert world.rounds[1].members == sorted(world.silos)
    assert world.state == "completed"


@pytest.mark.parametrize("dies_before", ["nonce", "check"])
def test_a_check_word_that_never_comes_fails_the_round_at_the_deadline_where_all_are_required(network, dies_before):
    world = network(4, sketch=True, unmask_seconds=100)
    world.play(until=training)
    world.silos["site-2"].stops_before = {dies_before}
    world.go_on()
    world.later(101)
    failed, following = world.rounds[1:3]
    assert failed.failure["code"] == "CHECK_MISSING"
    assert "Hospital site-2 (site-2) did not answer in time." in failed.failure["sentence"]
    assert failed.verified is None
    assert (following.number, following.model_digest) == (2, failed.model_digest)


@pytest.mark.parametrize("purpose", [Purpose.TRAIN, Purpose.EVALUATE])
@pytest.mark.parametrize("dies_before", ["unmask", "nonce", "check"])
def test_a_lost_silo_leaves_the_sum_unverified_where_the_plan_allows_it(network, dies_before, purpose):
    world = network(4, max_rounds=1, check_words="optional")
    world.play(until=lambda w: w.round.purpose == purpose)
    item = world.round
    world.silos["site-2"].stops_before = {dies_before}
    world.go_on(until=lambda w: Round.objects.get(pk=item.pk).stage == Stage.FINISHED)
    item = Round.objects.get(pk=item.pk)
    assert (item.stage, item.verified, item.members) == (Stage.FINISHED, False, sorted(world.silos))
    assert [(fault["silo"], fault["code"]) for fault in item.faults] == [("site-2", "CHECK_MISSING")]
    end = decode(bytes(Entry.objects.get(type="round.finished", subject_id=item.key).record))
    assert end["data"]["verified"] is False
    if purpose == Purpose.TRAIN:
        assert [world.silos[name].verified[item.key] for name in OTHERS] == [False] * 3


@pytest.mark.parametrize("stage", [Stage.NONCE, Stage.CHECK])
def test_a_silo_that_refuses_its_check_word_fails_the_round_at_once_where_all_are_required(network, stage):
    world = network(4)
    world.play(until=at(stage))
    key = world.round.key
    world.silos["site-2"].refuse(key, "The nonces are not mine.")
    failed = world.rounds[1]
    assert failed.failure["code"] == "CHECK_MISSING"
    assert "Hospital site-2 (site-2) refused: The nonces are not mine." in failed.failure["sentence"]


@pytest.mark.parametrize("stage", [Stage.NONCE, Stage.CHECK])
def test_a_silo_that_refuses_its_check_word_leaves_the_sum_unverified_where_the_plan_allows_it(network, stage):
    world = network(4, max_rounds=1, check_words="optional")
    world.play(until=at(stage))
    world.silos["site-2"].refuse(world.round.key, "Not this one.")
    world.play()
    assert (world.rounds[1].stage, world.rounds[1].verified) == (Stage.FINISHED, False)


def test_a_silo_that_has_refused_is_asked_for_nothing_more_and_the_state_needs_the_others(network):
    world = network(4, max_rounds=1)
    world.play(until=at(Stage.STATE))
    refuser = world.silos["site-2"]
    refuser.refuse(world.round.key, "The sum is not true.")
    assert kinds(refuser) == []
    world.play()
    assert world.rounds[1].stage == Stage.FINISHED
    assert sorted(letter.silo.name for letter in stored(world.rounds[1], "state")) == OTHERS


def test_three_that_refuse_the_sum_fail_the_round(network):
    world = network(4)
    world.play(until=at(Stage.STATE))
    key = world.round.key
    for name in ("site-2", "site-3"):
        world.silos[name].refuse(key, "The sum is not true.")
    failed = world.rounds[1]
    assert (failed.stage, failed.failure["code"]) == (Stage.FAILED, "STATE_NOT_SIGNED")
    assert "refused: The sum is not true." in failed.failure["sentence"]


def test_a_silo_that_sent_no_check_word_is_not_waited_for_in_the_state(network):
    world = network(4, check_words="optional")
    world.play(until=training)
    world.silos["site-2"].stops_before = {"check"}
    world.go_on(until=at(Stage.STATE))
    item = world.round
    world.silos["site-3"].refuse(item.key, "The model is not mine.")
    failed = Round.objects.get(pk=item.pk)
    assert failed.failure["code"] == "STATE_NOT_SIGNED", "two are left, three are needed, and site-2 can sign nothing"


def test_a_silo_that_is_silent_beyond_the_deadline_of_the_sketches_falls_out(network):
    world = network(4, sketch=True, round_seconds=30)
    world.play(until=at(Stage.SKETCH))
    for name in OTHERS:
        world.silos[name].act()
    assert world.later(20) == [], "it lives and may still show its sketch"
    world.later(31)
    assert (world.round.stage, world.round.members) == (Stage.SECOND, OTHERS)


def test_a_list_that_came_late_is_not_relayed_and_its_silo_still_shows_a_sketch(network):
    world = network(4, max_rounds=1, sketch=True)
    late = world.silos["site-2"]
    world.play(until=at(Stage.LIST))
    key = world.round.key
    message = late.rounds[key].sign_list([Envelope.from_dict(each) for each in late.assignments()[-1]["updates"]])
    late.dead = True
    world.go_on(until=at(Stage.SKETCH))
    late.dead = False
    assert send(late, key, "list", message)["new"]
    assert stored(world.round, "list", late=True).get().silo.name == "site-2"
    task = late.assignments()[-1]
    assert (task["kind"], len(task["lists"])) == ("sketch", 3)
    world.play()
    assert world.rounds[1].members == sorted(world.silos)
    assert world.rounds[1].verified is True


def test_a_late_sketch_is_kept_and_never_relayed(network):
    world = network(4, max_rounds=1, sketch=True)
    late = world.silos["site-2"]
    world.play(until=at(Stage.SKETCH))
    key = world.round.key
    message = late.rounds[key].show_sketch([Envelope.from_dict(each) for each in late.assignments()[-1]["lists"]])
    late.dead = True
    world.go_on(until=at(Stage.SECOND))
    assert send(late, key, "sketch", message)["new"]
    assert kinds(late) == []
    task = world.silos["site-4"].assignments()[-1]
    assert (task["kind"], len(task["sketches"])) == ("second", 3)
    late.dead = False
    world.play()
    assert (world.rounds[1].members, world.rounds[1].verified) == (OTHERS, True)


@pytest.mark.parametrize("kind", ["nonce", "check"])
def test_a_late_nonce_or_check_word_is_kept_and_changes_nothing(network, kind):
    world = network(4, max_rounds=1, check_words="optional")
    late = world.silos["site-2"]
    world.play(until=at(Stage(kind)))
    held = []
    late.post, before = lambda key, kind, envelope: held.append((key, kind, envelope)), late.post
    late.act()
    late.post, late.dead = before, True
    world.go_on(until=at(Stage.CHECK if kind == "nonce" else Stage.STATE))
    (key, sent, message), *_ = held
    assert sent == kind
    assert send(late, key, kind, message)["new"]
    assert stored(world.round, kind, late=True).count() == 1
    assert kinds(late) == []
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FINISHED)
    assert world.rounds[1].verified is False


# --- restarts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sketch", [True, False])
def test_a_round_goes_on_from_the_database_alone_after_every_single_message(network, sketch):
    world = network(4, max_rounds=1, sketch=sketch)
    moves = itertools.count()

    def restart(world):
        facts._coordinators.clear()
        facts.facts_of.cache_clear()
        work._removals.clear()
        for silo in world.silos.values():
            for key, machine in silo.rounds.items():
                silo.rounds[key] = SiloRound(machine.parameters, silo=silo.name, key=silo.key, journal=silo.journal)
        next(moves)
        return False

    world.play(until=restart)
    assert world.state == "completed"
    assert [item.verified for item in world.rounds] == [None, True, True]
    assert next(moves) > 40
