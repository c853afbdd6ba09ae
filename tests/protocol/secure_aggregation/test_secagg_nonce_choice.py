"""The coefficients of the check words follow from nonces that a portal has read before it relays them."""

from __future__ import annotations

import itertools

from protocol.secure_aggregation.checks import read_nonces
from protocol.secure_aggregation.errors import ProtocolViolation


def test_a_portal_cannot_choose_the_coefficients_by_the_nonces_that_it_keeps_back(world) -> None:
    w = world(7).play("keys", "bundles", "ready", "update", "list", "unmask").publish(spoil=1).play("nonce")
    ready = w.coordinator.ready(w.roster, w.relayed("ready"))
    final = w.coordinator.final(w.roster, w.relayed("ready"), w.relayed("list"))
    seeds = set()
    for size in range(w.roster.threshold, len(w.silos) + 1):
        for some in itertools.combinations(w.silos, size):
            try:
                given = w.relayed("nonce", some)
                seeds.add(read_nonces(w.parameters, w.roster, ready, final, w.published, given).seed)
            except ProtocolViolation as error:
                assert error.code == "TOO_FEW_SIGNATURES"
    assert len(seeds) == 1


def test_all_nonces_are_needed_where_all_check_words_are(world, refused) -> None:
    w = world(4).play("keys", "bundles", "ready", "update", "list", "unmask").publish().play("nonce")
    del w.mail["nonce"]["site-04"]
    refused("TOO_FEW_SIGNATURES", w.machines["site-01"].send_check, w.relayed("nonce"))


def test_t_nonces_are_enough_where_a_check_word_may_be_missing(world) -> None:
    w = world(4, unverified=True)
    w.play("keys", "bundles", "ready", "update", "list", "unmask").publish().play("nonce", who=w.silos[:3])
    w.play("check", "verify", who=w.silos[:3])
    assert set(w.verified.values()) == {False}
