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
from protocol.model_state import BLOCK
from protocol.secure_aggregation.words import lane, signed
from protocol.server_step import ServerStepError, apply, check_range, scale, word_bound


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
    signed = word - 2**32 if word >= 2**31 else word
    converted = nearest_float32(Fraction(signed))
    product = nearest_float32(Fraction(converted) * Fraction(factor))
    return struct.pack("<f", nearest_float32(Fraction(state) + Fraction(product)))


@given(
    states=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    words=st.lists(st.integers(0, 2**32 - 1), min_size=20, max_size=20),
    bits=st.integers(1, 30),
    weight=st.integers(1, 2**20),
    rate=st.floats(0.001, 10),
)
def test_the_step_equals_the_slow_reference_bit_for_bit(
    states: list[float], words: list[int], bits: int, weight: int, rate: float
) -> None:
    vector = np.array(states, dtype="<f4")
    summed = np.array(words[: vector.size], dtype="<u4")
    factor = float(scale(fraction_bits=bits, total_weight=weight, server_lr=rate))
    result = apply(vector, summed, fraction_bits=bits, total_weight=weight, server_lr=rate)
    expected = b"".join(reference(float(s), int(w), factor) for s, w in zip(vector, summed, strict=True))
    assert np.array_equal(result, np.frombuffer(expected, dtype="<f4"))  # equal as numbers: 0.0 and -0.0 see below


def inputs(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn with hashes alone, so that the pinned digest depends on no generator's version."""
    stream = hashlib.shake_256(b"server step").digest(8 * d)
    words = np.frombuffer(stream[: 4 * d], dtype="<u4")
    return (words >> 8).astype("<f4") / np.float32(2**24), np.frombuffer(stream[4 * d :], dtype="<u4")


@pytest.mark.parametrize("word_bits", [24, 16, 12])
def test_words_of_any_size_make_the_same_step_as_their_values_in_32_bits(word_bits: int) -> None:
    state, drawn = inputs(BLOCK + 9)
    summed = drawn.astype(lane(word_bits))  # with bits above the word, which do not count
    values = signed(summed, word_bits)
    assert values.min() < 0 < values.max()
    expected = apply(state, values.view("<u4"), fraction_bits=5, total_weight=3)
    assert apply(state, summed, fraction_bits=5, total_weight=3, word_bits=word_bits).tobytes() == expected.tobytes()
    bound = int(np.abs(values).max())
    check_range(summed, bound, word_bits=word_bits)
    with pytest.raises(ServerStepError, match="out of range"):
        check_range(summed, bound - 1, word_bits=word_bits)
    for call in (check_range, lambda row, _, **bits: apply(state, row, fraction_bits=5, total_weight=3, **bits)):
        with pytest.raises(ServerStepError, match="one row of uint"):
            call(summed.astype("<u8"), bound, word_bits=word_bits)


def test_the_step_has_the_pinned_digest() -> None:
    state, summed = inputs(3 * BLOCK + 17)
    result = apply(state, summed, fraction_bits=20, total_weight=7, server_lr=0.3)
    assert hashlib.sha256(result.tobytes()).hexdigest() == PINNED


PINNED = "cdc7a84bb2afa9407bb9c4d2f4534f9ab1a381ef3ba3800dd78bcb5dcc619634"


def test_blocks_in_place_and_memory_maps_give_the_same_bits(tmp_path: Path) -> None:
    state, summed = inputs(2 * BLOCK + 5)
    expected = apply(state, summed, fraction_bits=18, total_weight=3)
    out = np.memmap(tmp_path / "next", dtype="<f4", mode="w+", shape=state.shape)
    assert apply(state, summed, fraction_bits=18, total_weight=3, out=out) is out
    assert out.tobytes() == expected.tobytes()
    pieces = [
        apply(state[k : k + 1000], summed[k : k + 1000], fraction_bits=18, total_weight=3)
        for k in range(0, state.size, 1000)
    ]
    assert np.concatenate(pieces).tobytes() == expected.tobytes()
    apply(state, summed, fraction_bits=18, total_weight=3, out=state)
    assert state.tobytes() == expected.tobytes()


def test_the_step_is_the_weighted_mean() -> None:
    updates = [np.array([0.5, -0.25]), np.array([-1.0, 0.75])]
    weights = [1, 3]
    fixed = sum(np.round(update * weight * 2**20) for update, weight in zip(updates, weights, strict=True))
    summed = fixed.astype(np.int64).astype(np.uint32)
    result = apply(np.array([1.0, 1.0], dtype="<f4"), summed, fraction_bits=20, total_weight=4)
    assert result.tolist() == pytest.approx([1 + (0.5 - 3) / 4, 1 + (-0.25 + 2.25) / 4])


def test_no_words_make_an_empty_step() -> None:
    empty = np.zeros(0, dtype="<f4")
    assert apply(empty, np.zeros(0, dtype="<u4"), fraction_bits=1, total_weight=1).size == 0


@pytest.mark.parametrize("bits", [0, 31, True, 1.0])
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
        (f4, u4.astype("<i4"), None, "uint32"),
        (f4.reshape(2, 2), u4.reshape(2, 2), None, "uint32"),
    ]
    for state, summed, out, why in cases:
        with pytest.raises(ServerStepError, match=why):
            apply(state, summed, fraction_bits=1, total_weight=1, out=out)


@pytest.mark.parametrize("value", [np.nan, np.inf, np.finfo(np.float32).max])
def test_a_model_that_is_not_finite_never_comes_out(value: float) -> None:
    state = np.full(BLOCK + 1, 0, dtype="<f4")
    state[-1] = value
    summed = np.zeros(BLOCK + 1, dtype="<u4")
    summed[-1] = 2**31 - 1
    with pytest.raises(ServerStepError, match=f"words {BLOCK} to {BLOCK}"):
        apply(state, summed, fraction_bits=1, total_weight=1, server_lr=1e30)


def test_a_process_that_flushes_tiny_numbers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def flushing(a: np.ndarray, b: np.float32, **_: object) -> np.ndarray:
        return np.zeros_like(a)

    monkeypatch.setattr(server_step.np, "multiply", flushing)
    with pytest.raises(ServerStepError, match="tiny numbers"):
        apply(np.zeros(1, dtype="<f4"), np.zeros(1, dtype="<u4"), fraction_bits=1, total_weight=1)


def test_a_sum_out_of_range_is_named_by_position() -> None:
    bound = word_bound([1, 2], clip_norm=0.5, fraction_bits=4)
    assert bound == 8 + 16 + 2
    summed = np.zeros(BLOCK + 10, dtype="<u4")
    summed[BLOCK + 1] = bound
    summed[BLOCK + 2] = 2**32 - bound
    check_range(summed, bound)
    summed[BLOCK + 3] = 2**32 - bound - 1
    with pytest.raises(ServerStepError, match=f"word {BLOCK + 103} "):
        check_range(summed, bound, offset=100)
    summed[BLOCK + 3] = 2**31
    with pytest.raises(ServerStepError, match="out of range"):
        check_range(summed, bound)
    with pytest.raises(ServerStepError, match="uint32"):
        check_range(summed.astype("<u8"), bound)
