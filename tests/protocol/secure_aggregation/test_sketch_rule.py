"""The rule over sketches: who is left out, that everybody comes to the same set, and that directions exclude nobody."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secure_aggregation.sketch import (
    ABOVE,
    ABOVE_OTHERS,
    BELOW,
    BELOW_OTHERS,
    OVER_BOUND,
    SLACK,
    SketchError,
    cosine,
    judge,
    sketch,
)

NAMES = [f"site-{number}" for number in range(1, 7)]
WORDS = 20_000
SEGMENTS = [(WORDS, 16)]
CLIP = 2.0


def row(length: float, at: int = 0, unit: float = 2.0**16) -> np.ndarray:
    """A sketch of this norm exactly, but for rounding to integers."""
    found = np.zeros(256, dtype=np.int64)
    found[at] = round(length * unit)
    return found


def judged(lengths, *, clip=CLIP, weights=None, segments=SEGMENTS):
    names = NAMES[: len(lengths)]
    return judge(
        {name: row(length) for name, length in zip(names, lengths, strict=True)},
        weights or dict.fromkeys(names, 1),
        clip_norm=clip,
        segments=segments,
    )


# --- who is left out -------------------------------------------------------------------------------------------------


def test_an_update_over_the_norm_bound_is_left_out_and_named():
    verdict = judged([1.0, 1.5, 2.0, 1.2, 0.9, 2.8])
    assert verdict.excluded == {"site-6": OVER_BOUND}
    assert verdict.members == tuple(NAMES[:5])


@pytest.mark.parametrize("weight", [1, 3])
def test_the_bound_is_exact(weight):
    """Clip, slack, and the most that rounding adds on average: a quarter of a unit's square a word, after the weight."""
    limit = SLACK**2 * ((Fraction(CLIP) * 2**4 * weight) ** 2 + Fraction(WORDS, 4))
    most = math.isqrt(math.floor(limit))
    weights = dict.fromkeys(NAMES[:5], 1) | {"site-6": weight}
    for value, excluded in ((most, {}), (most + 1, {"site-6": OVER_BOUND})):
        last = np.zeros(256, dtype=np.int64)
        last[255] = -value
        sketches = dict.fromkeys(NAMES[:5], row(most / weight, unit=1)) | {"site-6": last}
        assert judge(sketches, weights, clip_norm=CLIP, segments=[(WORDS, 4)]).excluded == excluded


def test_where_the_bound_is_loose_the_others_still_show_what_is_far_too_long():
    assert judged([1.0, 1.0, 1.0, 1.0, 1.0, 5.01], clip=20.0).excluded == {"site-6": ABOVE_OTHERS}
    assert judged([1.0, 1.0, 1.0, 1.0, 1.0, 4.99], clip=20.0).excluded == {}


def test_an_empty_update_is_left_out():
    assert judged([1.0, 1.5, 2.0, 1.2, 0.9, 0.0]).excluded == {"site-6": BELOW_OTHERS}
    assert judged([1.0, 1.0, 1.0, 1.0, 1.0, 0.0099]).excluded == {"site-6": BELOW_OTHERS}
    assert judged([1.0, 1.0, 1.0, 1.0, 1.0, 0.0101]).excluded == {}


def test_of_silos_that_all_send_nothing_none_is_left_out():
    """A model that has stopped learning is no attack."""
    verdict = judged([0.0] * 6)
    assert (verdict.excluded, verdict.members) == ({}, tuple(NAMES))
    assert set(verdict.cosines.values()) == {None}


def test_several_at_once_are_left_out():
    verdict = judged([1.0, 0.0, 1.4, 50.0, 1.2, 1.3])
    assert verdict.excluded == {"site-2": BELOW_OTHERS, "site-4": OVER_BOUND}


def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle():
    # Squares 1, 1, 4, x: the median is 2.5, so the norm may be 5 * sqrt(2.5) = 7.91 times the smallest.
    assert judged([1.0, 1.0, 2.0, 7.9], clip=20.0).excluded == {}
    assert judged([1.0, 1.0, 2.0, 8.0], clip=20.0).excluded == {"site-4": ABOVE_OTHERS}
    assert judged([1.0, 2.0, 9.9], clip=20.0).excluded == {}
    assert judged([1.0, 2.0, 10.1], clip=20.0).excluded == {"site-3": ABOVE_OTHERS}


def test_a_weight_is_taken_out_before_norms_are_compared():
    weights = dict(zip(NAMES, (1, 1, 1, 1, 1, 4), strict=True))
    assert judged([1.0, 1.0, 1.0, 1.0, 1.0, 4.0], weights=weights).excluded == {}
    assert judged([1.0, 1.0, 1.0, 1.0, 1.0, 2.0 * 4 * 1.4], weights=weights).excluded == {"site-6": OVER_BOUND}
    assert judged([1.0] * 5 + [4.0], weights=weights).norms == dict.fromkeys(NAMES, 1.0)


def test_directions_exclude_nobody():
    """A hospital with one class alone points away from the others: that warns, and a person decides."""
    sketches = {name: row(1.0) for name in NAMES[:5]} | {"site-6": -row(1.0)}
    verdict = judge(sketches, dict.fromkeys(NAMES, 1), clip_norm=CLIP, segments=SEGMENTS)
    assert verdict.excluded == {}
    assert verdict.cosines["site-6"] == pytest.approx(-1)
    assert verdict.cosines["site-1"] == pytest.approx(1)


def test_an_honest_update_at_the_bound_stays_in_however_the_seed_falls():
    """Also with coarse words, where rounding adds more to the norm than training did."""
    draw = np.random.default_rng(5)
    segments = [(WORDS, 6)]
    for _ in range(30):
        seed, sketches = draw.bytes(32), {}
        for name in NAMES:
            update = draw.normal(size=WORDS)
            update *= CLIP / np.linalg.norm(update)
            words = np.floor(update * 2**6 + draw.random(WORDS)).astype("<i4")
            sketches[name] = sketch(seed, segments, [words])
        verdict = judge(sketches, dict.fromkeys(NAMES, 1), clip_norm=CLIP, segments=segments)
        assert verdict.excluded == {}


@pytest.mark.parametrize("factor", [3, 10, -5])
def test_three_times_the_shortest_honest_update_is_left_out_however_the_seed_falls(factor):
    """With the bound near honest norms, which here lie as far apart as on the chest set (docs/poisoning.md)."""
    draw = np.random.default_rng(6)
    for _ in range(30):
        seed, sketches = draw.bytes(32), {}
        for name, length in zip(NAMES, (1.28 * factor, 1.4, 1.4, 2.0, 2.0, 2.0), strict=True):
            update = draw.normal(size=WORDS)
            words = np.floor(update * (length * 2**16 / np.linalg.norm(update)) + draw.random(WORDS))
            sketches[name] = sketch(seed, SEGMENTS, [words.astype("<i4")])
        verdict = judge(sketches, dict.fromkeys(NAMES, 1), clip_norm=CLIP, segments=SEGMENTS)
        assert verdict.excluded == {"site-1": OVER_BOUND}


# --- everybody comes to the same set ---------------------------------------------------------------------------------

LENGTHS = st.lists(st.floats(0, 2**40) | st.sampled_from([0.0, 1.0, 2.6, 3.0]), min_size=1, max_size=8)


@settings(deadline=None)
@given(lengths=LENGTHS, order=st.randoms(use_true_random=False), weight=st.integers(1, 1000))
def test_the_order_of_the_silos_changes_nothing(lengths, order, weight):
    sketches = {f"site-{at}": row(length, at, 1.0) for at, length in enumerate(lengths)}
    weights = {silo: weight + at for at, silo in enumerate(sketches)}
    shuffled = list(sketches)
    order.shuffle(shuffled)
    found = judge(sketches, weights, clip_norm=CLIP, segments=SEGMENTS)
    again = judge({silo: sketches[silo] for silo in shuffled}, weights, clip_norm=CLIP, segments=SEGMENTS)
    assert (found.members, found.excluded, list(found.excluded)) == (
        again.members,
        again.excluded,
        list(again.excluded),
    )
    assert sorted((*found.members, *found.excluded)) == sorted(sketches)


@settings(deadline=None)
@given(draw=st.integers(0, 2**32), size=st.sampled_from([2**4, 2**20, 2**62]))
def test_the_set_is_that_of_fractions_without_limit(draw, size):
    """A second implementation, straight from the three lines of the rule; values up to the end of 64 bits."""
    generator = np.random.default_rng(draw)
    sketches = {
        name: (generator.integers(-size, size, 256) * generator.random() ** 4).astype(np.int64) for name in NAMES
    }
    weights = {name: int(generator.integers(1, 4)) for name in NAMES}
    segments = [(100, 3), (50, 5)]
    verdict = judge(sketches, weights, clip_norm=1e5, segments=segments)
    q = {name: Fraction(sum(int(value) ** 2 for value in sketches[name]), weights[name] ** 2) for name in NAMES}
    middle = sorted(q.values())[2:4]
    m = Fraction(sum(middle), 2)
    for name in NAMES:
        bound = (Fraction(1e5) * 2**5) ** 2 + Fraction(100 * 16 + 50, 4) / weights[name] ** 2
        reasons = [
            (OVER_BOUND, q[name] > SLACK**2 * bound),
            (ABOVE_OTHERS, q[name] > ABOVE**2 * m),
            (BELOW_OTHERS, q[name] < BELOW**2 * m),
        ]
        assert verdict.excluded.get(name) == next((code for code, holds in reasons if holds), None)


def test_norms_for_display_are_in_the_units_of_the_weights():
    verdict = judge(
        {"site-1": row(1.5, unit=2.0**20), "site-2": row(0.5, unit=2.0**20)},
        {"site-1": 1, "site-2": 1},
        clip_norm=CLIP,
        segments=[(10, 12), (10, 20)],
    )
    assert verdict.norms == pytest.approx({"site-1": 1.5, "site-2": 0.5})


# --- what is refused -------------------------------------------------------------------------------------------------


def test_no_sketches_are_no_judgement():
    with pytest.raises(SketchError, match="no sketch"):
        judge({}, {}, clip_norm=CLIP, segments=SEGMENTS)


@pytest.mark.parametrize("bad", [np.zeros(255, np.int64), np.zeros(256, np.int32), np.zeros((1, 256), np.int64)])
def test_what_is_no_sketch_is_refused_with_its_silo(bad):
    with pytest.raises(SketchError, match="site-2"):
        judge({"site-1": row(1.0), "site-2": bad}, {"site-1": 1, "site-2": 1}, clip_norm=CLIP, segments=SEGMENTS)


def test_a_row_of_zeros_has_no_direction():
    one = np.array([3.0, 4.0])
    assert cosine(one, np.zeros(2)) is None
    assert cosine(one, -2 * one) == pytest.approx(-1)
