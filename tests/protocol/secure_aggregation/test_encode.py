"""From an update to words, each tensor in its scale; what the words leave out is owed, and comes out in the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.model_state import BLOCK, TensorSpec
from protocol.secure_aggregation.encode import encode
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.quantise import QuantisationError, clip, quantise
from protocol.secure_aggregation.scales import FixedPoint

TABLE = (TensorSpec("a", (BLOCK - 7,)), TensorSpec("b", (20,)), TensorSpec("c", (BLOCK,)))
D = 2 * BLOCK + 13
OPEN = FixedPoint(16, None, 4.0, 3, heaviest=2)


def drawn(seed: int, length: float = 3.9) -> np.ndarray:
    update = np.random.default_rng(seed).normal(size=D).astype("<f4")
    return (update * np.float32(length / np.linalg.norm(update))).astype("<f4")


def units(segments: Any, weight: int) -> np.ndarray:
    return weight * 2.0 ** np.repeat([bits for _, bits in segments], [words for words, _ in segments])


def test_a_fixed_scale_gives_the_words_of_the_plain_quantiser() -> None:
    fixed = FixedPoint(32, 20, 4.0, 3)
    found = encode(drawn(1), fixed, fixed.segments(TABLE, None), weight=1, rng=np.random.default_rng(5))
    plain = quantise(
        drawn(1), weight=1, fraction_bits=20, word_bits=32, n=3, clip_norm=4.0, rng=np.random.default_rng(5)
    )
    assert np.array_equal(found, plain)


@given(seed=st.integers(0, 99), weight=st.integers(1, 2), scales=st.tuples(*[st.integers(-12, 2)] * 3))
def test_words_and_residual_add_up_to_the_update(seed: int, weight: int, scales: tuple[int, int, int]) -> None:
    update, segments = drawn(seed), OPEN.segments(TABLE, scales)
    left = np.empty(D, dtype="<f4")
    words = encode(update, OPEN, segments, weight=weight, rng=np.random.default_rng(seed), residual=left).view("<i4")
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
    words = encode(update, OPEN, segments, weight=2, rng=np.random.default_rng(0), residual=left).view("<i4")
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
            words = encode(whole, coarse, segments, weight=1, rng=rng, residual=owed).view("<i4")
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
            encode(update, fixed, fixed.segments(TABLE, scales), weight=1, rng=np.random.default_rng(0))


def test_shapes_types_and_weights_that_do_not_fit_are_refused() -> None:
    segments = OPEN.segments(TABLE, (0, 0, 0))
    rng = np.random.default_rng(0)
    for update, given_segments in (
        (drawn(1).astype("<f8"), segments),
        (drawn(1)[1:], segments),
        (drawn(1).reshape(1, -1), segments),
        (drawn(1), (*segments, Segment(1, 3))),
    ):
        with pytest.raises(QuantisationError, match="one row of float32"):
            encode(update, OPEN, given_segments, weight=1, rng=rng)
    for left in (np.empty(D - 1, dtype="<f4"), np.empty(D, dtype="<f8")):
        with pytest.raises(QuantisationError, match="residual"):
            encode(drawn(1), OPEN, segments, weight=1, rng=rng, residual=left)
    for weight in (0, 3):
        with pytest.raises(QuantisationError, match="weight"):
            encode(drawn(1), OPEN, segments, weight=weight, rng=rng)


def test_nothing_to_send_is_no_word() -> None:
    empty = np.zeros(0, dtype="<f4")
    assert encode(empty, OPEN, (), weight=1, rng=np.random.default_rng(0)).size == 0
