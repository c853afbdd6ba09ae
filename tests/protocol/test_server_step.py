"""The server step gives the same bits everywhere: pinned digest, slow reference, no matter how it is blocked."""

from __future__ import annotations

import hashlib
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import server_step
from protocol.model_state import BLOCK, TensorSpec
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.scales import FixedPoint, cut
from protocol.secure_aggregation.words import lane, signed
from protocol.server_step import ServerStepError, apply, apply_whole, check_range, next_scales, scale


def one(words: np.ndarray, bits: int) -> tuple[Segment, ...]:
    return (Segment(words.size, bits),) if words.size else ()


def nearest_float32(value: Fraction) -> float:
    """`value` rounded to float32, ties to even, by integers alone."""
    if value == 0:
        return 0.0
    exponent = max(abs(value.numerator).bit_length() - value.denominator.bit_length(), -126) - 1
    while abs(value) / Fraction(2) ** exponent >= 2:
        exponent += 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    return float(round(value / unit) * unit)


def reference(state: float, word: int, factor: float) -> bytes:
    converted = nearest_float32(Fraction(word))
    product = nearest_float32(Fraction(converted) * Fraction(factor))
    return struct.pack("<f", nearest_float32(Fraction(state) + Fraction(product)))


@given(
    states=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=20, max_size=20),
    bits=st.lists(st.integers(0, 61), min_size=20, max_size=20),
    weight=st.integers(1, 2**20),
    rate=st.floats(0.001, 10),
)
def test_the_step_equals_the_slow_reference_bit_for_bit(
    states: list[float], words: list[int], bits: list[int], weight: int, rate: float
) -> None:
    vector = np.array(states, dtype="<f4")
    summed = np.array(words[: vector.size], dtype="<i4").view("<u4")
    factors = [float(scale(fraction_bits=each, total_weight=weight, server_lr=rate)) for each in bits]
    segments = tuple(Segment(1, each) for each in bits[: vector.size])
    result = apply(vector, summed, segments, total_weight=weight, server_lr=rate)
    expected = b"".join(reference(float(s), int(w), f) for s, w, f in zip(vector, words, factors, strict=False))
    assert np.array_equal(result, np.frombuffer(expected, dtype="<f4"))  # equal as numbers: 0.0 and -0.0 see below


def inputs(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn with hashes alone, so that the pinned digest depends on no generator's version."""
    stream = hashlib.shake_256(b"server step").digest(8 * d)
    words = np.frombuffer(stream[: 4 * d], dtype="<u4")
    return (words >> 8).astype("<f4") / np.float32(2**24), np.frombuffer(stream[4 * d :], dtype="<u4")


def test_blocks_in_place_and_memory_maps_give_the_same_bits(tmp_path: Path) -> None:
    state, summed = inputs(2 * BLOCK + 5)
    expected = apply(state, summed, one(summed, 18), total_weight=3)
    out = np.memmap(tmp_path / "next", dtype="<f4", mode="w+", shape=state.shape)
    assert apply(state, summed, one(summed, 18), total_weight=3, out=out) is out
    assert out.tobytes() == expected.tobytes()
    pieces = [
        apply(state[k : k + 1000], summed[k : k + 1000], one(state[k : k + 1000], 18), total_weight=3)
        for k in range(0, state.size, 1000)
    ]
    assert np.concatenate(pieces).tobytes() == expected.tobytes()
    apply(state, summed, one(summed, 18), total_weight=3, out=state)
    assert state.tobytes() == expected.tobytes()


def test_the_step_is_the_weighted_mean() -> None:
    updates = [np.array([0.5, -0.25]), np.array([-1.0, 0.75])]
    weights = [1, 3]
    fixed = sum(np.round(update * weight * 2**20) for update, weight in zip(updates, weights, strict=True))
    summed = fixed.astype("<i4").view("<u4")
    result = apply(np.array([1.0, 1.0], dtype="<f4"), summed, one(summed, 20), total_weight=4)
    assert result.tolist() == pytest.approx([1 + (0.5 - 3) / 4, 1 + (-0.25 + 2.25) / 4])


def test_no_words_make_an_empty_step() -> None:
    empty = np.zeros(0, dtype="<f4")
    assert apply(empty, np.zeros(0, dtype="<u4"), (), total_weight=1).size == 0


@pytest.mark.parametrize("bits", [-1, 65, True, 1.0])
def test_fraction_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ServerStepError, match="fraction_bits"):
        scale(fraction_bits=bits, total_weight=1)


@pytest.mark.parametrize("weight", [0, -1, 2**31, True, 1.5])
def test_a_total_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(ServerStepError, match="total_weight"):
        scale(fraction_bits=1, total_weight=weight)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(ServerStepError, match="server_lr"):
        scale(fraction_bits=1, total_weight=1, server_lr=rate)


@pytest.mark.parametrize("rate", [1e-40, 1e300])
def test_a_scale_that_float32_cannot_hold_is_refused(rate: float) -> None:
    with np.errstate(over="ignore"), pytest.raises(ServerStepError, match="scale"):
        scale(fraction_bits=1, total_weight=1, server_lr=rate)


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    f4, u4 = np.zeros(4, dtype="<f4"), np.zeros(4, dtype="<u4")
    cases = [
        (f4.astype("<f8"), u4, None, "state_vector"),
        (f4[:3], u4, np.zeros(4, dtype="<f4"), "state_vector"),
        (f4, u4, np.zeros(5, dtype="<f4"), "out"),
        (f4, u4.astype("<i4"), None, "one row of uint32"),
        (f4.reshape(2, 2), u4.reshape(2, 2), None, "one row of uint32"),
    ]
    for state, summed, out, why in cases:
        with pytest.raises(ServerStepError, match=why):
            apply(state, summed, one(u4, 1), total_weight=1, out=out)
    for segments in ((), one(u4[:3], 1), (*one(u4, 1), Segment(1, 1))):
        with pytest.raises(ServerStepError, match="cover the sum's 4 words"):
            apply(f4, u4, segments, total_weight=1)
        with pytest.raises(ServerStepError, match="cover the sum's 4 words"):
            check_range(u4, segments, [1] * len(segments))


@pytest.mark.parametrize("value", [np.nan, np.inf, np.finfo(np.float32).max])
def test_a_model_that_is_not_finite_never_comes_out(value: float) -> None:
    state = np.full(BLOCK + 1, 0, dtype="<f4")
    state[-1] = value
    summed = np.zeros(BLOCK + 1, dtype="<u4")
    summed[-1] = 2**31 - 1
    with pytest.raises(ServerStepError, match=f"words {BLOCK} to {BLOCK}"):
        apply(state, summed, one(summed, 1), total_weight=1, server_lr=1e30)


def test_a_process_that_flushes_tiny_numbers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def flushing(a: np.ndarray, b: np.float32, **_: object) -> np.ndarray:
        return np.zeros_like(a)

    monkeypatch.setattr(server_step.np, "multiply", flushing)
    with pytest.raises(ServerStepError, match="tiny numbers"):
        apply(np.zeros(1, dtype="<f4"), np.zeros(1, dtype="<u4"), (Segment(1, 1),), total_weight=1)


def test_a_sum_out_of_range_is_named_by_position() -> None:
    fixed = FixedPoint(32, 4, 0.5, 2, heaviest=2)
    segments = (Segment(BLOCK + 10, 4),)
    (bound,) = fixed.word_bounds(segments, [1, 2])
    assert bound == 8 + 16 + 2
    summed = np.zeros(BLOCK + 10, dtype="<u4")
    summed[BLOCK + 1] = bound
    summed[BLOCK + 2] = 2**32 - bound
    check_range(summed, segments, [bound])
    summed[BLOCK + 3] = 2**32 - bound - 1
    with pytest.raises(ServerStepError, match=f"word {BLOCK + 103} "):
        check_range(summed, segments, [bound], offset=100)
    summed[BLOCK + 3] = 2**31
    with pytest.raises(ServerStepError, match="out of range"):
        check_range(summed, segments, [bound])
    with pytest.raises(ServerStepError, match="one row of uint32"):
        check_range(summed.astype("<u8"), segments, [bound])


def test_each_segment_has_its_own_range() -> None:
    segments, bounds = (Segment(2, 4), Segment(3, 6)), (5, 7)

    def judged(*words: int) -> None:
        check_range(np.array(words, dtype="<i2").view("<u2"), segments, bounds, word_bits=16)

    judged(5, -5, 7, 7, -7)
    with pytest.raises(ServerStepError, match="word 1 "):
        judged(5, 6, 7, 7, -7)
    with pytest.raises(ServerStepError, match="word 4 "):
        judged(5, 5, 7, 7, -8)


MIXED = (
    TensorSpec("first", (5,), "frozen"),
    TensorSpec("a", (7, 3)),
    TensorSpec("mean", (4,), "local"),
    TensorSpec("b", (BLOCK + 11,)),
    TensorSpec("between", (BLOCK + 3,), "frozen"),
    TensorSpec("c", (2,)),
    TensorSpec("last", (1,), "frozen"),
)


@pytest.mark.parametrize("word_bits", [24, 16, 12])
def test_words_of_any_size_make_the_same_step_as_their_values_in_32_bits(word_bits: int) -> None:
    state, drawn = inputs(BLOCK + 9)
    segments = (Segment(100, 5), Segment(BLOCK - 91, 7))
    summed = drawn.astype(lane(word_bits))  # with bits above the word, which do not count
    values = signed(summed, word_bits)
    assert values.min() < 0 < values.max()
    expected = apply(state, values.view("<u4"), segments, total_weight=3)
    assert apply(state, summed, segments, total_weight=3, word_bits=word_bits).tobytes() == expected.tobytes()
    bounds = [int(np.abs(values[:100]).max()), int(np.abs(values[100:]).max())]
    check_range(summed, segments, bounds, word_bits=word_bits)
    for lower in ([bounds[0] - 1, bounds[1]], [bounds[0], bounds[1] - 1]):
        with pytest.raises(ServerStepError, match="out of range"):
            check_range(summed, segments, lower, word_bits=word_bits)
    with pytest.raises(ServerStepError, match="one row of uint"):
        check_range(summed.astype("<u8"), segments, bounds, word_bits=word_bits)
    with pytest.raises(ServerStepError, match="one row of uint"):
        apply(state, summed.astype("<u8"), segments, total_weight=3, word_bits=word_bits)


def test_a_frozen_value_is_copied_and_all_others_make_their_step() -> None:
    d = 7 * 3 + BLOCK + 11 + 2
    state, _ = inputs(5 + d + BLOCK + 3 + 1)
    _, summed = inputs(d)
    segments = (Segment(30, 20), Segment(d - 30, 25))
    out = np.full_like(state, np.nan)
    apply_whole(MIXED, state, summed, segments, total_weight=2, out=out)
    frozen = np.r_[0:5, 5 + 21 + BLOCK + 11 : 5 + 21 + 2 * BLOCK + 14, state.size - 1]
    trained = np.setdiff1d(np.arange(state.size), frozen)
    assert out[frozen].tobytes() == state[frozen].tobytes()
    assert out[trained].tobytes() == apply(state[trained], summed, segments, total_weight=2).tobytes()
    with pytest.raises(ServerStepError, match="table"):
        apply_whole(MIXED, state, summed[1:], tuple(cut(segments, 1, d)), total_weight=2, out=out)


def test_scales_follow_the_sum_only_where_the_manifest_leaves_them_open() -> None:
    table = (TensorSpec("a", (2,)), TensorSpec("b", (3,)))
    summed = np.array([1, -8, 0, 0, 0], dtype="<i2").view("<u2")
    assert next_scales(FixedPoint(16, 4, 0.5, 2), table, None, summed, total_weight=2) is None
    fixed = FixedPoint(16, None, 1.0, 2)
    before = fixed.initial(table)
    after = next_scales(fixed, table, before, summed, total_weight=2)
    assert after == fixed.next_scales(table, before, (8, 0), total_weight=2)
