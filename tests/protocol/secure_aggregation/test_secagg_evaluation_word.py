"""What a check word tells in a round that only evaluates, where nothing but the small numbers of the tail is in it."""

from __future__ import annotations

import numpy as np

from protocol.evaluation import FRONT, LOSS_UNIT, TOTAL, encode_tail, tail_length
from protocol.messages import Check
from protocol.secure_aggregation.check_word import PRIME
from protocol.secure_aggregation.checks import read_nonces
from protocol.secure_aggregation.prg import Stream

BINS, IMAGES = 6, 16


def _histograms(bins: int, left: int):
    """Every way in which `left` scores can lie in `bins` bins."""
    if bins == 1:
        yield (left,)
        return
    for first in range(left + 1):
        for rest in _histograms(bins - 1, left - first):
            yield (first, *rest)


def _guessed(word: int, coefficients: list[int]) -> list[tuple[tuple[int, ...], int]]:
    """Every evaluation (histogram of one class, loss below 16) of a hospital with IMAGES test pictures that has this word."""
    inverse = pow(coefficients[1], -1, PRIME)
    found = []
    for counts in _histograms(BINS, IMAGES):
        known = coefficients[0] + sum(coefficients[FRONT + k] * count for k, count in enumerate(counts)) * (
            TOTAL // IMAGES
        )
        loss = (word - known) * inverse % PRIME
        if loss < 16 * LOSS_UNIT:
            found.append((counts, loss))
    return found


def test_a_check_word_on_an_evaluation_alone_tells_nobody_what_one_hospital_scored(world) -> None:
    w = world(4, words=0, tail=tail_length(BINS))
    victim, counts = "site-02", (5, 1, 0, 7, 2, 1)
    for name in w.silos:
        mine = counts if name == victim else (0, 4, 4, 4, 4, 0)
        w.updates[name] = (
            w.updates[name][0],
            encode_tail(loss=0.71, auc=None, histograms=np.array([mine, [0] * BINS])),
        )
    w.play("keys", "bundles", "ready", "update", "list", "unmask").publish().play("nonce", "check")
    # All that follows is in the signed messages that the portal relays.
    ready = w.coordinator.ready(w.roster, w.relayed("ready"))
    final = w.coordinator.final(w.roster, w.relayed("ready"), w.relayed("list"))
    seed = read_nonces(w.parameters, w.roster, ready, final, w.published, w.relayed("nonce")).seed
    stream = Stream(seed, "check", w.parameters.ctx).at(0).update(bytes(8 * w.parameters.tail))
    coefficients = (np.frombuffer(stream, dtype="<u8") & np.uint64(PRIME)).tolist()
    word = int.from_bytes(Check.parse(w.mail["check"][victim].payload).word, "big")
    assert (counts, int(w.updates[victim][1][1])) not in _guessed(word, coefficients)
    w.play("verify")
    assert all(w.verified.values())
