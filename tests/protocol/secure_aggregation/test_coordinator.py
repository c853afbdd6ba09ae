"""The portal's side: wrong shares name their sender, wrong messages are refused, and a removal is safe to use."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from protocol import canonical
from protocol.messages import Bundles, ListSignature, Ready, Unmask, Update, seal
from protocol.secure_aggregation import NotEnoughShares, sealing

STEPS = ("keys", "bundles", "ready", "update", "list", "unmask")
OTHER = "sha256:" + "c" * 64


def change(this, kind: str, cls: type, name: str, **content: object) -> None:
    """A silo signs something else than it should."""
    message = replace(cls.parse(this.mail[kind][name].payload), **content)
    this.mail[kind][name] = seal(message, this.keys[name])


def wrong(shares) -> dict[str, bytes]:
    return {owner: bytes(byte ^ 1 for byte in share) for owner, share in shares.items()}


# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("liars", [("site-01",), ("site-07",), ("site-01", "site-04")])
def test_shares_that_do_not_match_name_their_sender_and_the_sum_is_right(world, liars):
    """Seven answer, five are needed: up to two wrong ones are found, wherever they stand."""
    this = world(7)
    live = summed_without(this, "site-03")
    for liar in liars:
        message = Unmask.parse(this.mail["unmask"][liar].payload)
        noise = [{owner: bytes(os.urandom(32)) for owner in row} for row in (message.self_shares, message.list_shares)]
        change(this, "unmask", Unmask, liar, self_shares=noise[0], list_shares=noise[1])
    removal = this.removal()
    assert removal.bad_senders == liars
    assert removal.suspects == ()
    this.assert_sum(live)


def summed_without(this, gone: str) -> list[str]:
    """A round in which `gone` never finishes its upload, up to everybody's unmask message."""
    this.play("keys", "bundles", "ready", "update")
    del this.mail["update"][gone]
    live = [name for name in this.silos if name != gone]
    this.play("list", who=live)
    this.play("unmask")
    return live


@pytest.mark.parametrize("min_participants", [4, 5])
def test_liars_together_cannot_have_an_honest_silo_named(world, min_participants):
    """At x = 1 and 4 the same error cancels at 0 for some choices of five: the secret is right, honest shares look odd.

    With c = 2 that can happen, so all are suspects and nobody is named; the sum is right.
    """
    this = world(7, min_participants=min_participants)
    live = summed_without(this, "site-03")
    for liar in ("site-01", "site-04"):
        message = Unmask.parse(this.mail["unmask"][liar].payload)
        change(
            this, "unmask", Unmask, liar, self_shares=wrong(message.self_shares), list_shares=wrong(message.list_shares)
        )
    removal = this.removal()
    assert set(removal.bad_senders) <= {"site-01", "site-04"}
    assert removal.suspects == this.silos
    this.assert_sum(live)


def test_one_wrong_share_among_right_ones_names_its_sender(world):
    this = world(5).play(*STEPS)
    message = Unmask.parse(this.mail["unmask"]["site-02"].payload)
    shares = dict(message.self_shares) | {"site-04": bytes(32)}
    change(this, "unmask", Unmask, "site-02", self_shares=shares)
    assert this.removal().bad_senders == ("site-02",)
    this.assert_sum(this.silos)


def test_wrong_share_among_exactly_t_leaves_suspects_and_waits_for_more(world):
    this = world(5).play(*STEPS)  # t = 4
    message = Unmask.parse(this.mail["unmask"]["site-02"].payload)
    change(this, "unmask", Unmask, "site-02", self_shares=wrong(message.self_shares))
    with pytest.raises(NotEnoughShares) as caught:
        this.removal(this.silos[:4])
    assert caught.value.code == "NOT_ENOUGH_SHARES"
    assert caught.value.suspects == this.silos[:4]
    assert caught.value.bad == ()
    assert "site-02" in caught.value.sentence
    # The fifth answer settles it.
    assert this.removal().bad_senders == ("site-02",)


def test_silo_proved_wrong_before_stays_named_when_shares_run_out(world):
    this = world(5).play(*STEPS)
    first = Unmask.parse(this.mail["unmask"]["site-02"].payload)
    second = Unmask.parse(this.mail["unmask"]["site-03"].payload)
    change(this, "unmask", Unmask, "site-02", self_shares=wrong(first.self_shares))
    late = {"site-05": wrong(second.self_shares)["site-05"]}
    change(this, "unmask", Unmask, "site-03", self_shares=dict(second.self_shares) | late)
    with pytest.raises(NotEnoughShares) as caught:
        this.removal()
    assert caught.value.bad == ("site-02",)
    assert "site-05" in caught.value.sentence


def test_too_few_shares_say_how_many_are_missing(world):
    this = world(4).play(*STEPS)
    with pytest.raises(NotEnoughShares, match="2 shares came, 3") as caught:
        this.removal(this.silos[:2])
    assert (caught.value.bad, caught.value.suspects) == ((), ())


def test_list_that_does_not_open_names_its_silo(world, refused):
    """A silo signs rubbish as its list and falls out."""
    this = world(4).play("keys", "bundles", "ready")
    roster = this.roster
    key = canonical.unb64(canonical.decode(this.journals["site-04"].rows["round/st-abc/1/0/keys"])["list"])
    where = {"key": key, "ctx": this.parameters.ctx, "roster": roster.digest, "silo": "site-01"}
    box = sealing.seal_list(bytes(32 * 4), **where)
    change(this, "ready", Ready, "site-04", list_box=box, list_digest=canonical.digest(box))
    this.play("update", "list", "unmask", who=this.silos[:3])
    assert "site-04" in refused("LIST_UNREADABLE", this.removal)


# --- messages --------------------------------------------------------------------------------------------------------


def test_bundles_must_hold_one_box_for_each_other_silo(world, refused):
    this = world(4).play("keys", "bundles")
    boxes = dict(Bundles.parse(this.mail["bundles"]["site-01"].payload).boxes)
    for bad in (
        {name: box for name, box in boxes.items() if name != "site-02"},
        boxes | {"site-01": b"x"},
        boxes | {"site-09": b"x"},
    ):
        change(this, "bundles", Bundles, "site-01", boxes=bad)
        refused("BAD_MESSAGE", this.coordinator.check_bundles, this.roster, this.mail["bundles"]["site-01"])


def test_boxes_for_a_silo_are_those_that_others_sealed_to_it(world):
    this = world(4).play("keys", "bundles")
    change(this, "bundles", Bundles, "site-03", boxes={"site-01": b"x"})
    boxes = this.coordinator.boxes_for(this.roster, this.relayed("bundles"), "site-02")
    assert sorted(boxes) == ["site-01", "site-04"]


def test_updates_that_do_not_fit_are_refused(world, refused):
    this = world(5).play("keys", "bundles")
    this.play("ready", "update", who=this.silos[:4])
    check, ready = this.coordinator.check_update, this.relayed("ready")
    good = this.mail["update"]["site-01"]
    for code, content in (
        ("OTHER_SET", {"ready_set": OTHER}),
        ("OTHER_SET", {"members": this.silos[:3]}),
        ("BAD_MESSAGE", {"chunks": (OTHER,)}),
        ("BAD_MESSAGE", {"chunks": (OTHER,) * 3}),
    ):
        change(this, "update", Update, "site-01", **content)
        refused(code, check, this.roster, ready, this.mail["update"]["site-01"])
        this.mail["update"]["site-01"] = good
    outside = seal(replace(Update.parse(good.payload), silo="site-05"), this.keys["site-05"])
    refused("OUTSIDE_PARENT", check, this.roster, ready, outside)
    refused("BAD_SIGNATURE", check, this.roster, ready, replace(good, payload=outside.payload))


def test_signature_on_another_list_is_refused(world, refused):
    this = world(5).play("keys", "bundles", "ready", "update", "list")
    shorter = this.relayed("update", this.silos[:4])
    check = this.coordinator.check_list
    for name in this.silos[:4]:
        refused("TWO_LISTS", check, this.roster, this.relayed("ready"), shorter, this.mail["list"][name])


def test_shares_for_another_list_are_refused(world, refused):
    this = world(5).play("keys", "bundles")
    this.play("ready", "update", who=this.silos[:4])
    this.play("list", "unmask", who=this.silos[:4])
    check, roster = this.coordinator.check_unmask, this.roster
    ready, lists = this.relayed("ready"), this.relayed("list")
    good = Unmask.parse(this.mail["unmask"]["site-01"].payload)
    fewer = {name: share for name, share in good.self_shares.items() if name != "site-02"}
    for content in (
        {"self_shares": fewer},
        {"self_shares": fewer, "list_shares": {"site-02": bytes(32)}},
        {"list_shares": {"site-05": bytes(32)}},
        {"list_shares": {"site-02": bytes(32)}},
    ):
        bad = seal(replace(good, **content), this.keys["site-01"])
        refused("OTHER_SET", check, roster, ready, lists, bad)
        refused("OTHER_SET", this.coordinator.recover, roster, ready, lists, [bad])
    outside = seal(replace(good, silo="site-05"), this.keys["site-05"])
    refused("OUTSIDE_PARENT", check, roster, ready, lists, outside)
    refused("TOO_FEW_SIGNATURES", check, roster, ready, lists[:3], this.mail["unmask"]["site-01"])


def test_every_illegal_transition_of_the_portal_raises(world, refused):
    """Each stage is computed from the signed messages of the one before; with other messages it cannot be reached."""
    this = world(4, sketch=2000.0).play(*STEPS[:5], "sketch", "second", "unmask").publish().play("nonce", "check")
    check, roster = this.coordinator, this.roster
    mail = {kind: this.relayed(kind) for kind in this.mail}
    final = check.final(roster, mail["ready"], mail["list"], mail["second"])
    nonces = check.nonces(roster, mail["ready"], final, this.published, mail["nonce"])
    wanted = {
        "keys": lambda envelope: check.check_keys(envelope),
        "bundles": lambda envelope: check.check_bundles(roster, envelope),
        "ready": lambda envelope: check.check_ready(roster, envelope),
        "update": lambda envelope: check.check_update(roster, mail["ready"], envelope),
        "list": lambda envelope: check.check_list(roster, mail["ready"], mail["update"], envelope),
        "sketch": lambda envelope: check.check_sketch(roster, mail["ready"], mail["list"], envelope),
        "second": lambda envelope: check.check_second(roster, mail["ready"], mail["list"], mail["sketch"], envelope),
        "unmask": lambda envelope: check.check_unmask(roster, mail["ready"], mail["list"], envelope, mail["second"]),
        "nonce": lambda envelope: check.check_nonce(roster, mail["ready"], final, this.published, envelope),
        "check": lambda envelope: check.check_check(roster, final, this.published, nonces, envelope),
    }
    for stage, call in wanted.items():
        for kind, envelopes in mail.items():
            if kind == stage:
                assert call(envelopes[0]) == "site-01"
            else:
                refused("BAD_SIGNATURE", call, envelopes[0])  # its signature is for another payload type
    refused("ROSTER_TOO_SMALL", check.roster, [])
    refused("ROSTER_TOO_SMALL", check.roster, mail["keys"][:2])
    refused("SET_TOO_SMALL", check.ready, roster, mail["ready"][:2])
    refused("SET_TOO_SMALL", check.choose_ready, roster, [])
    refused("SET_TOO_SMALL", check.list_of, roster, mail["ready"], mail["update"][:2])
    refused("TOO_FEW_SIGNATURES", check.recover, roster, mail["ready"], mail["list"][:2], mail["unmask"])
    refused("TOO_FEW_SIGNATURES", check.recover, roster, mail["ready"], [], mail["unmask"])
    refused(
        "TOO_FEW_SIGNATURES", check.recover, roster, mail["ready"], mail["list"], mail["unmask"], mail["second"][:2]
    )
    refused("BAD_SIGNATURE", check.recover, roster, mail["update"], mail["list"], mail["unmask"], mail["second"])
    refused("SET_TOO_SMALL", check.judge, roster, mail["ready"], mail["list"], mail["sketch"][:2])
    refused("TOO_FEW_SIGNATURES", check.nonces, roster, mail["ready"], final, this.published, mail["nonce"][:2])


def test_list_signed_over_a_nonce_that_was_not_committed_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update", "list")
    change(this, "list", ListSignature, "site-01", nonce=bytes(32))
    call = this.coordinator.check_list
    refused("BAD_NONCE", call, this.roster, this.relayed("ready"), this.relayed("update"), this.mail["list"]["site-01"])


# --- the removal -----------------------------------------------------------------------------------------------------


def test_removal_takes_only_a_writable_row_of_the_right_length(world):
    this = world(4).play(*STEPS)
    removal, words = this.removal(), this.parameters.words
    removal.subtract(0, np.zeros(words, dtype="<u4"))
    for bad in (np.zeros(0, "<u4"), np.zeros(words - 1, "<u4"), np.zeros(words + 1, "<u4"), np.zeros(words, "<u2")):
        with pytest.raises(ValueError, match=f"chunk 0 has {words} words of uint32"):
            removal.subtract(0, bad)
    with pytest.raises(ValueError, match="writable"):
        removal.subtract(0, np.frombuffer(bytes(4 * words), dtype="<u4"))
    for k in (-1, 2):
        with pytest.raises(IndexError):
            removal.subtract(k, np.zeros(2, dtype="<u8"))


def test_sum_takes_one_chunk_of_the_right_length_of_each_member(world):
    this = world(4).play(*STEPS)
    removal = this.removal()
    chunks = [this.chunks[name][0] for name in this.silos]
    for bad in ([], chunks[:-1], [*chunks, chunks[0]]):
        with pytest.raises(ValueError, match="the sum is over 4 silos"):
            removal.sum_chunk(0, bad)
    for bad in (b"", chunks[3][:-4], chunks[3] + bytes(4)):
        with pytest.raises(ValueError, match="are 200 bytes"):
            removal.sum_chunk(0, [*chunks[:3], bad])
    with pytest.raises(IndexError):
        removal.sum_chunk(2, chunks)


def test_sum_asks_for_a_chunk_only_when_the_one_before_is_used_up(world):
    """So a caller may read all of them into one buffer."""
    this = world(4).play(*STEPS)
    removal, buffer = this.removal(), bytearray(this.parameters.chunk_bytes(0))

    def pieces():
        for name in this.silos:
            buffer[:] = this.chunks[name][0]
            yield buffer

    assert removal.sum_chunk(0, pieces()).tolist() == this.plain(this.silos)[0].tolist()


def test_removal_is_the_same_whoever_revealed(world):
    this = world(7).play("keys", "bundles", "ready")
    live = this.silos[:6]
    this.play("update", "list", "unmask", who=live)
    results = []
    for names in (live[:5], live[1:], live):
        buffer = np.zeros(this.parameters.words, dtype="<u4")
        this.removal(names).subtract(0, buffer)
        results.append(buffer.tobytes())
    assert len(set(results)) == 1


def test_each_silo_that_says_it_opened_nothing_keeps_one_other_out_of_a_round(world):
    """Whether box or receiver is false nobody can tell: the sender goes, and its accusers stay (docs, what it does not do)."""
    for liars, victims in ((("site-07",), ("site-01",)), (("site-06", "site-07"), ("site-01", "site-03"))):
        this = world(7).play("keys", "bundles", "ready")
        for liar in liars:
            opened = Ready.parse(this.mail["ready"][liar].payload).senders
            change(this, "ready", Ready, liar, senders=tuple(name for name in opened if name not in victims))
        assert set(this.coordinator.choose_ready(this.roster, this.relayed("ready")).left_out) == set(victims)
