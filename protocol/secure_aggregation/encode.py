"""An update as words, each tensor in its own scale, in one pass; and what the words leave out, for error feedback.

    word      floor(u * weight * 2^f + r), r uniform in [0, 1): its mean is exact. Where scales follow the sum, an element
              beyond its tensor's bound is cut to it.
    residual  u - word / (weight * 2^f): what rounding and cutting took. A silo that keeps it, and adds it to its next
              update before clipping, sends in the long run what it meant to send (Seide 2014, Karimireddy 2019).

A residual is as private as an update: it stays in the silo. It is not for studies with noise on the updates: it would carry
what the noise hides from one round into the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.quantise import BLOCK, QuantisationError
from protocol.secure_aggregation.scales import FixedPoint, Spread


def encode(
    update: NDArray[np.float32],
    fixed: FixedPoint,
    segments: Sequence[Segment],
    *,
    weight: int,
    rng: np.random.Generator,
    residual: NDArray[np.float32] | None = None,
) -> NDArray[np.uint32]:
    """The words of a clipped update.

    Parameters:
        update: shape d, float32, of an L2 norm of at most clip_norm.
        fixed: the manifest's numbers; they prove that sums fit.
        segments: `fixed.segments`, d words together.
        weight: this silo's in the manifest, at most fixed.heaviest.
        rng: for the rounding only; its numbers are no secret.
        residual: shape d, float32, is filled; it may be a memory map.

    Returns:
        shape d, uint32 ("<u4"), two's complement.

    Raises:
        QuantisationError: the update is not finite, not clipped, or does not fit the segments.
    """
    if update.ndim != 1 or update.dtype != np.float32 or sum(words for words, _ in segments) != len(update):
        raise QuantisationError("the update must be one row of float32 with a word in the segments for each element")
    if residual is not None and (residual.dtype != np.float32 or residual.shape != update.shape):
        raise QuantisationError("the residual must be a row of float32 as long as the update")
    if not 1 <= weight <= fixed.heaviest:
        raise QuantisationError(f"the weight must be from 1 to {fixed.heaviest}, not {weight}")
    units = Spread(segments, [weight * 2.0**bits for _, bits in segments], np.float64)
    # Every tensor has the same largest word. A fixed scale needs no cut: its bound is that of `clip`.
    largest = weight * 2.0**fixed.levels if fixed.fraction_bits is None else None
    words = np.empty(len(update), dtype="<i4")
    room = np.empty((2, min(BLOCK, len(update))), dtype=np.float64)
    for low in range(0, len(update), BLOCK):
        part = update[low : low + BLOCK]
        value, noise = room[0, : len(part)], room[1, : len(part)]
        # A NaN makes both comparisons false, so it is refused here too.
        if not (float(part.min()) >= -fixed.clip_norm and float(part.max()) <= fixed.clip_norm):
            raise QuantisationError(
                "the update holds NaN, infinity or an element beyond clip_norm; clip it first, nothing is sent"
            )
        unit = units.of(low, low + len(part))
        # Without the dtype numpy would multiply in float32 and lose digits before rounding.
        np.multiply(part, unit, out=value, dtype=np.float64)
        if largest is not None:
            np.clip(value, -largest, largest, out=value)
        rng.random(out=noise)
        np.add(value, noise, out=noise)
        np.floor(noise, out=noise)
        words[low : low + BLOCK] = noise
        if residual is not None:
            np.divide(noise, unit, out=noise)
            np.subtract(part, noise, out=residual[low : low + BLOCK], casting="same_kind", dtype=np.float64)
    return words.view("<u4")
