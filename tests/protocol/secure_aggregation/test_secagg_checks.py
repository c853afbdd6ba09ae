"""After the list: sketches leave out who is out of bounds, check words hold the published sum to what was sent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocol.messages import KINDS, Check, ListSignature, Nonce, SecondList, Sketch, seal
from protocol.secure_aggregation import StudyLedger, sketch
from protocol.secure_aggregation.check_word import PRIME
from protocol.signing import Envelope, keyid

SET_UP = ("keys", "bundles", "ready", "update", "list")
CHECKED = ("sketch", "second")
LAST = ("nonce", "check", "verify")
CLIP = 2000.0
OTHER = "sha256:" + "c" * 64


def forged(this, kind: str, name: str, **change: object) -> Envelope:
    """The message that `name` sent, with other content, signed with its own key."""
    message = KINDS[kind].parse(this.mail[kind][name].payload)
    return seal(replace(message, **change), this.keys[message.silo])


def lengthen(this, name: str, factor: int) -> None:
    body, tail = this.updates[name]
    this.updates[name] = (body * np.uint32(factor), tail)


def without(this, *names: str) -> list[str]:
    return [name for name in this.silos if name not in names]


# --- the way through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word_bits", [32, 24, 16, 12])
def test_round_with_both_checks_gives_the_plain_sum(world, word_bits):
    this = world(4, sketch=CLIP, word_bits=word_bits).play(*SET_UP, *CHECKED, "unmask").publish().play(*LAST)
    this.check_all()
    this.assert_sum(this.silos)
    assert this.verified == dict.fromkeys(this.silos, True)


@pytest.mark.parametrize(
    ("factor", "reason"), [(1000, sketch.OVER_BOUND), (10, sketch.ABOVE_OTHERS), (0, sketch.BELOW_OTHERS)]
)
def test_update_out_of_bounds_is_left_out_before_the_unmasking(world, factor, reason):
    this = world(4, sketch=10 * CLIP)
    lengthen(this, "site-02", factor)
    others = without(this, "site-02")
    this.play(*SET_UP, "sketch").play("second", "unmask", who=others).publish().play(*LAST, who=others)
    _, verdict = this.coordinator.judge(*(this.roster, *map(this.relayed, ("ready", "list", "sketch"))))
    assert verdict.excluded == {"site-02": reason}
    this.assert_sum(others)
    assert this.verified == dict.fromkeys(others, True)


def test_silo_that_the_rule_leaves_out_signs_no_list_without_itself(world, refused):
    this = world(4, sketch=CLIP)
    lengthen(this, "site-02", 1000)
    this.play(*SET_UP, "sketch")
    refused("EXCLUDED", this.step_second, "site-02")


def test_silo_that_was_left_out_helps_to_unmask_and_checks_nothing(world, refused):
    this = world(4, sketch=CLIP)
    lengthen(this, "site-02", 1000)
    this.play(*SET_UP, "sketch").play("second", who=without(this, "site-02"))
    this.play("unmask", who=["site-01", "site-02", "site-03"]).publish()
    refused("LEFT_OUT", this.step_nonce, "site-02")


def test_round_stops_where_the_rule_leaves_too_few(world, refused):
    this = world(4, sketch=CLIP)
    lengthen(this, "site-02", 1000)
    lengthen(this, "site-03", 1000)
    this.play(*SET_UP, "sketch")
    for name in this.silos:
        refused("SET_TOO_SMALL", this.step_second, name)


def test_silo_that_shows_no_sketch_has_fallen_out(world):
    this = world(4, sketch=CLIP).play(*SET_UP).play("sketch", who=("site-01", "site-02", "site-03"))
    rest = without(this, "site-04")
    this.play("second", "unmask", who=rest).publish().play(*LAST, who=rest)
    this.assert_sum(rest)


@pytest.mark.parametrize("clip_norm", [None, CLIP])
def test_member_that_was_away_accepts_the_list_on_t_signatures(world, clip_norm):
    this = world(4, sketch=clip_norm, small=True).play(*SET_UP[:4])
    others = list(this.silos[1:])
    this.play("list", "sketch", "second", "unmask", who=others) if clip_norm else this.play(
        "list", "unmask", who=others
    )
    # With the sketch check it showed no sketch, so it is not in the sum; without, it is.
    checkers = others if clip_norm else list(this.silos)
    this.publish().play(*LAST, who=checkers)
    assert this.verified == dict.fromkeys(checkers, True)


def test_member_that_was_away_while_others_signed_the_second_list_checks_the_sum(world):
    this = world(4, sketch=CLIP).play(*SET_UP, "sketch")
    others = list(this.silos[1:])
    this.play("second", "unmask", who=others).publish().play(*LAST)
    assert this.verified == dict.fromkeys(this.silos, True)


@pytest.mark.parametrize("clip_norm", [None, CLIP])
def test_silo_killed_at_any_write_goes_on_with_the_same_bytes_through_the_checks(world, clip_norm):
    steps = (*SET_UP, *(CHECKED if clip_norm else ()), "unmask")
    count = world(4, sketch=clip_norm, small=True).play(*steps).publish().play(*LAST).journals["site-02"].puts
    for at in range(1, count + 1):
        for when in ("before", "after"):
            this = world(4, sketch=clip_norm, small=True)
            journal = this.journals["site-02"]
            journal.kill_at = (at, when)
            for step in (*steps, "publish", *LAST):
                if step == "publish":
                    this.publish()
                    continue
                for name in this.silos:
                    try:
                        this.play(step, who=[name])
                    except this.Killed:
                        journal.kill_at = None
                        this.machines[name] = this.rebuild(name)
                        this.play(step, who=[name])
            assert journal.kill_at is None
            this.check_all()
            assert this.verified == dict.fromkeys(this.silos, True)


def test_each_step_again_and_after_a_restart_gives_the_same_bytes(world):
    this = world(4, sketch=CLIP).play(*SET_UP, *CHECKED, "unmask").publish().play(*LAST)
    before = {kind: dict(mails) for kind, mails in this.mail.items()}
    this.machines = {name: this.rebuild(name) for name in this.silos}
    this.play(*SET_UP, *CHECKED, "unmask", *LAST)
    assert this.mail == before


# --- sketches --------------------------------------------------------------------------------------------------------


def test_no_sketch_is_shown_where_the_manifest_asks_for_none(world, refused):
    this = world(4).play(*SET_UP)
    refused("NO_SKETCH", this.step_sketch, "site-01")
    refused("NO_SKETCH", this.coordinator.check_sketch, this.roster, [], [], this.mail["list"]["site-01"])


def test_sketch_comes_after_t_signatures_on_the_list_that_this_silo_signed(world, refused):
    this = world(5, sketch=CLIP).play(*SET_UP[:4])
    refused("OUT_OF_STAGE", this.step_sketch, "site-01")
    this.play("list")
    machine = this.machines["site-01"]
    refused("TOO_FEW_SIGNATURES", machine.show_sketch, this.relayed("list", this.silos[:3]))
    refused("TWICE", machine.show_sketch, [*this.relayed("list"), this.mail["list"]["site-02"]])
    short = this.silos[:4]
    updates = this.coordinator.list_of(this.roster, this.relayed("ready"), this.relayed("update", short)).updates
    lie = [forged(this, "list", name, members=short, updates=updates) for name in short]
    refused("TWO_LISTS", machine.show_sketch, lie)
    assert "round/st-abc/1/0/sketch" not in this.journals["site-01"].rows


def test_sketch_is_not_shown_twice_under_two_seeds(world, refused):
    """Two sketches of one update would tell twice as much: the nonces are accepted once, also over a restart."""
    this = world(5, sketch=CLIP).play(*SET_UP)
    shown = this.machines["site-01"].show_sketch(this.relayed("list"))
    for machine in (this.machines["site-01"], this.rebuild("site-01")):
        refused("SECOND_SKETCH", machine.show_sketch, this.relayed("list", this.silos[:4]))
        assert machine.show_sketch(this.relayed("list")) == shown


def test_no_sketch_is_shown_after_an_abort(world, refused):
    this = world(4, sketch=CLIP).play(*SET_UP)
    lists, old = this.relayed("list"), this.machines["site-01"]
    this.attempt(attempt=1)
    refused("ROUND_SPENT", this.machines["site-01"].keys)  # the signed list spent the round for all attempts
    this.attempt(round=2, attempt=0)
    this.play("keys")
    refused("OLD_ROUND", old.show_sketch, lists)
    refused("OUT_OF_STAGE", this.machines["site-01"].show_sketch, lists)


def test_sketch_of_another_round_seed_or_silo_is_refused(world, refused):
    this = world(4, sketch=CLIP).play(*SET_UP, "sketch")
    machine, mail = this.machines["site-01"], this.mail["sketch"]
    rest = [mail[name] for name in ("site-01", "site-03", "site-04")]
    for code, change in (
        ("OTHER_SET", {"nonces": OTHER}),
        ("OTHER_SET", {"first_list": OTHER}),
        ("OTHER_ROUND", {"ctx": "0" * 64}),
        ("OTHER_ROSTER", {"roster": OTHER}),
    ):
        bad = forged(this, "sketch", "site-02", **change)
        refused(code, machine.sign_second, [bad, *rest])
        call = (this.coordinator.check_sketch, this.roster, this.relayed("ready"), this.relayed("list"))
        refused(code, *call, bad)
    refused("TWICE", machine.sign_second, [mail["site-03"], *rest])
    refused("SET_TOO_SMALL", machine.sign_second, rest[:2])
    refused("LEFT_OUT", machine.sign_second, [mail[name] for name in ("site-02", "site-03", "site-04")])
    swapped = forged(this, "sketch", "site-01", sums=bytes(2048))
    refused("OTHER_MESSAGE", machine.sign_second, [swapped, mail["site-02"], *rest[1:]])


def test_sketch_of_a_silo_outside_the_list_is_refused(world, refused):
    this = world(5, sketch=CLIP).play(*SET_UP[:4])
    del this.mail["update"]["site-05"]
    others = without(this, "site-05")
    this.play("list", "sketch", who=others)
    message = replace(Sketch.parse(this.mail["sketch"]["site-01"].payload), silo="site-05")
    stranger = seal(message, this.keys["site-05"])
    refused("OUTSIDE_PARENT", this.machines["site-01"].sign_second, [stranger, *this.relayed("sketch")])


# --- the second list -------------------------------------------------------------------------------------------------


def test_second_list_is_signed_once_over_one_set_of_sketches(world, refused):
    this = world(5, sketch=CLIP).play(*SET_UP, "sketch")
    signed = this.machines["site-01"].sign_second(this.relayed("sketch"))
    for machine in (this.machines["site-01"], this.rebuild("site-01")):
        refused("SECOND_LIST", machine.sign_second, this.relayed("sketch", this.silos[:4]))
        assert machine.sign_second(this.relayed("sketch")) == signed


def test_second_list_among_unknown_partners_is_refused(world, refused):
    pinned = frozenset(keyid(world.keys[name].public) for name in ("site-02", "site-03", "site-05"))
    this = world(5, sketch=CLIP, known_partners=pinned, min_known=3)
    lengthen(this, "site-05", 1000)
    for step in (*SET_UP, "sketch"):
        for name in this.silos:
            if name in ("site-01", "site-04"):
                this.play(step, who=[name])
            else:  # they pin fewer, so that the round can go on without them asking
                machine = this.machines[name]
                machine._min_known = 0
                this.play(step, who=[name])
    refused("TOO_FEW_KNOWN", this.step_second, "site-01")


def test_shares_go_out_only_for_t_signatures_on_one_second_list(world, refused):
    this = world(5, sketch=CLIP).play(*SET_UP, *CHECKED)
    machine, lists, seconds = this.machines["site-01"], this.relayed("list"), this.relayed("second")
    refused("TOO_FEW_SIGNATURES", machine.unmask, lists)
    refused("TOO_FEW_SIGNATURES", machine.unmask, lists, seconds[:3])
    refused("TOO_FEW_SIGNATURES", machine.unmask, lists[:3], seconds)
    refused("TWICE", machine.unmask, lists, [*seconds, seconds[1]])
    short = this.silos[:4]
    for code, change in (
        ("TWO_LISTS", {"members": short}),
        ("TWO_LISTS", {"sketches": OTHER}),
        ("OTHER_SET", {"first_list": OTHER}),
        ("SET_TOO_SMALL", {"members": this.silos[:3]}),
        ("OUTSIDE_PARENT", {"members": ("site-01", "site-03", "site-04", "site-05")}),
        ("OUTSIDE_PARENT", {"members": (*this.silos, "site-06")}),
    ):
        refused(code, machine.unmask, lists, [forged(this, "second", "site-02", **change), *seconds[2:]])
    # All others lie together: this silo reveals only for the list that it signed.
    lie = [forged(this, "second", name, members=short, sketches=OTHER) for name in short]
    refused("TWO_LISTS", machine.unmask, lists, lie)
    assert "round/st-abc/1/0/unmask" not in this.journals["site-01"].rows


def test_silo_that_accepted_one_second_list_accepts_no_other(world, refused):
    """It was away while the others signed, and is then shown two second lists, each with t signatures."""
    this = world(5, sketch=CLIP).play(*SET_UP, "sketch")
    others = without(this, "site-05")
    this.play("second", who=others)
    lists, late = this.relayed("list"), this.machines["site-05"]
    late.agree(lists, this.relayed("second"))
    lie = [forged(this, "second", name, members=tuple(others)) for name in others]
    for machine in (late, this.rebuild("site-05")):
        refused("TWO_LISTS", machine.agree, lists, lie)
        refused("TWO_LISTS", machine.unmask, lists, lie)


def test_second_list_where_the_manifest_has_no_sketch_is_refused(world, refused):
    checked = world(4, sketch=CLIP).play(*SET_UP, *CHECKED)
    this = world(4).play(*SET_UP)
    plain = SecondList.parse(checked.mail["second"]["site-02"].payload)
    message = replace(plain, ctx=this.parameters.ctx.hex(), roster=this.roster.digest)
    refused("NO_SKETCH", this.machines["site-01"].unmask, this.relayed("list"), [seal(message, this.keys["site-02"])])


def test_second_list_of_another_model_sum_is_not_unmasked_for_other_members(world, refused):
    """Two sums of one model state over different silos differ by somebody's update: only the same members again."""
    this = world(5, sketch=CLIP).play(*SET_UP, *CHECKED, "unmask")
    this.attempt(round=2, attempt=0)
    lengthen(this, "site-05", 1000)
    this.play(*SET_UP, "sketch")
    refused("OTHER_LIST_UNMASKED", this.step_second, "site-01")


def test_share_is_not_noted_for_members_that_differ_from_those_unmasked_before(world, refused):
    """The last line of defence, in the ledger itself: whoever calls it, a second sum over other silos is not noted."""
    this = world(5, sketch=CLIP).play(*SET_UP, *CHECKED, "unmask")
    ledger = StudyLedger(this.journals["site-01"], "st-abc")
    refused("OTHER_LIST_UNMASKED", ledger.unmask, 2, this.parameters.model, list(this.silos[:4]))


# --- second nonces ---------------------------------------------------------------------------------------------------


def test_second_nonce_opens_for_one_sum_only(world, refused):
    this = world(4, small=True).play(*SET_UP, "unmask").publish()
    machine = this.machines["site-01"]
    refused("OUT_OF_STAGE", this.rebuild("site-01").send_check, [])
    opened = machine.open_nonce(this.published)
    for silo in (machine, this.rebuild("site-01")):
        refused("SECOND_SUM", silo.open_nonce, OTHER)
        assert silo.open_nonce(this.published) == opened


def test_second_nonce_stays_shut_before_the_list_is_agreed(world, refused):
    this = world(4, small=True).play(*SET_UP)
    refused("OUT_OF_STAGE", this.machines["site-01"].open_nonce, OTHER)
    this.play("unmask", who=this.silos[1:]).publish()
    refused("OUT_OF_STAGE", this.machines["site-01"].open_nonce, this.published)


def test_check_word_goes_out_only_under_nonces_that_were_committed_with_its_own_among_them(world, refused):
    this = world(5, small=True, unverified=True).play(*SET_UP, "unmask").publish().play("nonce")
    machine, mail = this.machines["site-01"], this.mail["nonce"]
    rest = [mail[name] for name in ("site-01", "site-03", "site-04")]
    for code, change in (
        ("BAD_NONCE", {"nonce": bytes(32)}),
        ("OTHER_SUM", {"sum": OTHER}),
        ("OTHER_ROUND", {"ctx": "0" * 64}),
    ):
        refused(code, machine.send_check, [forged(this, "nonce", "site-02", **change), *rest])
    refused("TOO_FEW_SIGNATURES", machine.send_check, rest)
    refused("TWICE", machine.send_check, [*rest, mail["site-03"]])
    refused("LEFT_OUT", machine.send_check, this.relayed("nonce", this.silos[1:]))
    sent = machine.send_check(this.relayed("nonce"))
    for silo in (machine, this.rebuild("site-01")):
        refused("SECOND_CHECK", silo.send_check, this.relayed("nonce", this.silos[:4]))
        assert silo.send_check(this.relayed("nonce")) == sent


def test_nonce_and_check_word_of_a_silo_outside_the_sum_are_refused(world, refused):
    this = world(5, small=True).play(*SET_UP[:4])
    del this.mail["update"]["site-05"]
    others = without(this, "site-05")
    this.play("list", "unmask", who=others).publish().play("nonce", "check", who=others)
    strangers = {
        kind: seal(replace(KINDS[kind].parse(this.mail[kind]["site-01"].payload), silo="site-05"), this.keys["site-05"])
        for kind in ("nonce", "check")
    }
    machine = this.machines["site-01"]
    refused("OUTSIDE_PARENT", machine.send_check, [strangers["nonce"], *this.relayed("nonce")])
    refused("OUTSIDE_PARENT", machine.verify_sum, [strangers["check"], *this.relayed("check")], *this.shown)


# --- the sum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, CLIP])
def test_another_sum_than_the_true_one_is_refused_by_every_member(world, refused, clip_norm):
    steps = (*SET_UP, *(CHECKED if clip_norm else ()), "unmask")
    this = world(4, sketch=clip_norm, small=True).play(*steps).publish(spoil=1).play("nonce", "check")
    for name in this.silos:
        refused("SKETCH_DIFFERS" if clip_norm else "SUM_NOT_TRUE", this.step_verify, name)
        refused("OUT_OF_STAGE", this.machines[name].sign_state, OTHER)


def test_another_evaluation_than_the_true_one_is_refused(world, refused):
    this = world(4, small=True).play(*SET_UP, "unmask")
    body, tail = this.sum(this.removal())
    this.show(body, tail + np.uint64(1)).play("nonce", "check")
    refused("SUM_NOT_TRUE", this.step_verify, "site-01")


def test_change_that_leaves_the_sketch_as_it_was_is_found_by_the_check_words(world, refused):
    """Once the seed is known a portal can move words within one sum of the sketch; the check words are drawn later."""
    this = world(4, sketch=CLIP, words=600).play(*SET_UP, *CHECKED, "unmask")
    body, tail = this.sum(this.removal())
    _, nonces = this.coordinator.first(this.roster, this.relayed("ready"), this.relayed("list"))
    segments = this.parameters.sketch.segments
    columns = {}
    for k in range(600):
        unit = np.zeros(600, dtype="<i4")
        unit[k] = 1
        row = sketch.sketch(nonces.seed, segments, [unit]).tobytes()
        if row in columns:
            body[k] += 1
            body[columns[row]] -= 1
            break
        columns[row] = k
    this.show(body, tail).play("nonce", "check")
    refused("SUM_NOT_TRUE", this.step_verify, "site-01")


def test_words_that_vanish_from_the_journal_end_the_check(world, refused):
    this = world(4, small=True).play(*SET_UP, "unmask").publish().play("nonce")
    del this.journals["site-01"].rows["round/st-abc/1/0/chunk/0"]
    refused("ROUND_OVER", this.step_check, "site-01")


def test_sum_is_not_believed_while_a_check_word_is_missing(world, refused):
    this = world(4, small=True).play(*SET_UP, "unmask").publish().play("nonce", "check")
    machine = this.machines["site-01"]
    sentence = refused("CHECK_MISSING", machine.verify_sum, this.relayed("check", this.silos[:3]), *this.shown)
    assert "site-04" in sentence
    refused("OTHER_MESSAGE", machine.verify_sum, this.relayed("check", this.silos[1:]), *this.shown)
    assert machine.verify_sum(this.relayed("check"), *this.shown) is True


def test_sum_stands_unverified_only_where_the_manifest_says_so(world, refused):
    this = world(4, small=True, unverified=True).play(*SET_UP, "unmask").publish().play("nonce", "check")
    machine, others = this.machines["site-01"], this.machines["site-02"]
    assert machine.verify_sum(this.relayed("check", this.silos[:3]), *this.shown) is False
    assert machine.sign_state(OTHER)
    refused("SECOND_CHECK", machine.verify_sum, this.relayed("check"), *this.shown)
    # All words there, they are held against the sum as ever.
    spoilt = ([this.shown[0][0] + 1], this.shown[1])
    refused("SUM_NOT_TRUE", others.verify_sum, this.relayed("check"), *spoilt)


def test_check_word_that_does_not_fit_is_refused(world, refused):
    this = world(4, small=True).play(*SET_UP, "unmask").publish().play("nonce", "check")
    machine = this.machines["site-01"]
    rest = this.relayed("check", ("site-01", "site-03", "site-04"))
    genuine = int.from_bytes(Check.parse(this.mail["check"]["site-02"].payload).word, "big")
    for code, change in (
        ("BAD_CHECK", {"word": PRIME.to_bytes(8, "big")}),
        ("SUM_NOT_TRUE", {"word": ((genuine + 1) % PRIME).to_bytes(8, "big")}),
        ("OTHER_SET", {"nonces": OTHER}),
        ("OTHER_SUM", {"sum": OTHER}),
    ):
        refused(code, machine.verify_sum, [forged(this, "check", "site-02", **change), *rest], *this.shown)
    refused("TWICE", machine.verify_sum, [rest[1], *this.relayed("check")], *this.shown)
    assert machine.verify_sum(this.relayed("check"), *this.shown)


def test_portal_judges_the_sum_as_each_silo_does(world, refused):
    this = world(4, sketch=CLIP).play(*SET_UP, *CHECKED, "unmask").publish().play("nonce", "check")
    check, roster, mail = this.coordinator, this.roster, {kind: this.relayed(kind) for kind in this.mail}
    final = check.final(roster, mail["ready"], mail["list"], mail["second"])
    nonces = check.nonces(roster, mail["ready"], final, this.published, mail["nonce"])
    asked = (roster, final, this.published, nonces)
    body, tail = this.shown
    assert check.check_sum(*asked, mail["check"], body, tail) is True
    refused("CHECK_MISSING", check.check_sum, *asked, mail["check"][:3], body, tail)
    refused("SUM_NOT_TRUE", check.check_sum, *asked, mail["check"], [body[0] + 1], tail)
    held = (roster, mail["ready"], mail["list"], mail["sketch"])
    check.sketch_of_sum(*held, body)
    refused("SKETCH_DIFFERS", check.sketch_of_sum, *held, [body[0] + 1])
    lie = forged(this, "second", "site-02", members=this.silos[:3])
    refused("TWO_LISTS", check.check_second, *held, lie)
    lenient = world(4, small=True, unverified=True).play(*SET_UP, "unmask").publish().play("nonce", "check")
    mail = {kind: lenient.relayed(kind) for kind in lenient.mail}
    final = lenient.coordinator.final(lenient.roster, mail["ready"], mail["list"])
    nonces = lenient.coordinator.nonces(lenient.roster, mail["ready"], final, lenient.published, mail["nonce"])
    asked = (lenient.roster, final, lenient.published, nonces)
    assert lenient.coordinator.check_sum(*asked, mail["check"][:3], *lenient.shown) is False


# --- silos that lie in their sketches --------------------------------------------------------------------------------


def showing(this, name: str, sums: np.ndarray) -> None:
    """The silo shows these sums in place of its own."""
    machine, true = this.machines[name], sketch.sketch
    try:
        sketch.sketch = lambda *_, **__: sums
        this.mail["sketch"][name] = machine.show_sketch(this.relayed("list"))
    finally:
        sketch.sketch = true


def own_sketch(this, name: str) -> np.ndarray:
    _, nonces = this.coordinator.first(this.roster, this.relayed("ready"), this.relayed("list"))
    return sketch.sketch(nonces.seed, this.parameters.sketch.segments, [this.updates[name][0].view("<i4")])


def test_lie_in_a_sketch_throws_the_sum_away(world, refused):
    this = world(4, sketch=CLIP)
    lengthen(this, "site-02", 1000)
    this.play(*SET_UP)
    showing(this, "site-02", own_sketch(this, "site-01"))
    this.play("sketch", who=without(this, "site-02")).play("second", "unmask").publish().play("nonce", "check")
    for name in this.silos:
        refused("SKETCH_DIFFERS", this.step_verify, name)


def test_two_that_lie_together_stay_within_the_bound_of_both(world):
    """One hides a long update behind the other's sketch: it passes, so long as what each shows is in bounds.

    What they bring in together is then at most as long as two updates at the bound: what they could have sent openly.
    """
    this = world(4, sketch=CLIP)
    lengthen(this, "site-01", 8)  # out of bounds alone
    this.play(*SET_UP)
    first, second = (own_sketch(this, name) for name in ("site-01", "site-02"))
    half = (first + second) // 2
    showing(this, "site-01", half)
    showing(this, "site-02", first + second - half)
    this.play("sketch", who=("site-03", "site-04")).play("second", "unmask").publish().play(*LAST)
    assert all(this.verified.values())
    _, verdict = this.coordinator.judge(*(this.roster, *map(this.relayed, ("ready", "list", "sketch"))))
    together = sum(this.updates[name][0].astype(float) for name in ("site-01", "site-02"))
    shown = verdict.norms["site-01"] + verdict.norms["site-02"]
    assert np.linalg.norm(together) <= 1.3 * shown


def test_one_lie_that_passes_alone_is_found_by_the_sum(world, refused):
    """A silo that lies alone, by one unit in one of 256 sums, cannot make the sketches add up."""
    this = world(4, sketch=CLIP).play(*SET_UP)
    sums = own_sketch(this, "site-02")
    sums[17] += 1
    showing(this, "site-02", sums)
    this.play("sketch", who=without(this, "site-02")).play("second", "unmask").publish().play("nonce", "check")
    refused("SKETCH_DIFFERS", this.step_verify, "site-01")


def test_messages_of_the_checks_are_of_no_use_in_another_attempt(world, refused):
    """Replay: each is signed over the attempt's context and of its own type."""
    this = world(4, sketch=CLIP).play(*SET_UP, *CHECKED, "unmask").publish().play("nonce", "check")
    old = {kind: this.relayed(kind) for kind in this.mail}
    this.attempt(round=2, attempt=0)
    this.play(*SET_UP)
    machine = this.machines["site-01"]
    refused("OTHER_ROUND", machine.show_sketch, old["list"])
    this.play("sketch")
    refused("OTHER_ROUND", machine.sign_second, old["sketch"])
    this.play("second")
    refused("OTHER_ROUND", machine.unmask, this.relayed("list"), old["second"])
    this.play("unmask").publish().play("nonce")
    refused("OTHER_ROUND", machine.send_check, old["nonce"])
    this.play("check")
    refused("OTHER_ROUND", machine.verify_sum, [this.mail["check"]["site-01"], *old["check"][1:]], *this.shown)
    for stage, envelopes in old.items():
        if stage in ("sketch", "second"):
            refused("BAD_SIGNATURE", machine.send_check, envelopes)


def test_first_nonce_opens_with_the_list_and_the_second_only_with_the_sum(world):
    this = world(4, small=True).play(*SET_UP, "unmask").publish().play("nonce")
    for name in this.silos:
        first = ListSignature.parse(this.mail["list"][name].payload).nonce
        second = Nonce.parse(this.mail["nonce"][name].payload).nonce
        assert first != second
