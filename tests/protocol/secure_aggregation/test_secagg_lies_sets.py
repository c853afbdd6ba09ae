"""Lies about who is in a set: the ready set R and the list. Each is refused before anything is revealed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.canonical import digest
from protocol.messages import Ready, Update, seal

STEPS = ("keys", "bundles", "ready", "update", "list", "unmask")
OTHER = "sha256:" + "c" * 64

# --- the set R -------------------------------------------------------------------------------------------------------


def test_ready_set_that_is_too_small_is_refused(world, refused):
    this = world(6).play("keys", "bundles", "ready")  # t = 5
    refused("SET_TOO_SMALL", this.machines["site-01"].accept_ready, this.relayed("ready", this.silos[:4]))
    small = world(4, min_participants=4).play("keys", "bundles", "ready")
    refused("SET_TOO_SMALL", small.machines["site-01"].accept_ready, small.relayed("ready", small.silos[:3]))


def test_ready_set_without_the_silo_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready")
    refused("LEFT_OUT", this.machines["site-01"].accept_ready, this.relayed("ready", this.silos[1:]))


def test_ready_set_that_reaches_outside_the_roster_is_refused(world, refused):
    """A silo of the manifest that is not in this roster signs a `ready` for it all the same."""
    this = world(5)
    this.play("keys", "bundles", "ready", who=this.silos[:4])
    message = Ready.parse(this.mail["ready"]["site-02"].payload)
    outside = seal(replace(message, silo="site-05", senders=("site-01",)), this.keys["site-05"])
    refused("OTHER_ROSTER", this.machines["site-01"].accept_ready, [*this.relayed("ready"), outside])


def test_ready_that_does_not_fit_its_roster_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready")
    message = Ready.parse(this.mail["ready"]["site-02"].payload)
    for code, change in (
        ("BAD_MESSAGE", {"list_digest": OTHER}),
        ("OUTSIDE_PARENT", {"senders": ("site-01", "site-02", "site-03")}),
        ("OUTSIDE_PARENT", {"senders": ("site-01", "site-03", "site-09")}),
        ("BAD_MESSAGE", {"list_box": b"short", "list_digest": digest(b"short")}),
    ):
        bad = seal(replace(message, **change), this.keys["site-02"])
        refused(code, this.coordinator.check_ready, this.roster, bad)
        others = this.relayed("ready", ["site-01", "site-03", "site-04"])
        refused(code, this.machines["site-01"].accept_ready, [bad, *others])


def test_second_ready_set_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready")
    machine = this.machines["site-01"]
    machine.accept_ready(this.relayed("ready"))
    refused("SECOND_SET", machine.accept_ready, this.relayed("ready", this.silos[:3]))
    refused("SECOND_SET", this.rebuild("site-01").accept_ready, this.relayed("ready", this.silos[:3]))
    machine.accept_ready(this.relayed("ready"))


def test_ready_set_with_a_forged_own_message_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready")
    message = Ready.parse(this.mail["ready"]["site-01"].payload)
    forged = seal(replace(message, self_hash=OTHER), this.keys["site-01"])
    others = this.relayed("ready", this.silos[1:])
    refused("OTHER_MESSAGE", this.machines["site-01"].accept_ready, [forged, *others])


def test_different_ready_sets_for_different_silos_end_before_the_list(world, refused):
    this = world(5).play("keys", "bundles", "ready")
    for name in this.silos:
        shown = this.silos[:4] if name in ("site-01", "site-02") else this.silos
        machine = this.machines[name]
        machine.accept_ready(this.relayed("ready", shown))
        machine.begin_update(*this.updates[name])
        this.mail["update"][name] = machine.finish_update()
    for name in this.silos:
        refused("OTHER_SET", this.machines[name].sign_list, this.relayed("update"))


# --- the list --------------------------------------------------------------------------------------------------------


def test_list_that_is_too_small_is_refused(world, refused):
    this = world(6).play("keys", "bundles", "ready", "update")
    refused("SET_TOO_SMALL", this.machines["site-01"].sign_list, this.relayed("update", this.silos[:4]))


def test_list_without_the_silo_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    refused("LEFT_OUT", this.machines["site-01"].sign_list, this.relayed("update", this.silos[1:]))


def test_list_that_reaches_outside_the_ready_set_is_refused(world, refused):
    this = world(5).play("keys", "bundles")
    this.play("ready", "update", who=this.silos[:4])
    message = Update.parse(this.mail["update"]["site-02"].payload)
    outside = seal(replace(message, silo="site-05"), this.keys["site-05"])
    refused("OUTSIDE_PARENT", this.machines["site-01"].sign_list, [*this.relayed("update"), outside])


def test_list_with_an_incomplete_update_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    message = Update.parse(this.mail["update"]["site-02"].payload)
    short = seal(replace(message, chunks=message.chunks[:1]), this.keys["site-02"])
    refused("BAD_MESSAGE", this.machines["site-01"].sign_list, [short, *this.relayed("update", ["site-01", "site-03"])])


def test_second_list_in_a_round_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    signed = this.machines["site-01"].sign_list(this.relayed("update"))
    for machine in (this.machines["site-01"], this.rebuild("site-01")):
        assert machine.sign_list(this.relayed("update")) == signed
        refused("SECOND_LIST", machine.sign_list, this.relayed("update", this.silos[:3]))


def test_list_over_another_update_of_the_silo_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    message = Update.parse(this.mail["update"]["site-01"].payload)
    other = seal(replace(message, chunks=(OTHER,) * len(message.chunks)), this.keys["site-01"])
    others = this.relayed("update", this.silos[1:])
    refused("OTHER_MESSAGE", this.machines["site-01"].sign_list, [other, *others])


def test_second_attempt_after_a_signed_list_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    this.play("list", who=["site-01"])
    this.attempt(attempt=1)
    refused("ROUND_SPENT", this.machines["site-01"].keys)
    this.play("keys", "bundles", "ready", "update", who=this.silos[1:])
    this.attempt(round=2, attempt=0)
    this.play(*STEPS)
    this.assert_sum(this.silos)


def test_first_attempt_is_over_once_the_secrets_of_a_second_one_are_on_disk(world, refused):
    """A crash between the secrets of attempt 1 and joining it: those of attempt 0 are gone, so only attempt 1 can go on."""
    this = world(4).play("keys", "bundles", "ready", "update")
    first = this.machines["site-01"]
    this.attempt(attempt=1)
    this.journals["site-01"].kill_at = (this.journals["site-01"].puts + 1, "after")
    with pytest.raises(this.Killed):
        this.machines["site-01"].keys()
    this.journals["site-01"].kill_at = None
    this.attempt(attempt=0)
    refused("ROUND_OVER", this.machines["site-01"].keys)
    refused("OUT_OF_STAGE", first.sign_list, this.relayed("update"))
    this.attempt(attempt=1)
    this.play(*STEPS)
    this.assert_sum(this.silos)


def test_older_round_or_attempt_is_refused_and_its_secrets_are_erased(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    old = this.machines["site-01"]
    journal = this.journals["site-01"]
    assert any(key.startswith("round/st-abc/1/0/") for key in journal.rows)
    this.attempt(attempt=1)
    this.play("keys")
    assert not any(key.startswith("round/st-abc/1/0/") for key in journal.rows)
    for call, arguments in (
        (old.keys, ()),
        (old.accept_roster, ([],)),
        (old.masked_chunk, (0,)),
        (old.sign_list, ([],)),
        (old.unmask, ([],)),
        (old.sign_state, (OTHER,)),
    ):
        refused("OLD_ROUND", call, *arguments)


def test_secrets_of_an_attempt_that_was_never_joined_are_erased_too(world, refused):
    this = world(4)
    journal = this.journals["site-01"]
    journal.kill_at = (1, "after")
    with pytest.raises(this.Killed):
        this.machines["site-01"].keys()
    journal.kill_at = None
    old = this.machines["site-01"]
    this.attempt(attempt=1)
    this.play("keys")
    refused("OLD_ROUND", old.keys)
    assert not any(key.startswith("round/st-abc/1/0/") for key in journal.rows)
