"""After the list: sketches leave out who is out of bounds, check words hold the published sum to what was sent."""

from __future__ import annotations

import numpy as np
import pytest

SET_UP = ("keys", "bundles", "ready", "update", "list")
CHECKED = ("sketch", "second")
LAST = ("nonce", "check", "verify")
CLIP = 2000.0


def test_round_with_both_checks_gives_the_plain_sum(world):
    this = world(4, sketch=CLIP).play(*SET_UP, *CHECKED, "unmask").publish().play(*LAST)
    this.check_all()
    this.assert_sum(this.silos)
    assert this.verified == dict.fromkeys(this.silos, True)


def test_update_over_the_bound_is_left_out_before_the_unmasking(world):
    this = world(4, sketch=CLIP)
    this.updates["site-02"] = (this.updates["site-02"][0] * np.uint32(1000), this.updates["site-02"][1])
    others = [name for name in this.silos if name != "site-02"]
    this.play(*SET_UP, "sketch").play("second", "unmask", who=others).publish().play(*LAST, who=others)
    this.assert_sum(others)
    assert this.verified == dict.fromkeys(others, True)


def test_another_sum_than_the_true_one_is_refused_by_every_member(world, refused):
    this = world(4, small=True).play(*SET_UP, "unmask").publish(spoil=1).play("nonce", "check")
    for name in this.silos:
        refused("SUM_NOT_TRUE", this.step_verify, name)


def test_lie_in_a_sketch_throws_the_sum_away(world, refused):
    this = world(4, sketch=CLIP)
    this.updates["site-02"] = (this.updates["site-02"][0] * np.uint32(1000), this.updates["site-02"][1])
    liar = this.machines["site-02"]
    true = liar._own_body
    liar._own_body = lambda: iter([this.updates["site-01"][0].view("<i4")])
    this.play(*SET_UP, *CHECKED)
    liar._own_body = true
    this.play("unmask").publish().play("nonce", "check")
    for name in this.silos:
        refused("SKETCH_DIFFERS", this.step_verify, name)


@pytest.mark.parametrize("sketch", [None, CLIP])
def test_member_that_was_away_accepts_the_list_on_t_signatures(world, sketch):
    this = world(4, sketch=sketch, small=True).play(*SET_UP[:4])
    others = list(this.silos[1:])
    this.play("list", "sketch", "second", "unmask", who=others) if sketch else this.play("list", "unmask", who=others)
    # With the sketch check it showed no sketch, so it is not in the sum; without, it is.
    checkers = others if sketch else list(this.silos)
    this.publish().play(*LAST, who=checkers)
    assert this.verified == dict.fromkeys(checkers, True)
