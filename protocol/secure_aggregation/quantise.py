"""From a float update to words: clip, weigh, fixed point with stochastic rounding, and what the words leave out.

    word      floor(u * weight * 2^f + r), r uniform in [0, 1), in two's complement; f is that of the element's segment
    residual  u - word / (weight * 2^f)

Rounding is stochastic, so its mean over silos and rounds is exact. The sum of n words must stay within the signed range,
or it would wrap round silently; so numbers that could do that are refused (scales.FixedPoint), and so is a value beyond
the clip. Where scales follow the sum, an element beyond its tensor's bound is cut to it; that is in the residual as well.
A silo that keeps the residual and adds it to its next update before clipping sends in the long run what it meant to send
(error feedback: Seide 2014, Karimireddy 2019).

A residual is as private as an update: it stays in the silo. It is not for studies with noise on the updates: it would
carry what the noise hides from one round into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.scales import FixedPoint, Spread
from protocol.secure_aggregation.words import WORD_BITS, Lanes, lane

BLOCK: Final = 1 << 15
"""Elements a pass: its float64 copy (256 KiB) stays in the cache."""
# Room for the rounding of float32, so that no element of a clipped update exceeds the bound by a last bit.
_SHRINK: Final = 1 - 2.0**-22


class QuantisationError(ValueError):
    """Numbers that do not fit: an update that is not finite, not clipped, or not that of its segments."""


def clip(update: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
    """Scale the update (shape d, float32) down to the L2 norm `norm`; a shorter one comes back as it is.

    Raises:
        QuantisationError: the update is not one row of float32, holds NaN or infinity, or `norm` is not positive.
    """
    _check_row(update)
    if not (np.isfinite(norm) and norm > 0):
        raise QuantisationError(f"clip_norm must be a positive finite number, not {norm}")
    # In float64 by blocks: a float32 dot product loses digits on long rows. A float64 one would start threads of BLAS.
    squares, value = 0.0, np.empty(BLOCK, dtype=np.float64)
    for low in range(0, len(update), BLOCK):
        part = update[low : low + BLOCK]
        v = value[: len(part)]
        v[:] = part
        squares += float(np.square(v, out=v).sum())
    if not np.isfinite(squares):
        raise QuantisationError("the update holds NaN or infinity; training has diverged, nothing is sent")
    length = float(np.sqrt(squares))
    if length <= norm:
        return update
    return np.multiply(update, np.float32(norm / length * _SHRINK), dtype=np.float32)


def quantise(
    update: NDArray[np.float32],
    fixed: FixedPoint,
    segments: Sequence[Segment],
    *,
    weight: int,
    rng: np.random.Generator,
    residual: NDArray[np.float32] | None = None,
) -> Lanes:
    """The words of a clipped update, in one pass.

    Parameters:
        update: shape d, float32, of an L2 norm of at most clip_norm.
        fixed: the manifest's numbers; they prove that sums fit.
        segments: `fixed.segments`, d words together.
        weight: this silo's in the manifest, at most fixed.heaviest.
        rng: draws the key of the stream that rounds; its numbers are no secret.
        residual: shape d, float32, is filled; None where nothing is kept.

    Returns:
        shape d, lane(word_bits), two's complement over the whole lane.

    Raises:
        QuantisationError: the update is not finite, not clipped, or does not fit the segments; another word size.
    """
    if fixed.word_bits not in WORD_BITS:
        raise QuantisationError(f"word_bits must be 32, 24, 16 or 12, not {fixed.word_bits}")
    _check_row(update)
    if sum(words for words, _ in segments) != len(update):
        raise QuantisationError(f"the segments must have a word for each of the update's {len(update)} elements")
    if residual is not None and (residual.dtype != np.float32 or residual.shape != update.shape):
        raise QuantisationError("the residual must be a row of float32 as long as the update")
    if not 1 <= weight <= fixed.heaviest:
        raise QuantisationError(f"the weight must be from 1 to {fixed.heaviest}, not {weight}")
    size = lane(fixed.word_bits).itemsize
    words = np.empty(len(update), dtype=f"<i{size}")
    # Fixed point of twice the lane: the upper half is the word, the lower half what rounding decides about. A fair draw
    # of as many bits, added, carries into the word with just that probability. AES key stream costs a fifth of what
    # numpy's own numbers do.
    real, whole = (np.float32, "<i4") if size == 2 else (np.float64, "<i8")
    one = 2.0 ** (8 * size)
    units = Spread(segments, [weight * 2.0**bits * one for _, bits in segments], real)
    # Every tensor has the same largest word. A fixed scale needs no cut: its bound is that of `clip`.
    largest = weight * 2.0**fixed.levels * one if fixed.fraction_bits is None else None
    stream = Cipher(algorithms.AES(rng.bytes(16)), modes.CTR(bytes(16))).encryptor()
    zeros, room = bytes(size * BLOCK), bytearray(size * BLOCK + 16)
    drawn = np.frombuffer(room, dtype=f"<u{size}", count=BLOCK)
    value, point = np.empty(BLOCK, dtype=real), np.empty(BLOCK, dtype=whole)
    upper = point.view(f"<i{size}")[1::2]
    for low in range(0, len(update), BLOCK):
        part = update[low : low + BLOCK]
        v, p = value[: len(part)], point[: len(part)]
        # A NaN makes both comparisons false, so it is refused here too.
        if not (float(part.min()) >= -fixed.clip_norm and float(part.max()) <= fixed.clip_norm):
            raise QuantisationError(
                "the update holds NaN, infinity or an element beyond clip_norm; clip it first, nothing is sent"
            )
        unit = units.of(low, low + len(part))
        stream.update_into(zeros, room)
        v[:] = part
        np.multiply(v, unit, out=v)
        if largest is not None:
            np.clip(v, -largest, largest, out=v)
        if size == 2:  # where cutting off what lies below 2^-16 of a word would pull it towards zero; 2^-32 is nothing
            np.rint(v, out=v)
        p[:] = v
        p += drawn[: len(part)]
        words[low : low + BLOCK] = upper[: len(part)]
        if residual is not None:
            sent = upper[: len(part)].astype(np.float64)
            sent *= one
            sent /= unit
            np.subtract(part, sent, out=residual[low : low + BLOCK], casting="same_kind", dtype=np.float64)
    return words.view(f"<u{size}")


def _check_row(update: NDArray[np.float32]) -> None:
    if update.ndim != 1 or update.dtype != np.float32:
        raise QuantisationError(f"the update must be one row of float32, not {update.dtype} of shape {update.shape}")
