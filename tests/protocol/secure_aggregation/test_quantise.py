"""From floats to words: what is refused, that rounding is fair, and that what the words leave out comes out in the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.model_state import TensorSpec
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.quantise import BLOCK, QuantisationError, clip, quantise
from protocol.secure_aggregation.scales import FixedPoint
from protocol.secure_aggregation.words import WORD_BITS, lane, signed

ROWS = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(-50, 50, width=32))


def fixed_at(fraction_bits, *, weight=1, n=4, clip_norm=1.0, word_bits=32) -> FixedPoint:
    return FixedPoint(word_bits, fraction_bits, clip_norm, n, heaviest=weight)


def words_of(update: np.ndarray, *, weight=1, fraction_bits=16, seed=0, **numbers) -> np.ndarray:
    fixed = fixed_at(fraction_bits, weight=weight, **numbers)
    segments = (Segment(update.size, fraction_bits),) if update.size else ()
    return quantise(update, fixed, segments, weight=weight, rng=np.random.default_rng(seed))


@given(update=ROWS, norm=st.floats(2**-10, 100))
def test_clipped_update_is_never_longer_than_the_bound_and_keeps_its_direction(update, norm):
    clipped = clip(update, norm)
    exact = update.astype(np.float64)
    assert clipped.dtype == np.float32
    assert np.linalg.norm(clipped.astype(np.float64)) <= norm * (1 + 1e-6)
    assert np.abs(clipped.astype(np.float64)).max(initial=0) <= norm
    if np.linalg.norm(exact) <= norm:
        assert np.array_equal(clipped, update)
    else:
        scale = norm / np.linalg.norm(exact)
        assert np.allclose(clipped, exact * scale, rtol=1e-5, atol=1e-30)


def test_update_of_many_blocks_is_clipped_as_a_whole():
    update = np.full(3 * BLOCK + 5, 0.01, dtype=np.float32)
    assert np.linalg.norm(clip(update, 1.0).astype(np.float64)) == pytest.approx(1, rel=1e-5)


@settings(deadline=None)
@given(
    update=hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-1, 1, width=32)),
    weight=st.integers(1, 50),
    fraction=st.floats(0, 1),
    word_bits=st.sampled_from(WORD_BITS),
    seed=st.integers(0, 99),
)
def test_word_is_one_of_the_two_nearest_integers(update, weight, fraction, word_bits, seed):
    """Up to the largest number of binary places that the proof lets through."""
    n = 5
    most = int(np.log2((2 ** (word_bits - 1) / n - 1.001) / weight))
    fraction_bits = round(fraction * most)
    lanes = words_of(update, weight=weight, fraction_bits=fraction_bits, n=n, word_bits=word_bits, seed=seed)
    assert lanes.dtype == lane(word_bits)
    words = signed(lanes, word_bits).astype(np.int64)
    # The sign fills the lane, so a lane read as a whole has the same value.
    assert np.array_equal(lanes.view(f"<i{lanes.itemsize}"), words)
    exact = update.astype(np.float64) * weight * 2.0**fraction_bits
    assert np.all(np.abs(words - exact) < 1)
    # Its part of the proof: n such words stay within the signed range.
    assert np.all(np.abs(words) * n < 2 ** (word_bits - 1))


def test_integers_stay_what_they_are():
    update = np.array([0, 1, -1, 0.5, -0.25], dtype=np.float32)
    assert words_of(update, fraction_bits=2).view("<i4").tolist() == [0, 4, -4, 2, -1]


def test_rounding_is_fair():
    update = np.full(200_000, 0.3, dtype=np.float32)
    words = words_of(update, fraction_bits=0).view("<i4")
    assert set(np.unique(words)) == {0, 1}
    assert words.mean() == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 200_000))
    negative = words_of(-update, fraction_bits=0, seed=1).view("<i4")
    assert negative.mean() == pytest.approx(-0.3, abs=5 * np.sqrt(0.21 / 200_000))


def test_same_generator_gives_the_same_words_and_the_update_is_left_alone():
    update = np.linspace(-1, 1, 2 * BLOCK + 3, dtype=np.float32)
    before = update.copy()
    assert np.array_equal(words_of(update, seed=3), words_of(update, seed=3))
    assert not np.array_equal(words_of(update, seed=3), words_of(update, seed=4))
    assert np.array_equal(update, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_update_that_is_not_finite_is_refused(value):
    for at in (0, BLOCK, BLOCK + 7):
        update = np.zeros(BLOCK + 8, dtype=np.float32)
        update[at] = value
        with pytest.raises(QuantisationError, match="NaN"):
            clip(update, 1.0)
        with pytest.raises(QuantisationError, match="NaN"):
            words_of(update)


def test_update_that_is_not_clipped_is_refused():
    for value in (1.0001, -1.0001):
        with pytest.raises(QuantisationError, match="beyond clip_norm"):
            words_of(np.array([0, value], dtype=np.float32))


def test_other_rows_and_word_sizes_are_refused():
    for update in (np.zeros((2, 2), np.float32), np.zeros(3, np.float64), np.zeros(3, np.int32)):
        with pytest.raises(QuantisationError, match="one row of float32"):
            clip(update, 1.0)
        with pytest.raises(QuantisationError, match="one row of float32"):
            words_of(update)
    for word_bits in (8, 20):
        with pytest.raises(QuantisationError, match="word_bits must be 32, 24, 16 or 12"):
            words_of(np.zeros(1, np.float32), fraction_bits=1, word_bits=word_bits)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_bound_that_is_no_positive_number_is_refused(norm):
    with pytest.raises(QuantisationError, match="clip_norm"):
        clip(np.zeros(1, np.float32), norm)


# --- each tensor in its own scale, and what is left out ------------------------------------------------------------------

TABLE = (TensorSpec("a", (BLOCK - 7,)), TensorSpec("b", (20,)), TensorSpec("c", (BLOCK,)))
D = 2 * BLOCK + 13
OPEN = FixedPoint(16, None, 4.0, 3, heaviest=2)


def drawn(seed: int, length: float = 3.9) -> np.ndarray:
    update = np.random.default_rng(seed).normal(size=D).astype("<f4")
    return (update * np.float32(length / np.linalg.norm(update))).astype("<f4")


def units(segments: Any, weight: int) -> np.ndarray:
    return weight * 2.0 ** np.repeat([bits for _, bits in segments], [words for words, _ in segments])


@given(seed=st.integers(0, 99), weight=st.integers(1, 2), scales=st.tuples(*[st.integers(-12, 2)] * 3))
def test_words_and_residual_add_up_to_the_update(seed: int, weight: int, scales: tuple[int, int, int]) -> None:
    update, segments = drawn(seed), OPEN.segments(TABLE, scales)
    left = np.empty(D, dtype="<f4")
    words = quantise(update, OPEN, segments, weight=weight, rng=np.random.default_rng(seed), residual=left).view("<i2")
    (*_, bound) = OPEN.word_bounds(segments, [weight])
    assert np.abs(words).max() <= bound
    unit = units(segments, weight)
    assert np.abs(words / unit + left - update).max() <= 2.0**-22 * np.abs(update).max()
    within = np.abs(update) <= np.repeat(
        [float(OPEN.bound(bits)) for _, bits in segments], [size for size, _ in segments]
    )
    assert np.abs(left * unit)[within].max(initial=0) <= 1 + 2.0**-10


def test_an_element_beyond_its_tensors_bound_is_cut_to_it_and_the_rest_is_owed() -> None:
    update = np.zeros(D, dtype="<f4")
    update[[0, 1, BLOCK]] = [1.0, -1.5, 1.0]
    segments = OPEN.segments(TABLE, (-1, 1, -1))
    left = np.empty(D, dtype="<f4")
    words = quantise(update, OPEN, segments, weight=2, rng=np.random.default_rng(0), residual=left).view("<i2")
    largest = 2 * 2**OPEN.levels
    assert words[[0, 1, BLOCK]].tolist() == [largest, -largest, largest // 2]
    assert left[[0, 1, BLOCK]].tolist() == [0.5, -1.0, 0.0]


def test_a_residual_that_is_added_again_brings_the_mean_to_what_was_meant() -> None:
    """With a scale so coarse that one round sends mostly noise, and a bound that cuts."""
    coarse = FixedPoint(12, None, 4.0, 10, heaviest=1)
    table = (TensorSpec("a", (500,)),)
    rng = np.random.default_rng(3)
    meant = rng.normal(scale=0.05, size=(300, 500)).astype("<f4")
    segments = coarse.segments(table, (-3,))
    errors = {}
    for feedback in (False, True):
        sent, owed = np.zeros(500), np.zeros(500, dtype="<f4")
        for update in meant:
            whole = clip(update + owed if feedback else update, 4.0)
            words = quantise(whole, coarse, segments, weight=1, rng=rng, residual=owed).view("<i2")
            sent += words / units(segments, 1)
        errors[feedback] = np.abs(sent - meant.sum(axis=0)).max()
    assert errors[True] <= 1.01 * (np.abs(owed).max() + 1e-4)
    assert errors[True] < errors[False] / 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 4.5, -4.5])
def test_an_update_that_is_not_finite_or_not_clipped_is_refused(value: float) -> None:
    update = drawn(2)
    update[BLOCK + 3] = value
    for fixed, scales in ((OPEN, (0, 0, 0)), (FixedPoint(32, 20, 4.0, 3), None)):
        with pytest.raises(QuantisationError, match="nothing is sent"):
            quantise(update, fixed, fixed.segments(TABLE, scales), weight=1, rng=np.random.default_rng(0))


def test_shapes_types_and_weights_that_do_not_fit_are_refused() -> None:
    segments = OPEN.segments(TABLE, (0, 0, 0))
    rng = np.random.default_rng(0)
    for update, given_segments in (
        (drawn(1)[1:], segments),
        (drawn(1), (*segments, Segment(1, 3))),
    ):
        with pytest.raises(QuantisationError, match="a word for each"):
            quantise(update, OPEN, given_segments, weight=1, rng=rng)
    for left in (np.empty(D - 1, dtype="<f4"), np.empty(D, dtype="<f8")):
        with pytest.raises(QuantisationError, match="residual"):
            quantise(drawn(1), OPEN, segments, weight=1, rng=rng, residual=left)
    for weight in (0, 3):
        with pytest.raises(QuantisationError, match="weight"):
            quantise(drawn(1), OPEN, segments, weight=weight, rng=rng)
