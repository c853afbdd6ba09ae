"""From a float update to words: clip, weigh, fixed point with stochastic rounding, and the proof that sums fit.

A word is round(u * weight * 2^fraction_bits) in two's complement. Rounding is stochastic, so its mean over silos and
rounds is exact. The sum of n words must stay within the signed range, or it would wrap round silently; so a manifest
whose numbers could do that is refused (`prove_range`), and a value beyond the clip is refused, never bent.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.secure_aggregation.words import WORD_BITS, Lanes, lane

BLOCK: Final = 1 << 15
"""Elements a pass: its float64 copy (256 KiB) stays in the cache."""
# Room for the rounding of float32, so that no element of a clipped update exceeds the bound by a last bit.
_SHRINK: Final = 1 - 2.0**-22


class QuantisationError(ValueError):
    """Numbers that do not fit: a manifest whose sums could wrap round, or an update that is not finite or clipped."""


def prove_range(*, n: int, clip_norm: float, max_weight: int, fraction_bits: int, word_bits: int = 32) -> None:
    """Prove that the sum of n words fits: n * (clip_norm * max_weight * 2^fraction_bits + 1) < 2^(word_bits - 1).

    An L2 norm bounds every element; the + 1 is for rounding.

    Raises:
        QuantisationError: it does not fit, or a number is out of its range.
    """
    if n < 1 or max_weight < 1 or fraction_bits < 0 or not 2 <= word_bits <= 32:
        raise QuantisationError(
            f"n >= 1, weight >= 1, fraction_bits >= 0 and word_bits from 2 to 32 are needed, "
            f"not {n}, {max_weight}, {fraction_bits} and {word_bits}"
        )
    if not (np.isfinite(clip_norm) and clip_norm > 0):
        raise QuantisationError(f"clip_norm must be a positive finite number, not {clip_norm}")
    largest = n * (clip_norm * max_weight * 2.0**fraction_bits + 1)
    if not largest < 2.0 ** (word_bits - 1):
        raise QuantisationError(
            f"the sum of {n} updates can reach {largest:.4g} and does not fit {word_bits}-bit words; "
            "take fewer fraction_bits, a smaller clip_norm or smaller weights"
        )


def clip(update: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
    """Scale the update (shape d, float32) down to the L2 norm `norm`; a shorter one comes back as it is.

    Raises:
        QuantisationError: the update is not one row of float32, holds NaN or infinity, or `norm` is not positive.
    """
    _check_row(update)
    if not (np.isfinite(norm) and norm > 0):
        raise QuantisationError(f"clip_norm must be a positive finite number, not {norm}")
    # einsum in float64 by blocks: a float32 dot product loses digits on long rows.
    squares = 0.0
    for low in range(0, len(update), BLOCK):
        part = update[low : low + BLOCK].astype(np.float64)
        squares += float(part @ part)
    if not np.isfinite(squares):
        raise QuantisationError("the update holds NaN or infinity; training has diverged, nothing is sent")
    length = float(np.sqrt(squares))
    if length <= norm:
        return update
    return (update * np.float32(norm / length * _SHRINK)).astype(np.float32)


def quantise(
    update: NDArray[np.float32],
    *,
    weight: int,
    fraction_bits: int,
    word_bits: int,
    n: int,
    clip_norm: float,
    rng: np.random.Generator,
) -> Lanes:
    """The words of a clipped update, in one pass.

    Parameters:
        update: shape d, float32, no element beyond clip_norm.
        weight: this silo's fixed weight in the manifest; `n` silos with at most this weight are proved to fit, so pass
            the manifest's own proof (`prove_range` with its largest weight) first.
        word_bits: 32, 24, 16 or 12.
        rng: draws the key of the stream that rounds; its numbers are no secret.

    Returns:
        shape d, lane(word_bits), two's complement over the whole lane.

    Raises:
        QuantisationError: out of range, not finite, not clipped, or another word size.
    """
    if word_bits not in WORD_BITS:
        raise QuantisationError(f"word_bits must be 32, 24, 16 or 12, not {word_bits}")
    prove_range(n=n, clip_norm=clip_norm, max_weight=weight, fraction_bits=fraction_bits, word_bits=word_bits)
    _check_row(update)
    size = lane(word_bits).itemsize
    words = np.empty(len(update), dtype=f"<i{size}")
    # In units of 2^-32 of a word, so that 32 bits of AES key stream are a fair number from 0 to just below one word.
    # It costs a fifth of what numpy's own uniform numbers do.
    scale = float(weight) * 2.0 ** (fraction_bits + 32)
    stream = Cipher(algorithms.AES(rng.bytes(16)), modes.CTR(bytes(16))).encryptor()
    zeros, room = bytes(4 * BLOCK), bytearray(4 * BLOCK + 16)
    drawn = np.frombuffer(room, dtype="<u4", count=BLOCK)
    value = np.empty(BLOCK, dtype=np.float64)
    noise = np.empty(BLOCK, dtype=np.float64)
    for low in range(0, len(update), BLOCK):
        part = update[low : low + BLOCK]
        v, u = value[: len(part)], noise[: len(part)]
        # A NaN makes both comparisons false, so it is refused here too.
        if not (float(part.min()) >= -clip_norm and float(part.max()) <= clip_norm):
            raise QuantisationError(
                "the update holds NaN, infinity or an element beyond clip_norm; clip it first, nothing is sent"
            )
        stream.update_into(zeros, room)
        u[:] = drawn[: len(part)]
        # In float64 from here on: float32 would lose digits before rounding.
        v[:] = part
        v *= scale
        v += u
        v *= 2.0**-32
        np.floor(v, out=v)
        words[low : low + BLOCK] = v
    return words.view(f"<u{size}")


def _check_row(update: NDArray[np.float32]) -> None:
    if update.ndim != 1 or update.dtype != np.float32:
        raise QuantisationError(f"the update must be one row of float32, not {update.dtype} of shape {update.shape}")
