"""Scales that follow the sum: exact, the same everywhere, and no update within its bounds can make a sum wrap round."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.model_state import LEAST_SCALE, MOST_SCALE, TensorSpec
from protocol.secure_aggregation import scales as module
from protocol.secure_aggregation import sketch
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.scales import (
    FALL,
    MARGIN,
    SMALL,
    SMALL_MARGIN,
    FixedPoint,
    Maxima,
    ScalesError,
    Spread,
    ceil_log2,
    cut,
)

TABLE = (
    TensorSpec("a", (SMALL + 1,)),
    TensorSpec("ice", (9,), "frozen"),
    TensorSpec("b", (2, 2)),
    TensorSpec("c", ()),
)


@st.composite
def studies(draw: Any) -> FixedPoint:
    """A study whose scales follow the sum, whatever its numbers are, if they are accepted."""
    weights = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    numbers = {
        "word_bits": draw(st.sampled_from([12, 16, 24, 32])),
        "fraction_bits": None,
        "clip_norm": draw(st.floats(1e-9, 1e6)),
        "silos": draw(st.integers(1, 120)),
        "heaviest": max(weights),
        "lightest": min(weights),
    }
    try:
        return FixedPoint(**numbers)
    except ScalesError:
        assume(False)
        raise


@given(st.fractions(min_value=Fraction(1, 10**30), max_value=10**30))
def test_the_power_of_two_is_the_least_that_suffices(value: Fraction) -> None:
    assert Fraction(2) ** (ceil_log2(value) - 1) < value <= Fraction(2) ** ceil_log2(value)


@given(studies(), st.lists(st.integers(LEAST_SCALE, MOST_SCALE), min_size=3, max_size=3))
def test_no_sum_of_updates_within_their_bounds_leaves_the_words(fixed: FixedPoint, exponents: list[int]) -> None:
    scales = tuple(min(each, fixed.most) for each in exponents)
    segments = fixed.segments(TABLE, scales)
    assert sum(words for words, _ in segments) == SMALL + 6
    for bits, bound in zip(
        (bits for _, bits in segments), fixed.word_bounds(segments, [fixed.heaviest] * fixed.silos), strict=True
    ):
        assert fixed.silos * (fixed.bound(bits) * fixed.heaviest * 2**bits + 1) <= 2 ** (fixed.word_bits - 1) - 1
        assert bound <= 2 ** (fixed.word_bits - 1) - 1
        assert bits >= 0


@given(studies(), st.lists(st.integers(LEAST_SCALE, MOST_SCALE), min_size=3, max_size=3))
def test_a_tensor_is_never_cut_below_its_own_bound(fixed: FixedPoint, exponents: list[int]) -> None:
    scales = tuple(min(each, fixed.most) for each in exponents)
    places = fixed._places(TABLE, scales)
    for scale, bits in zip(scales, places, strict=True):
        assert fixed.bound(bits) >= min(Fraction(2) ** scale, Fraction(fixed.clip_norm))


@given(studies(), st.lists(st.integers(LEAST_SCALE, MOST_SCALE), min_size=3, max_size=3), st.integers(1, 2**31 - 1))
def test_scales_lie_so_close_together_that_every_sketch_fits(fixed: FixedPoint, exponents: list[int], d: int) -> None:
    table = (TensorSpec("a", (d,)), TensorSpec("b", (1,)), TensorSpec("c", (1,)))
    sketch.prove_range(fixed.segments(table, tuple(min(each, fixed.most) for each in exponents)), fixed.word_bits)


@given(
    studies(),
    st.lists(st.tuples(st.integers(1, 20_000), st.integers(LEAST_SCALE, MOST_SCALE)), min_size=1, max_size=6),
)
def test_no_few_words_have_a_finer_scale_than_all_others_where_sketches_are_shown(
    fixed: FixedPoint, tensors: list[tuple[int, int]]
) -> None:
    fixed = dataclasses.replace(fixed, crowd=sketch.LEAST_WORDS)
    table = tuple(TensorSpec(f"t{k}", (size,)) for k, (size, _) in enumerate(tensors))
    segments = fixed.segments(table, tuple(min(scale, fixed.most) for _, scale in tensors))
    finest = max(bits for _, bits in segments)
    least = min(sketch.LEAST_WORDS, sum(size for size, _ in segments))
    assert sum(size for size, bits in segments if bits == finest) >= least


@given(studies())
def test_the_lightest_silo_keeps_four_bits_in_every_study_that_is_accepted(fixed: FixedPoint) -> None:
    scales = fixed.initial(TABLE)
    assert scales is not None
    for scale, bits in zip(scales, fixed._places(TABLE, scales), strict=True):
        assert fixed.lightest * Fraction(2) ** (scale + bits) >= 16


@given(
    studies(),
    st.lists(st.integers(LEAST_SCALE, MOST_SCALE), min_size=3, max_size=3),
    st.lists(st.integers(0, 2**31), min_size=3, max_size=3),
    st.integers(1, 2**20),
)
def test_the_next_bound_holds_what_the_sum_shows_and_moves_by_the_rules(
    fixed: FixedPoint, exponents: list[int], maxima: list[int], weight: int
) -> None:
    scales = tuple(min(each, fixed.most) for each in exponents)
    found = fixed.next_scales(TABLE, scales, maxima, total_weight=weight)
    assert found is not None
    assert found == fixed.next_scales(TABLE, scales, maxima, total_weight=weight)
    margins = (MARGIN, SMALL_MARGIN, SMALL_MARGIN)
    places = fixed._places(TABLE, scales)
    for old, new, bits, margin, m in zip(scales, found, places, margins, maxima, strict=True):
        wanted = Fraction(margin * m, weight) / 2**bits
        assert LEAST_SCALE <= new <= fixed.most and new >= old - FALL
        if m == 0:
            assert new == old
        else:
            assert new == fixed.most or Fraction(2) ** new >= wanted
            assert new in (LEAST_SCALE, old - FALL) or Fraction(2) ** (new - 1) < wanted
    more = fixed.next_scales(TABLE, scales, [m + 1 if m else 0 for m in maxima], total_weight=weight)
    assert more is not None and all(one >= other for one, other in zip(more, found, strict=True))


def test_a_tensor_that_reaches_its_bound_gets_a_wider_one() -> None:
    fixed = FixedPoint(16, None, 8.0, 4)
    scales = (-6, -6, -6)
    (bound, *_) = fixed.word_bounds(fixed.segments(TABLE, scales), [1] * 4)
    assert fixed.next_scales(TABLE, scales, [bound - 4] * 3, total_weight=4) == (-4, -2, -2)


def test_the_first_bounds_follow_from_clip_norm_and_the_number_of_weights() -> None:
    assert FixedPoint(16, None, 1.0, 4).initial((TensorSpec("a", (1 << 12,)), TensorSpec("b", (1,), "local"))) == (-3,)
    assert FixedPoint(16, None, 1.0, 4).initial((TensorSpec("a", ((1 << 12) - 1,)),)) == (-2,)
    # Of one weight alone: no bound above that of the whole update.
    assert FixedPoint(16, None, 1.0, 4).initial((TensorSpec("a", (1,)),)) == (0,)
    assert FixedPoint(32, 20, 1.0, 4).initial(TABLE) is None


def test_neighbours_of_one_scale_are_one_segment() -> None:
    fixed = FixedPoint(16, None, 1.0, 3)
    assert fixed.levels == 13
    assert fixed.segments(TABLE, (-3, -3, -4)) == (Segment(SMALL + 5, 16), Segment(1, 17))
    assert FixedPoint(16, 5, 1.0, 3).segments(TABLE, None) == (Segment(SMALL + 6, 5),)


def test_a_bound_is_never_above_the_length_of_the_whole_update() -> None:
    fixed = FixedPoint(16, None, 0.75, 3)
    assert fixed.most == 0 and fixed.bound(13) == Fraction(3, 4) and fixed.bound(14) == Fraction(1, 2)
    assert FixedPoint(16, 5, 0.75, 3).bound(5) == Fraction(3, 4)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"word_bits": 1}, "word_bits from 2 to 32"),
        ({"word_bits": 33}, "word_bits from 2 to 32"),
        ({"silos": 0}, "at least one silo"),
        ({"lightest": 0}, "weights from 1 on"),
        ({"lightest": 2}, "weights from 1 on"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"clip_norm": float("inf")}, "clip_norm"),
        ({"fraction_bits": -1}, "at least 0"),
        ({"fraction_bits": 13}, "could overflow a sum of 16 bits; lower fraction_bits"),
        ({"silos": 2000}, "less than 4 bits of its own, with 2000 silos .*: take more word_bits"),
        ({"silos": 32767}, "take more word_bits"),
        ({"heaviest": 1000}, "weights that lie closer together"),
        ({"clip_norm": 1e6}, "can't hold whole numbers up to clip_norm 1e\\+06, .*: take more word_bits, a smaller"),
    ],
)
def test_numbers_that_no_scale_fits_are_refused_with_what_to_change(numbers: dict[str, Any], why: str) -> None:
    good = {"word_bits": 16, "fraction_bits": None, "clip_norm": 1.0, "silos": 4}
    FixedPoint(**good)
    with pytest.raises(ScalesError, match=why):
        FixedPoint(**(good | numbers))


def test_12_bits_take_as_many_silos_as_leave_four_bits_each() -> None:
    FixedPoint(12, None, 1.0, 120)
    with pytest.raises(ScalesError, match="less than 4 bits"):
        FixedPoint(12, None, 1.0, 121)


def test_scales_that_are_not_those_of_the_study_are_refused() -> None:
    open_, closed = FixedPoint(16, None, 1.0, 3), FixedPoint(16, 5, 1.0, 3)
    with pytest.raises(ScalesError, match="carries no scales"):
        open_.segments(TABLE, None)
    with pytest.raises(ScalesError, match="carries scales"):
        closed.segments(TABLE, (0, 0, 0))
    with pytest.raises(ScalesError, match="above 2\\^0"):
        open_.segments(TABLE, (0, 1, 0))
    for maxima, weight in (([1, 2], 3), ([1, 2, 3], 0)):
        with pytest.raises(ScalesError, match="maximum"):
            open_.next_scales(TABLE, (0, 0, 0), maxima, total_weight=weight)
    assert closed.next_scales(TABLE, None, [1, 2, 3], total_weight=3) is None


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=8), st.data())
def test_a_range_of_words_has_the_numbers_of_its_segments(runs: list[tuple[int, int]], data: Any) -> None:
    segments = tuple(Segment(*run) for run in runs)
    numbers = list(range(len(runs)))
    expected = np.repeat(numbers, [words for words, _ in runs])
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start + 1, len(expected)))
    found = Spread(segments, numbers, np.int64).of(start, stop)
    assert np.broadcast_to(found, stop - start).tolist() == expected[start:stop].tolist()
    bits = np.repeat([bits for _, bits in runs], [words for words, _ in runs])
    there = list(cut(segments, start, stop))
    assert np.repeat([b for _, b in there], [w for w, _ in there]).tolist() == bits[start:stop].tolist()


@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["shared", "frozen", "local"])), min_size=1, max_size=8),
    st.data(),
)
def test_the_largest_words_of_a_sum_do_not_depend_on_its_pieces(tensors: list[tuple[int, str]], data: Any) -> None:
    table = tuple(TensorSpec(f"t{i}", (size,), kind) for i, (size, kind) in enumerate(tensors))
    sizes = [size for size, kind in tensors if kind == "shared"]
    assume(sizes)
    kind = data.draw(st.sampled_from(["<i4", "<i2"]))
    edge = 2 ** (8 * np.dtype(kind).itemsize - 1)
    words = data.draw(st.lists(st.integers(-edge, edge - 1), min_size=sum(sizes), max_size=sum(sizes)))
    borders = [0, *sorted(data.draw(st.lists(st.integers(0, len(words)), max_size=4))), len(words)]
    found = Maxima(table)
    for low, high in itertools.pairwise(borders):
        found.add(np.array(words[low:high], dtype=kind))
    ends = np.cumsum(sizes)
    expected = [max(abs(word) for word in words[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    assert list(found.values()) == expected


def test_words_too_many_or_too_few_are_refused() -> None:
    found = Maxima(TABLE)
    found.add(np.zeros(SMALL + 5, dtype="<i4"))
    with pytest.raises(ScalesError, match="fewer"):
        found.values()
    with pytest.raises(ScalesError, match="more"):
        found.add(np.zeros(2, dtype="<i4"))


def test_the_rules_are_the_documented_ones() -> None:
    assert (MARGIN, SMALL_MARGIN, SMALL) == (4, 16, 256)
    assert (FALL, module.FIRST, module.LEAST_BITS) == (1, 8, 4)
