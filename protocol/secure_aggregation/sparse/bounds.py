"""How many neighbours a silo needs, and how many shares: from what may be lost and who may collude.

n silos, c = floor(colluding * n) of them with the portal, l = ceil(lost * n) lost in a round. Each silo draws h others
at random without replacement; X silos of a given set of K are among them with the hypergeometric law
P[X = x] = C(K, x) C(n-1-K, h-x) / C(n-1, h). Four things must hold:

1. failure      n * P[h - lost_i < t] <= 2^-failure_bits, lost_i drawn from K = l: every secret can be rebuilt.
2. two stories  (n-c) * P[2t <= h + c_i] <= 2^-privacy_bits, c_i drawn from K = c: t holders cannot give a share of
                b and t others one of K of the same silo, whatever each of them was told. It follows that t > c_i.
3. islands      the sum over s of C(n-c, s) * P[Y_s >= t]^s <= 2^-privacy_bits, Y_s drawn from K = c + s - 1, for s up
                to half of the honest silos: no set of s honest silos exists of whom each has t of its neighbours among
                the set and the colluders. Only such a set could be summed alone (docs/many-silos.md), so any sum that
                can be learned is over more than half of the honest silos, and there is one.
4. in-degree    n * P[more than `most_in` of the n-1 others draw one silo] <= 2^-failure_bits: a silo may refuse more.

3 takes the place of a bound on connectedness after random losses, which says nothing where the portal chooses whom to
call lost after it saw the graph: calling all neighbours of one silo lost would leave it alone. It is a union bound over
all sets, so it holds for any choice of the portal. 1, 2 and 4 are exact integers; 3 is in logarithms, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

MOST_NEIGHBOURS: Final = 255
"""Shares are points of GF(2^8) without 0."""
_ROUNDING: Final = 1e-6
"""Bits added to every logarithm: far more than the error of a double."""


@dataclass(frozen=True)
class Neighbourhood:
    """h: neighbours that a silo draws. t: shares that rebuild a secret. most_in: silos that may draw one silo.
    least: the smallest number of honest silos over which a sum can be learned."""

    h: int
    t: int
    most_in: int
    least: int


@lru_cache(maxsize=64)
def neighbours(n: int, *, colluding: Fraction, lost: Fraction, privacy_bits: int, failure_bits: int) -> Neighbourhood:
    """The smallest h for n silos, with the smallest t that goes with it.

    Raises:
        ValueError: no h of at most 255 satisfies the bounds.
    """
    c, gone = math.floor(colluding * n), math.ceil(lost * n)
    honest = n - c
    for h in range(1, min(MOST_NEIGHBOURS, n - 1) + 1):
        colluders = rare(n - 1, c, h, times=honest, bits=privacy_bits)
        losses = rare(n - 1, gone, h, times=n, bits=failure_bits)
        for t in range((h + colluders + 1) // 2, h - losses + 2):
            least = smallest_sum(n, c, h, t, bits=privacy_bits)
            if least > honest // 2:
                return Neighbourhood(h, t, most_in(n, h, bits=failure_bits), least)
    raise ValueError(f"no neighbourhood of up to {MOST_NEIGHBOURS} silos fits {n} silos, {c} colluding, {gone} lost")


def ways(others: int, marked: int, h: int) -> Iterator[tuple[int, int]]:
    """(x, number of ways to draw h of `others` with exactly x marked), from the largest x down."""
    high, low = min(marked, h), max(0, h - (others - marked))
    count = math.comb(marked, high) * math.comb(others - marked, h - high)
    for x in range(high, low - 1, -1):
        yield x, count
        count = count * x * (others - marked - h + x) // ((marked - x + 1) * (h - x + 1))


def tail(others: int, marked: int, h: int, least: int) -> Fraction:
    """P[X >= least]: at least `least` marked among h drawn of `others`."""
    above = sum(count for x, count in ways(others, marked, h) if x >= least)
    return Fraction(above, math.comb(others, h))


def rare(others: int, marked: int, h: int, *, times: int, bits: int) -> int:
    """The smallest x with times * P[X >= x] <= 2^-bits."""
    all_ways, pairs, above, x = math.comb(others, h), ways(others, marked, h), 0, h + 1
    while times * above << bits <= all_ways:
        x, count = next(pairs)
        above += count
    return x + 1


def smallest_sum(n: int, c: int, h: int, t: int, *, bits: int) -> int:
    """The smallest number of honest silos of whom each may have t of its neighbours among them and the colluders.

    Sets that are smaller exist with a chance of at most 2^-bits, over all of them.
    """
    honest, total, s = n - c, 0.0, 0
    while total <= 2.0**-bits:  # all honest silos together are such a set, so this ends
        s += 1
        chance = tail(n - 1, c + s - 1, h, t)
        if chance:
            total += 2.0 ** max(-1000.0, _log2(math.comb(honest, s)) + s * _log2_ratio(chance))
    return s


def most_in(n: int, h: int, *, bits: int) -> int:
    """The smallest m with n * P[more than m of n-1 others draw a given silo] <= 2^-bits; each does so in h of n-1."""
    others, above, x = n - 1, 0, n
    whole = others**others
    while n * above << bits <= whole:
        x -= 1
        above += math.comb(others, x) * h**x * (others - h) ** (others - x)
    return x


def _log2(number: int) -> float:
    return math.log2(number) + _ROUNDING


def _log2_ratio(chance: Fraction) -> float:
    return min(0.0, math.log2(chance.numerator) - math.log2(chance.denominator) + _ROUNDING)
