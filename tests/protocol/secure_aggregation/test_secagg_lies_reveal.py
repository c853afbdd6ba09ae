"""Lies that want shares, unknown partners, steps out of turn, and what a silo signs once only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocol.messages import ListSignature, State, Unmask, Update, seal
from protocol.model_state import TensorSpec
from protocol.secure_aggregation import SiloRound
from protocol.secure_aggregation.sets import open_signed
from protocol.signing import keyid

STEPS = ("keys", "bundles", "ready", "update", "list", "unmask")
OTHER = "sha256:" + "c" * 64

# --- unmasking -------------------------------------------------------------------------------------------------------


def test_false_drop_out_is_refused(world, refused):
    """The portal says that a member of the signed list dropped out, to get its K-shares beside the b-shares."""
    this = world(5).play("keys", "bundles", "ready", "update", "list")  # t = 4
    machine = this.machines["site-01"]
    genuine = ListSignature.parse(this.mail["list"]["site-02"].payload)
    short = this.silos[:4]
    # site-02 helps and signs a list without site-05 as well; nobody honest does.
    updates = this.coordinator.list_of(this.roster, this.relayed("ready"), this.relayed("update", short)).updates
    helped = seal(replace(genuine, members=short, updates=updates), this.keys["site-02"])
    refused("TOO_FEW_SIGNATURES", machine.unmask, [helped])
    refused("TWO_LISTS", machine.unmask, [helped, *this.relayed("list", ["site-01", "site-03", "site-04"])])
    # Were all others to sign it, this silo still reveals only for the list that it signed.
    all_lie = []
    for name in short:
        said_by = ListSignature.parse(this.mail["list"][name].payload)
        all_lie.append(seal(replace(said_by, members=short, updates=updates), this.keys[name]))
    refused("TWO_LISTS", machine.unmask, all_lie)
    # Nothing was revealed, and the true list still opens; never both kinds for one silo.
    assert "round/st-abc/1/0/unmask" not in this.journals["site-01"].rows
    this.play("unmask")
    for envelope in this.relayed("unmask"):
        message = Unmask.parse(envelope.payload)
        assert not set(message.self_shares) & set(message.list_shares)
    this.assert_sum(this.silos)


def test_unmasking_for_two_lists_one_after_the_other_is_refused(world, refused):
    """A silo that signed nothing is shown t signatures twice: it spends its round with the first."""
    this = world(4).play("keys", "bundles", "ready", "update")
    late = this.machines["site-04"]
    this.play("list", who=this.silos[:3])
    first = late.unmask(this.relayed("list"))
    short = this.silos[:3]
    updates = this.coordinator.list_of(this.roster, this.relayed("ready"), this.relayed("update", short)).updates
    second = [
        seal(
            replace(ListSignature.parse(this.mail["list"][name].payload), members=short, updates=updates),
            this.keys[name],
        )
        for name in short
    ]
    for machine in (late, this.rebuild("site-04")):
        assert machine.unmask(this.relayed("list")) == first
        refused("ROUND_SPENT", machine.unmask, second)


def test_signatures_on_different_lists_do_not_add_up(world, refused):
    """Four signatures are needed and four come, but one is for a shorter list; the silo asked has signed none."""
    this = world(5).play("keys", "bundles", "ready", "update")
    short = this.silos[:4]
    this.play("list", who=short)
    updates = this.coordinator.list_of(this.roster, this.relayed("ready"), this.relayed("update", short)).updates
    genuine = ListSignature.parse(this.mail["list"]["site-02"].payload)
    helped = seal(replace(genuine, members=short, updates=updates), this.keys["site-02"])
    lists = [helped, *this.relayed("list", ["site-01", "site-03", "site-04"])]
    refused("TWO_LISTS", this.machines["site-05"].unmask, lists)
    refused("TWO_LISTS", this.coordinator.recover, this.roster, this.relayed("ready"), lists, [])


def test_unmasking_with_too_few_signatures_is_refused(world, refused):
    this = world(6).play("keys", "bundles", "ready", "update", "list")
    refused("TOO_FEW_SIGNATURES", this.machines["site-01"].unmask, this.relayed("list", this.silos[:4]))
    refused("TWICE", this.machines["site-01"].unmask, [*this.relayed("list"), this.mail["list"]["site-02"]])


def test_unmasking_for_a_list_that_does_not_fit_is_refused(world, refused):
    this = world(4).play("keys", "bundles")
    this.play("ready", "update", "list", who=this.silos[:3])
    machine = this.machines["site-01"]
    genuine = ListSignature.parse(this.mail["list"]["site-02"].payload)
    for code, change in (
        ("OUTSIDE_PARENT", {"members": this.silos}),  # site-04 is not in R
        ("OUTSIDE_PARENT", {"members": ("site-01", "site-03")}),  # signed by a silo that is not in it
        ("SET_TOO_SMALL", {"members": ("site-01", "site-02")}),
        ("OTHER_SET", {"ready_set": OTHER}),
        ("BAD_NONCE", {"nonce": bytes(32)}),
    ):
        bad = seal(replace(genuine, **change), this.keys["site-02"])
        refused(code, machine.unmask, [bad, *this.relayed("list", ["site-01", "site-03"])])


def test_unmasking_for_a_list_that_claims_an_update_of_this_silo_is_refused(world, refused):
    """The silo never finished its upload, yet three others signed a list with it."""
    this = world(4).play("keys", "bundles", "ready")
    this.play("update", "list", who=this.silos[:3])
    machine = this.machines["site-04"]
    machine.accept_ready(this.relayed("ready"))
    message = Update.parse(this.mail["update"]["site-01"].payload)
    invented = seal(replace(message, silo="site-04"), this.keys["site-04"])
    view = this.coordinator.list_of(this.roster, this.relayed("ready"), [*this.relayed("update"), invented])
    lists = [
        seal(
            replace(ListSignature.parse(this.mail["list"][name].payload), members=view.members, updates=view.updates),
            this.keys[name],
        )
        for name in this.silos[:3]
    ]
    refused("OUT_OF_STAGE", machine.unmask, lists)


# --- partners --------------------------------------------------------------------------------------------------------


def test_round_among_unknown_partners_is_refused(world, refused):
    """Policy: two of three pinned partners must be in the set; names do not count, keys do."""
    pinned = frozenset(keyid(world.keys[name].public) for name in ("site-02", "site-03", "site-04"))
    this = world(6, known_partners=pinned, min_known=2)
    this.play("keys")
    machine = this.machines["site-01"]
    unknown = this.relayed("keys", ["site-01", "site-02", "site-05", "site-06"])
    refused("TOO_FEW_KNOWN", machine.accept_roster, unknown)
    names = world(4, known_partners=frozenset(["site-02", "site-03", "site-04"]), min_known=1)
    names.play("keys")
    refused("TOO_FEW_KNOWN", names.machines["site-01"].accept_roster, names.relayed("keys"))


def test_ready_set_and_list_among_unknown_partners_are_refused(world, refused):
    pinned = frozenset(keyid(world.keys[name].public) for name in ("site-01", "site-02", "site-03"))
    this = world(5, known_partners=pinned, min_known=2)  # site-01 itself does not count
    this.play("keys", "bundles", "ready")
    without = ["site-01", "site-03", "site-04", "site-05"]
    refused("TOO_FEW_KNOWN", this.machines["site-01"].accept_ready, this.relayed("ready", without))
    this.play("update")
    refused("TOO_FEW_KNOWN", this.machines["site-01"].sign_list, this.relayed("update", without))
    others = world(5)
    others.play("keys", "bundles", "ready", "update")
    strict = SiloRound(
        others.parameters,
        silo="site-02",
        key=others.keys["site-02"],
        journal=others.journals["site-02"],
        known_partners=pinned,
        min_known=2,
    )
    del others.mail["update"]["site-01"]
    others.play("list", who=["site-03", "site-04", "site-05"])
    others.mail["list"]["site-02"] = others.machines["site-02"].sign_list(others.relayed("update"))
    refused("TOO_FEW_KNOWN", strict.unmask, others.relayed("list"))


# --- out of stage ----------------------------------------------------------------------------------------------------


def test_every_step_before_its_turn_is_refused(world, refused):
    this = world(4).play(*STEPS)
    calls = {
        "bundles": lambda machine: machine.accept_roster(this.relayed("keys")),
        "ready": lambda machine: machine.accept_bundles({}),
        "set": lambda machine: machine.accept_ready(this.relayed("ready")),
        "begin": lambda machine: machine.begin_update(*this.updates["site-01"]),
        "chunk": lambda machine: machine.masked_chunk(0),
        "finish": lambda machine: machine.finish_update(),
        "list": lambda machine: machine.sign_list(this.relayed("update")),
        "unmask": lambda machine: machine.unmask(this.relayed("list")),
        "state": lambda machine: machine.sign_state(OTHER),
    }
    # After each step: which calls are still out of stage.
    fresh = world(4)
    machine = fresh.machines["site-01"]
    allowed: list[str] = []
    for step, opens in (
        (None, []),
        (lambda: fresh.play("keys"), ["bundles"]),
        (lambda: fresh.play("bundles"), ["ready", "state"]),
        (lambda: fresh.play("ready"), ["set"]),
        (lambda: machine.accept_ready(fresh.relayed("ready")), ["begin", "unmask"]),
        (lambda: machine.begin_update(*fresh.updates["site-01"]), ["chunk", "finish"]),
        (lambda: machine.finish_update(), ["list"]),
    ):
        if step is not None:
            step()
        allowed += opens
        for name, call in calls.items():
            if name not in allowed:
                assert "before" in refused("OUT_OF_STAGE", call, machine), name
                refused("OUT_OF_STAGE", call, fresh.rebuild("site-01"))


def test_after_destroy_everything_is_refused_and_no_secret_is_left(world, refused):
    this = world(4).play(*STEPS)
    machine = this.machines["site-01"]
    machine.destroy()
    assert not any(key.startswith("round/") for key in this.journals["site-01"].rows)
    refused("ROUND_OVER", machine.keys)
    refused("OUT_OF_STAGE", machine.masked_chunk, 0)
    refused("OUT_OF_STAGE", machine.unmask, this.relayed("list"))
    assert "study/st-abc/spent/1" in this.journals["site-01"].rows


def test_round_without_a_model_is_never_joined(world, refused):
    this = world(4, model=None)
    refused("NO_MODEL", this.machines["site-01"].keys)


# --- the update ------------------------------------------------------------------------------------------------------


def test_update_of_another_shape_or_type_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready")
    machine = this.machines["site-01"]
    machine.accept_ready(this.relayed("ready"))
    words, tail = this.updates["site-01"]
    for bad in (
        (words[:-1], tail),
        (words.astype(np.int32), tail),
        (words.astype(np.float32), tail),
        (words[None], tail),
        (words, tail[:-1]),
        (words, tail.astype(np.int64)),
    ):
        refused("BAD_UPDATE", machine.begin_update, *bad)
    assert not machine.update_begun
    with pytest.raises(IndexError):
        machine.masked_chunk(2)
    with pytest.raises(IndexError):
        machine.masked_chunk(-1)


# --- the state -------------------------------------------------------------------------------------------------------


def test_second_state_is_refused(world, refused):
    this = world(4, small=True).play(*STEPS).publish()
    machine = this.machines["site-01"]
    refused("OUT_OF_STAGE", machine.sign_state, OTHER)
    this.play("nonce", "check", "verify")
    signed = machine.sign_state(OTHER)
    assert this.rebuild("site-01").sign_state(OTHER) == signed
    refused("SECOND_STATE", machine.sign_state, "sha256:" + "d" * 64)
    refused("BAD_STATE", machine.sign_state, "not a digest")
    refused("BAD_STATE", machine.sign_state, OTHER, [])
    message = open_signed(this.parameters, State, signed, this.roster)
    assert (message.state, message.table) == (OTHER, None)


def test_first_model_is_signed_with_its_table_and_without_a_roster(world, refused):
    this = world(4, model=None)
    machine = this.machines["site-01"]
    table = (TensorSpec("conv.weight", (8, 1, 3, 3)), TensorSpec("norm.bias", (8,), "local"))
    signed = machine.sign_state(OTHER, table)
    message = open_signed(this.parameters, State, signed, None)
    assert message.table == (("conv.weight", (8, 1, 3, 3), "shared"), ("norm.bias", (8,), "local"))
    assert machine.sign_state(OTHER, table) == signed
    refused("SECOND_STATE", machine.sign_state, OTHER, table[:1])
    refused("BAD_STATE", machine.sign_state, OTHER)
