"""From floats to words: what is proved about ranges, what is refused, and that rounding is fair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.secure_aggregation.quantise import BLOCK, QuantisationError, clip, prove_range, quantise
from protocol.secure_aggregation.words import WORD_BITS, lane, signed

ROWS = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(-50, 50, width=32))


def words_of(update: np.ndarray, *, weight=1, fraction_bits=16, n=4, clip_norm=1.0, word_bits=32, seed=0) -> np.ndarray:
    return quantise(
        update,
        weight=weight,
        fraction_bits=fraction_bits,
        word_bits=word_bits,
        n=n,
        clip_norm=clip_norm,
        rng=np.random.default_rng(seed),
    )


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
    for word_bits in (8, 20, 64):
        with pytest.raises(QuantisationError, match="word_bits must be 32, 24, 16 or 12"):
            words_of(np.zeros(1, np.float32), fraction_bits=1, word_bits=word_bits)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_bound_that_is_no_positive_number_is_refused(norm):
    with pytest.raises(QuantisationError, match="clip_norm"):
        clip(np.zeros(1, np.float32), norm)
    with pytest.raises(QuantisationError, match="clip_norm"):
        prove_range(n=3, clip_norm=norm, max_weight=1, fraction_bits=1)


def test_range_is_proved_to_the_last_number():
    # n * (1 * 2^f + 1) < 2^31: with n = 2 and f = 30 the sum reaches 2^31 + 2; with f = 29 it fits.
    prove_range(n=2, clip_norm=1.0, max_weight=1, fraction_bits=29)
    with pytest.raises(QuantisationError, match="does not fit 32-bit words"):
        prove_range(n=2, clip_norm=1.0, max_weight=1, fraction_bits=30)
    prove_range(n=1, clip_norm=2.0**15 - 2, max_weight=1, fraction_bits=0, word_bits=16)
    with pytest.raises(QuantisationError, match="16-bit"):
        prove_range(n=1, clip_norm=2.0**15 - 1, max_weight=1, fraction_bits=0, word_bits=16)
    with pytest.raises(QuantisationError, match="does not fit"):
        words_of(np.zeros(1, np.float32), weight=2**20)


@pytest.mark.parametrize(
    "change", [{"n": 0}, {"max_weight": 0}, {"fraction_bits": -1}, {"word_bits": 1}, {"word_bits": 33}]
)
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(QuantisationError, match="needed"):
        prove_range(**({"n": 3, "clip_norm": 1.0, "max_weight": 1, "fraction_bits": 4, "word_bits": 32} | change))
