"""The server step: from the published sum to the next model, the same bits at every hospital and at the portal.

    next_k = state_k + float32(int32(sum_k)) * scale        scale = float32(server_lr / (total_weight * 2^fraction_bits))

fraction_bits is that of the segment in which word k lies. Frozen values are copied.

Each of conversion, multiplication and addition is one numpy float32 operation on its own, in this order, so each rounds
once by IEEE 754 and no compiler may fuse two of them. Work goes block by block (256 KiB), so memory is constant and
`out` may be a memory map, or the state itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from protocol.model_state import BLOCK, Scales, TensorSpec, Vector, stretches, update_words, words
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.scales import FixedPoint, Maxima, Spread, cut
from protocol.secure_aggregation.words import Lanes, lane, signed

MAX_FRACTION_BITS: Final = 64


class ServerStepError(ValueError):
    """A step that cannot be taken: arguments that do not fit, or a sum out of range. Names positions, never values."""


def scale(*, fraction_bits: int, total_weight: int, server_lr: float = 1.0) -> np.float32:
    """What one unit of the summed fixed-point words adds to a weight.

    Parameters: fraction_bits: 0 to 64. total_weight: the sum of the weights of the silos in the sum, at least 1.
    server_lr: finite, above 0.
    Raises: ServerStepError.
    """
    if type(fraction_bits) is not int or not 0 <= fraction_bits <= MAX_FRACTION_BITS:
        raise ServerStepError(f"fraction_bits must be a whole number from 0 to {MAX_FRACTION_BITS}")
    if type(total_weight) is not int or not 1 <= total_weight < 2**31:
        raise ServerStepError("total_weight must be a whole number from 1 on")
    if not math.isfinite(server_lr) or server_lr <= 0:
        raise ServerStepError("server_lr must be a finite number above 0")
    # One division of two numbers that a float64 holds exactly, then one rounding to float32.
    value = np.float32(float(server_lr) / float(total_weight * 2**fraction_bits))
    if not np.isfinite(value) or value < np.finfo(np.float32).tiny:
        raise ServerStepError("the scale of the step lies outside the range of float32")
    return value


def check_range(
    summed: Lanes, segments: Sequence[Segment], bounds: Sequence[int], *, offset: int = 0, word_bits: int = 32
) -> None:
    """Raises ServerStepError, naming the position, where a word's absolute value passes its segment's bound.

    Parameters: summed: lanes [d] of words of `word_bits` bits (words.py), two's complement. segments: its scales, d words
    together. bounds: the largest |word| of each (`FixedPoint.word_bounds`). offset: the position of its first word, for the
    message.
    """
    _check_words(summed, segments, word_bits)
    bound = Spread(segments, bounds, np.int64)
    for start in range(0, summed.size, BLOCK):
        values = signed(summed[start : start + BLOCK], word_bits).astype(np.int64)
        beyond = np.flatnonzero(np.abs(values) > bound.of(start, start + values.size))
        if beyond.size:
            raise ServerStepError(f"word {offset + start + int(beyond[0])} of the sum is out of range")


def apply(
    state_vector: Vector,
    summed: Lanes,
    segments: Sequence[Segment],
    *,
    total_weight: int,
    server_lr: float = 1.0,
    word_bits: int = 32,
    out: Vector | None = None,
) -> Vector:
    """The next values of the state's vector, or of a part of it in which nothing is frozen.

    Parameters: state_vector: float32[d]. summed: lanes [d] of words of `word_bits` bits (words.py), the sum of the silos'
    weighted updates in two's complement. segments: its scales, d words together. total_weight: the sum of the weights of
    the silos in it. out: float32[d] to fill, possibly a memory map or `state_vector` itself; None makes a new array.
    Returns: `out`.
    Raises: ServerStepError where shapes, types or numbers do not fit, where the result is not finite (then `out` is
    partly written and must be thrown away), or where this thread rounds tiny numbers to zero.
    """
    _check_words(summed, segments, word_bits)
    target: Vector = np.empty(state_vector.shape, dtype="<f4") if out is None else out
    for name, array in (("state_vector", state_vector), ("out", target)):
        if array.dtype != np.dtype("<f4") or array.shape != summed.shape:
            raise ServerStepError(f"{name} must be float32 with the sum's length, {summed.size}")
    at = {bits: scale(fraction_bits=bits, total_weight=total_weight, server_lr=server_lr) for _, bits in segments}
    factor = Spread(segments, [at[bits] for _, bits in segments], np.float32)
    _check_arithmetic()
    step = np.empty(min(BLOCK, summed.size), dtype="<f4")
    with np.errstate(over="ignore", invalid="ignore"):  # judged by the check below, which also sees a NaN that came in
        for start in range(0, summed.size, BLOCK):
            block = slice(start, min(start + BLOCK, summed.size))
            part = step[: block.stop - start]
            np.copyto(part, signed(summed[block], word_bits), casting="same_kind")
            np.multiply(part, factor.of(start, block.stop), out=part)
            np.add(state_vector[block], part, out=target[block])
            if not bool(np.isfinite(target[block]).all()):
                raise ServerStepError(
                    f"the next model has a value that is not finite, in words {start} to {block.stop - 1}"
                )
    return target


def apply_whole(
    table: Sequence[TensorSpec],
    state_vector: Vector,
    summed: Lanes,
    segments: Sequence[Segment],
    *,
    total_weight: int,
    server_lr: float = 1.0,
    word_bits: int = 32,
    out: Vector,
) -> None:
    """The whole next vector of a state with this table: as `apply`, and frozen values copied block by block."""
    if summed.shape != (update_words(table),) or not state_vector.shape == out.shape == (words(table),):
        raise ServerStepError("the sum and the vectors must have the lengths that the table says")
    for values, changed in stretches(table):
        if changed is None:
            for start in range(values.start, values.stop, BLOCK):
                block = slice(start, min(start + BLOCK, values.stop))
                out[block] = state_vector[block]
            continue
        apply(
            state_vector[values],
            summed[changed],
            tuple(cut(segments, changed.start, changed.stop)),
            total_weight=total_weight,
            server_lr=server_lr,
            word_bits=word_bits,
            out=out[values],
        )


def next_scales(
    fixed: FixedPoint, table: Sequence[TensorSpec], scales: Scales | None, summed: Lanes, *, total_weight: int
) -> Scales | None:
    """The scales of the next state, from the whole sum; None where the manifest fixes them. Raises ScalesError."""
    if scales is None:
        return None
    maxima = Maxima(table)
    for start in range(0, summed.size, BLOCK):
        maxima.add(signed(summed[start : start + BLOCK], fixed.word_bits))
    return fixed.next_scales(table, scales, maxima.values(), total_weight=total_weight)


def _check_words(summed: Lanes, segments: Sequence[Segment], word_bits: int) -> None:
    if summed.dtype != lane(word_bits) or summed.ndim != 1:
        raise ServerStepError(f"the sum must be one row of {lane(word_bits)} words, little-endian")
    if sum(size for size, _ in segments) != summed.size:
        raise ServerStepError(f"the segments must cover the sum's {summed.size} words")


def _check_arithmetic() -> None:
    """Some libraries switch a whole thread to flush subnormal numbers to zero; then bits would differ between "
    "hospitals."""
    smallest = np.full(1, np.finfo(np.float32).smallest_subnormal, dtype="<f4")
    if np.multiply(smallest, np.float32(1.0)).view("<u4")[0] != 1:
        raise ServerStepError(
            "this process rounds tiny numbers to zero (a library switched it on), so its models would differ from the "
            "others': start it without that library"
        )
