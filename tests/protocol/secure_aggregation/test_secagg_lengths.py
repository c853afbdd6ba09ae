"""One attempt is for an update of one length: a round that trains never becomes one that evaluates, or the other way."""

from __future__ import annotations

import pytest

STEPS = ("keys", "bundles", "ready", "update")


def test_a_round_that_trained_is_not_taken_up_again_as_one_that_evaluates(world, refused):
    """Else the journaled body would leave a second time, under the masks of the tail, which the true tail wore."""
    this = world(4).play(*STEPS)
    this.parameters = type(this.parameters)(**this.settings | {"words": 0})
    assert this.parameters.ctx == this.machines["site-02"].parameters.ctx, "ctx does not tell them apart"
    again = this.rebuild("site-02")
    refused("OTHER_LENGTH", again.keys)
    refused("OTHER_LENGTH", again.accept_ready, this.relayed("ready"))
    refused("OTHER_LENGTH", again.masked_chunk, 0)
    refused("OTHER_LENGTH", again.finish_update)
    refused("OTHER_LENGTH", again.sign_list, this.relayed("update"))


@pytest.mark.parametrize("change", [{"words": 51}, {"words": 48}, {"tail": 4}, {"tail": 2}, {"words": 0}])
def test_no_step_is_taken_with_another_length(world, refused, change):
    this = world(4).play("keys")
    this.parameters = type(this.parameters)(**this.settings | change)
    again = this.rebuild("site-02")
    refused("OTHER_LENGTH", again.keys)
    refused("OTHER_LENGTH", again.accept_roster, this.relayed("keys"))


def test_with_the_same_length_it_goes_on_after_a_crash(world):
    this = world(4).play(*STEPS)
    for name in this.silos:
        this.machines[name] = this.rebuild(name)
    this.play("list", "unmask")
    this.assert_sum(this.silos)
