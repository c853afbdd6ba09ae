"""The numbers that decide how many neighbours a silo has: against enumeration, simulation and published values."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest

from protocol.many_silos import COLLUDING, FAILURE_BITS, LOST, PRIVACY_BITS
from protocol.secure_aggregation.sparse import promised
from protocol.secure_aggregation.sparse.bounds import (
    MOST_NEIGHBOURS,
    Neighbourhood,
    most_in,
    neighbours,
    rare,
    smallest_sum,
    tail,
    ways,
)
from protocol.secure_aggregation.sparse.graph import draw

DEFAULTS = {"colluding": Fraction(1, 5), "lost": Fraction(1, 10), "privacy_bits": 40, "failure_bits": 30}


@pytest.mark.parametrize(("others", "marked", "h"), [(7, 3, 4), (8, 0, 3), (6, 6, 2), (9, 5, 9), (5, 2, 1)])
def test_tails_are_those_of_all_draws_counted(others, marked, h):
    draws = [sum(item < marked for item in drawn) for drawn in itertools.combinations(range(others), h)]
    for least in range(h + 2):
        assert tail(others, marked, h, least) == Fraction(sum(x >= least for x in draws), len(draws))
    assert dict(ways(others, marked, h)) == {x: draws.count(x) for x in set(draws)}


@pytest.mark.parametrize(("others", "marked", "h"), [(60, 12, 20), (200, 40, 50), (999, 200, 158)])
@pytest.mark.parametrize(("times", "bits"), [(1, 1), (50, 8), (800, 40)])
def test_rare_is_the_smallest_number_that_is_rare_enough(others, marked, h, times, bits):
    x = rare(others, marked, h, times=times, bits=bits)
    assert times * tail(others, marked, h, x) <= Fraction(1, 2**bits)
    assert times * tail(others, marked, h, x - 1) > Fraction(1, 2**bits)


def test_most_in_is_that_of_all_draws_counted():
    """5 silos draw 2 of 4 others each; how often a given one is drawn by more than m, counted over all 6^4 graphs."""
    rows = list(itertools.combinations(range(4), 2))
    drawn = [sum(0 in row for row in graph) for graph in itertools.product(rows, repeat=4)]
    for bits in (1, 2, 3, 5, 20):
        m = most_in(5, 2, bits=bits)
        chance = [Fraction(sum(x > most for x in drawn), len(drawn)) for most in range(5)]
        assert 5 * chance[m] <= Fraction(1, 2**bits)
        assert m == 0 or 5 * chance[m - 1] > Fraction(1, 2**bits)


def test_no_small_island_beyond_its_bound_in_all_graphs_of_six():
    """6 silos, one colludes, each draws h = 2, t = 2: over all 10^5 graphs of the honest five, how often a set of s
    honest silos exists of whom each has t of its row among the set and the colluder. The bound is never below it."""
    n, c, h, t = 6, 1, 2, 2
    silos, honest = range(n), range(c, n)
    rows = {i: [set(row) for row in itertools.combinations([j for j in silos if j != i], h)] for i in honest}
    total = smallest = 0
    counts = dict.fromkeys(range(1, n - c + 1), 0)
    sets = [set(chosen) for s in counts for chosen in itertools.combinations(honest, s)]
    for graph in itertools.product(*(rows[i] for i in honest)):
        total += 1
        row = dict(zip(honest, graph, strict=True))
        smallest = next(len(found) for found in sets if all(len(row[i] & (found | {0})) >= t for i in found))
        for s in range(smallest, n - c + 1):
            counts[s] += 1
    for bits in (1, 2, 3, 4, 5):
        least = smallest_sum(n, c, h, t, bits=bits)
        assert least == 1 or Fraction(counts[least - 1], total) <= Fraction(1, 2**bits)
    assert smallest_sum(n, c, h, t, bits=2) > 1  # the bound says something here


def _holds(n: int, c: int, gone: int, h: int, t: int, privacy: int, failure: int) -> bool:
    """The four conditions, written down once more from the definition."""

    def chance(marked: int, least: int) -> Fraction:
        draws = math.comb(n - 1, h)
        return Fraction(
            sum(math.comb(marked, x) * math.comb(n - 1 - marked, h - x) for x in range(max(least, 0), h + 1)), draws
        )

    fails = n * chance(gone, h - t + 1)
    twice = (n - c) * chance(c, 2 * t - h)
    islands = sum(float(math.comb(n - c, s) * chance(c + s - 1, t) ** s) for s in range(1, (n - c) // 2 + 1))
    return fails <= Fraction(1, 2**failure) and twice <= Fraction(1, 2**privacy) and islands <= 2.0**-privacy


@pytest.mark.parametrize("n", [12, 24, 40, 64, 100])
@pytest.mark.parametrize(("colluding", "lost"), [(Fraction(1, 5), Fraction(1, 10)), (Fraction(1, 3), Fraction(1, 20))])
def test_neighbourhood_holds_all_bounds_and_none_smaller_does(n, colluding, lost):
    try:
        found = neighbours(n, colluding=colluding, lost=lost, privacy_bits=10, failure_bits=8)
    except ValueError:
        assert not any(
            _holds(n, math.floor(colluding * n), math.ceil(lost * n), h, t, 10, 8)
            for h in range(1, n)
            for t in range(1, h + 1)
        )
        return
    c, gone = math.floor(colluding * n), math.ceil(lost * n)
    assert _holds(n, c, gone, found.h, found.t, 10, 8)
    assert not any(_holds(n, c, gone, h, t, 10, 8) for h in range(1, found.h) for t in range(1, h + 1))
    assert not any(_holds(n, c, gone, found.h, t, 10, 8) for t in range(1, found.t))
    assert found.most_in == most_in(n, found.h, bits=8)
    assert found.least > (n - c) // 2


def test_rows_of_the_real_generator_are_as_often_bad_as_the_exact_tails_say():
    """40 silos, 2,000 graphs. The sum over all silos bounds how often any is hit, and is not far above it."""
    n, h, marked, runs = 40, 18, 7, 2000
    source, rows = random.Random(5), []
    for _ in range(runs):
        drawn = [draw(source.randbytes(32), n - 1, h) for _ in range(n)]
        rows.append([{position + (position >= i) for position in drawn[i]} for i in range(n)])
    least, most = rare(n - 1, marked, h, times=n, bits=2), most_in(n, h, bits=2)
    # Silos 0 to 6 are marked; for each other silo the chance to draw `least` of them.
    hit = sum(any(sum(j < marked for j in row) >= least for row in graph[marked:]) for graph in rows) / runs
    bound = float((n - marked) * tail(n - 1, marked, h, least))
    assert bound / 2 < hit + 0.04
    assert hit < bound + 0.04
    assert hit > 0
    crowded = sum(any(sum(i in row for row in graph) > most for i in range(n)) for graph in rows) / runs
    assert 0 < crowded < 0.25 + 0.04


@pytest.mark.parametrize(
    ("n", "colluding", "lost", "degree", "threshold"),
    [
        (100, (33, 100), (1, 20), 42, 37),
        (1000, (33, 100), (1, 20), 132, 109),
        (10_000, (33, 100), (1, 20), 178, 146),
        (1000, (1, 20), (33, 100), 398, 223),
        (100, (3, 10), (3, 10), 92, 62),
    ],
)
def test_published_degrees_of_another_implementation_come_out_of_our_tails(n, colluding, lost, degree, threshold):
    """Degrees and thresholds of a public SecAgg+ server (google-parfait/federated-compute, secagg's
    graph_parameter_finder_test.cc, semi-malicious server, 41 and 20 bits). Its graph and its draws differ from ours
    (an even degree, drawn from all n), its conditions on holders are our 1 and 2."""
    bad, live = math.floor(Fraction(*colluding) * n), math.ceil((1 - Fraction(*lost)) * n)
    for k in range(2, n, 2):
        most_bad = rare(n, bad, k, times=n, bits=41) - 1
        least_live = k - rare(n, n - live, k, times=n, bits=20) + 1
        t = math.ceil((most_bad + k - 1.25) / 2) + 1
        if t <= least_live:
            break
    assert k == degree
    assert t <= threshold  # as that test asks


def test_neighbourhoods_at_the_defaults():
    """What docs/many-silos.md prints; h grows with log n."""
    found = {n: neighbours(n, **DEFAULTS) for n in (64, 128, 256, 512, 1000)}
    assert [(hood.h, hood.t) for hood in found.values()] == [(27, 20), (52, 39), (93, 68), (129, 94), (158, 115)]
    assert found[1000] == Neighbourhood(158, 115, 244, 512)


def test_impossible_demands_are_refused():
    with pytest.raises(ValueError, match="no neighbourhood"):
        neighbours(40, **DEFAULTS | {"colluding": Fraction(1, 2), "lost": Fraction(1, 3)})
    with pytest.raises(ValueError, match=f"up to {MOST_NEIGHBOURS}"):
        neighbours(1000, **DEFAULTS | {"lost": Fraction(1, 4)})


def test_what_is_promised_is_what_every_round_is_made_with(sparse):
    this = sparse(12, colluding=COLLUDING, lost=LOST, privacy_bits=PRIVACY_BITS, failure_bits=FAILURE_BITS)
    assert promised(12) == this.parameters.neighbourhood
    assert (Fraction(1, 5), Fraction(1, 10), 40, 30) == (COLLUDING, LOST, PRIVACY_BITS, FAILURE_BITS)
