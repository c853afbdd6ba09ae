"""One test for each lie that the portal can tell a silo while a round is set up. Each is refused, nothing is revealed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.messages import Bundles, Keys, Ready, seal
from protocol.secure_aggregation import ProtocolViolation, SiloRound, sealing
from protocol.signing import Envelope, SigningKey, sign_envelope

OTHER = "sha256:" + "c" * 64


def said(machine: SiloRound, kind: type, **content: object) -> Envelope:
    """What a silo that plays false with the portal signs with its own genuine key."""
    return machine._seal(kind, **content)


# --- roster ----------------------------------------------------------------------------------------------------------


def test_roster_that_is_too_small_is_refused(world, refused):
    this = world(4, min_roster=4).play("keys")
    refused("ROSTER_TOO_SMALL", this.machines["site-01"].accept_roster, this.relayed("keys", this.silos[:3]))


def test_roster_without_the_silo_is_refused(world, refused):
    this = world(4).play("keys")
    refused("LEFT_OUT", this.machines["site-01"].accept_roster, this.relayed("keys", this.silos[1:]))


def test_roster_with_an_invented_hospital_is_refused(world, refused):
    this = world(4).play("keys")
    invented = SigningKey.generate()
    public = sealing.public_of(sealing.generate_private())
    envelope = seal(Keys(ctx=this.parameters.ctx.hex(), silo="site-99", roster=None, hpke_public=public), invented)
    refused("BAD_SIGNATURE", this.machines["site-01"].accept_roster, [*this.relayed("keys"), envelope])


def test_roster_with_one_silo_twice_is_refused(world, refused):
    this = world(4).play("keys")
    envelopes = this.relayed("keys")
    refused("TWICE", this.machines["site-01"].accept_roster, [*envelopes, envelopes[2]])


def test_second_roster_in_one_attempt_is_refused(world, refused):
    this = world(4).play("keys")
    first = this.machines["site-01"].accept_roster(this.relayed("keys"))
    refused("SECOND_ROSTER", this.machines["site-01"].accept_roster, this.relayed("keys", this.silos[:3]))
    refused("SECOND_ROSTER", this.rebuild("site-01").accept_roster, this.relayed("keys", this.silos[:3]))
    assert this.rebuild("site-01").accept_roster(this.relayed("keys")) == first


# --- swapped keys ----------------------------------------------------------------------------------------------------


def test_round_key_swapped_by_the_portal_is_refused(world, refused):
    this = world(4).play("keys")
    public = sealing.public_of(sealing.generate_private())
    genuine = this.mail["keys"]["site-02"]
    message = replace(Keys.parse(genuine.payload), hpke_public=public)
    swapped = [
        seal(message, SigningKey.generate()),  # signed by a key of the portal's own
        replace(genuine, payload=message.to_payload()),  # under the genuine signature
        replace(seal(message, SigningKey.generate()), signatures=((genuine.signatures[0][0], bytes(64)),)),
        seal(message, this.keys["site-03"]),  # signed by another silo of the manifest that helps
        replace(genuine, signatures=genuine.signatures * 2),
        replace(genuine, payload_type="application/vnd.consilium.round.ready+json"),
    ]
    for envelope in swapped:
        envelopes = [envelope, *this.relayed("keys", ["site-01", "site-03", "site-04"])]
        refused("BAD_SIGNATURE", this.machines["site-01"].accept_roster, envelopes)


def test_signed_message_that_is_not_well_formed_is_refused(world, refused):
    this = world(4).play("keys")
    bad = sign_envelope(Keys.payload_type(), b"{}", this.keys["site-02"])
    refused("BAD_MESSAGE", this.coordinator.check_keys, bad)
    envelopes = [bad, *this.relayed("keys", ["site-01", "site-03", "site-04"])]
    refused("BAD_MESSAGE", this.machines["site-01"].accept_roster, envelopes)


def test_own_key_that_the_silo_did_not_make_is_refused(world, refused):
    """A copy of the silo's disk elsewhere, or an older backup, signs with the same key."""
    this = world(4).play("keys")
    copy = SiloRound(this.parameters, silo="site-01", key=this.keys["site-01"], journal=this.Journal())
    envelopes = [copy.keys(), *this.relayed("keys", this.silos[1:])]
    refused("OTHER_KEY", this.machines["site-01"].accept_roster, envelopes)


def test_round_key_that_cannot_be_sealed_to_is_refused(world, refused):
    this = world(4).play("keys")
    whole = Keys.parse(this.mail["keys"]["site-02"].payload).hpke_public
    for public in (b"\xff" * 1216, whole[:1184] + bytes(32)):  # no ML-KEM key; an X25519 point that gives no secret
        bad = said(this.machines["site-02"], Keys, roster=None, hpke_public=public)
        refused("BAD_KEY", this.coordinator.check_keys, bad)
        others = this.relayed("keys", ["site-01", "site-03", "site-04"])
        refused("BAD_KEY", this.machines["site-01"].accept_roster, [bad, *others])
    this.play("bundles")  # nothing was journaled, so the genuine roster is still taken


def test_silo_with_another_key_than_the_manifest_does_not_begin(world):
    this = world(4)
    for name, key in (("site-01", this.keys["site-02"]), ("site-12", this.keys["site-12"])):
        with pytest.raises(ProtocolViolation, match="OTHER_KEY"):
            SiloRound(this.parameters, silo=name, key=key, journal=this.Journal())


# --- replays and other models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [{"attempt": 1}, {"round": 2}, {"model": OTHER}, {"manifest": OTHER}, {"study": "st-x"}]
)
def test_message_of_another_study_round_attempt_or_model_is_refused(world, refused, other):
    before = world(4).play("keys", "bundles", "ready", "update", "list")
    this = world(4, **other).play("keys")
    replayed = [before.mail["keys"]["site-02"], *this.relayed("keys", ["site-01", "site-03", "site-04"])]
    refused("OTHER_ROUND", this.machines["site-01"].accept_roster, replayed)
    this.play("bundles", "ready")
    replayed = [before.mail["ready"]["site-02"], *this.relayed("ready", ["site-01", "site-03", "site-04"])]
    refused("OTHER_ROUND", this.machines["site-01"].accept_ready, replayed)
    this.play("update")
    replayed = [before.mail["update"]["site-02"], *this.relayed("update", ["site-01", "site-03", "site-04"])]
    refused("OTHER_ROUND", this.machines["site-01"].sign_list, replayed)
    this.play("list")
    replayed = [before.mail["list"]["site-02"], *this.relayed("list", ["site-01", "site-03", "site-04"])]
    refused("OTHER_ROUND", this.machines["site-01"].unmask, replayed)


def test_message_of_the_same_attempt_with_another_roster_is_refused(world, refused):
    """The portal shows half of the silos one roster and half another."""
    this = world(5).play("keys")
    for name in ("site-01", "site-02", "site-03"):
        this.mail["bundles"][name] = this.machines[name].accept_roster(this.relayed("keys", this.silos[:4]))
    for name in ("site-04", "site-05"):
        this.mail["bundles"][name] = this.machines[name].accept_roster(this.relayed("keys"))
    refused("OTHER_ROSTER", this.coordinator.check_bundles, this.roster, this.mail["bundles"]["site-01"])
    boxes = {name: Bundles.parse(this.mail["bundles"][name].payload).boxes for name in this.mail["bundles"]}
    # site-04 sealed to another roster, so its box opens for nobody who has this one.
    ready = this.machines["site-01"].accept_bundles({name: boxes[name]["site-01"] for name in this.silos[1:4]})
    assert Ready.parse(ready.payload).senders == ("site-02", "site-03")


def test_box_for_one_silo_opens_for_no_other(world, refused):
    this = world(4).play("keys", "bundles")
    boxes = {name: Bundles.parse(this.mail["bundles"][name].payload).boxes for name in this.silos}
    mixed = {name: boxes[name]["site-02"] for name in ("site-03", "site-04")} | {"site-02": boxes["site-02"]["site-01"]}
    refused("SET_TOO_SMALL", this.machines["site-01"].accept_bundles, mixed)
    # Also where a silo took over another's public key, the box still says for whom it is.
    private = sealing.generate_private()
    box = sealing.seal_bundle(
        sealing.Bundle(bytes(32), bytes(32), bytes(32)),
        public=sealing.public_of(private),
        ctx=bytes(32),
        roster=OTHER,
        sender=0,
        receiver=1,
    )
    where = {"private": private, "ctx": bytes(32), "roster": OTHER}
    assert sealing.open_bundle(box, **where, sender=0, receiver=1).half == bytes(32)
    for sender, receiver in ((1, 0), (0, 2), (2, 1)):
        with pytest.raises(sealing.SealingError, match="other silos"):
            sealing.open_bundle(box, **where, sender=sender, receiver=receiver)


def test_attempt_rebuilt_with_another_model_is_refused(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    this.attempt(model=OTHER)
    machine = this.machines["site-01"]
    refused("OTHER_MODEL", machine.keys)
    refused("OTHER_MODEL", machine.accept_roster, [])
    refused("OTHER_MODEL", machine.masked_chunk, 0)
    refused("OTHER_MODEL", machine.sign_state, OTHER)


# --- bundles ---------------------------------------------------------------------------------------------------------


def test_bundle_from_outside_the_roster_is_refused(world, refused):
    this = world(4).play("keys", "bundles")
    boxes = this.coordinator.boxes_for(this.roster, this.relayed("bundles"), "site-01")
    for name in ("site-09", "site-01"):
        refused("OUTSIDE_PARENT", this.machines["site-01"].accept_bundles, boxes | {name: b"box"})


def test_second_set_of_bundles_is_refused(world, refused):
    this = world(4).play("keys", "bundles")
    boxes = this.coordinator.boxes_for(this.roster, this.relayed("bundles"), "site-01")
    first = this.machines["site-01"].accept_bundles(boxes)
    refused("SECOND_BUNDLES", this.machines["site-01"].accept_bundles, boxes | {"site-02": b"another"})
    assert this.rebuild("site-01").accept_bundles(boxes) == first
