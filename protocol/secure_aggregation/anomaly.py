"""What rounds together show about each silo: for people to look at. Nothing here excludes anybody.

A quiet attack (flipped signs or labels, a backdoor) has an honest update's norm. Its direction, summed over rounds, and
what the model gains with and without it may warn; docs/poisoning.md says how far, measured on real images. Floats
throughout: the last digits may differ between machines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protocol.secure_aggregation.sketch import SKETCH_WORDS, Sketch

FEWEST_OTHERS = 3
"""Fewer other silos have no spread that a z-score could be taken against."""
FEWEST_ROUNDS = 2
"""Rounds with, and rounds without a silo, that a standard error needs."""


@dataclass(frozen=True)
class RoundRecord:
    """One round, as everybody can read it.

    sketches: silo -> its signed sketch, of all who sent one; empty where the manifest has no sketches.
    members: whose updates were summed. auc: of the model that came in, over all silos; None where it is not known.
    """

    sketches: Mapping[str, Sketch]
    members: Collection[str]
    auc: float | None


@dataclass(frozen=True)
class Direction:
    """cosine: of a silo's sketches with the others' sums, all rounds laid end to end (the seed differs a round, so
    sketches of two rounds cannot be added); -1 to 1. z: how many standard deviations of the other silos' cosines it lies
    from their mean; None with fewer than three others, or where they are all alike. rounds: that it rests on."""

    cosine: float
    z: float | None
    rounds: int


@dataclass(frozen=True)
class Gain:
    """difference: the mean gain in AUC of rounds with the silo, less that of rounds without. error: its standard error.
    rounds_with, rounds_without: that it rests on."""

    difference: float
    error: float
    rounds_with: int
    rounds_without: int


def directions(rounds: Sequence[RoundRecord], weights: Mapping[str, int]) -> dict[str, Direction]:
    """Each silo's direction over all rounds against the other members' (sketches over their weights).

    The cosine is sum of p_i . o_i over rounds / sqrt(sum |p_i|^2 * sum |o_i|^2), with o_i the sum over the other members.
    A silo without a round in which both are there and not zero is left out.
    """
    products: dict[str, list[tuple[float, float, float]]] = {}
    for record in rounds:
        rows = {silo: row.astype(np.float64) / weights[silo] for silo, row in record.sketches.items()}
        total = sum((rows[silo] for silo in record.members if silo in rows), np.zeros(SKETCH_WORDS))
        for silo, row in rows.items():
            others = total - row if silo in record.members else total
            products.setdefault(silo, []).append(
                (float(np.sum(row * others)), float(row @ row), float(others @ others))
            )
    found = {}
    for silo, parts in products.items():
        dot, own, other = (sum(column) for column in zip(*parts, strict=True))
        if own and other:
            found[silo] = (dot / math.sqrt(own * other), len(parts))
    return {
        silo: Direction(value, _z(value, [other for name, (other, _) in found.items() if name != silo]), count)
        for silo, (value, count) in sorted(found.items())
    }


def gains(rounds: Sequence[RoundRecord]) -> dict[str, Gain]:
    """What the model gained in rounds with each silo, against rounds without it.

    A round's gain is the next round's AUC less its own; rounds next to one whose AUC is not known are left out, and silos
    that have fewer than two rounds on either side. Says something only where participation was drawn at random.
    """
    known = [
        (set(one.members), following.auc - one.auc)
        for one, following in itertools.pairwise(rounds)
        if one.auc is not None and following.auc is not None
    ]
    found = {}
    for silo in sorted(set().union(*(members for members, _ in known))):
        present = [gain for members, gain in known if silo in members]
        absent = [gain for members, gain in known if silo not in members]
        if min(len(present), len(absent)) >= FEWEST_ROUNDS:
            error = math.sqrt(sum(float(np.var(side, ddof=1)) / len(side) for side in (present, absent)))
            found[silo] = Gain(float(np.mean(present) - np.mean(absent)), error, len(present), len(absent))
    return found


def _z(value: float, others: list[float]) -> float | None:
    spread = float(np.std(others, ddof=1)) if len(others) >= FEWEST_OTHERS else 0.0
    return (value - float(np.mean(others))) / spread if spread else None
