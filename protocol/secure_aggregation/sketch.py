"""The sketch check: 256 sums that show how long a masked update is, and the rule that leaves the gross ones out.

A count sketch (Charikar 2002): coordinate k of the update goes, with a random sign, to one of 256 sums. It is linear, so
the sketches of the members add up to the sketch of the sum, as integers; a silo cannot show a good sketch for a bad
update unless others lie with it. The sum of the 256 squares is the squared L2 norm on average, with a spread of
sqrt(2 / 256) = 9 %, whatever the update's length (Alon, Matias, Szegedy 1999).

    cell k       = little-endian 16-bit word k of the AES-128-CTR key stream (key: seed[:16], first counter: seed[16:])
    its sum      = the low 8 bits           its sign = bit 8 (1: minus)           the other bits are not used
    its value    = word k * 2^(F - its segment's fraction_bits), F the most fraction_bits of all segments

The seed is made of nonces that were committed before anybody uploaded, so nobody could shape an update to it.
Norms exclude. Directions are shown and exclude nobody: on real images a hospital with one class alone points away from
the others as a poisoned one does (docs/poisoning.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol import canonical
from protocol.secure_aggregation.prg import derive

SKETCH_WORDS: Final = 256
LEAST_WORDS: Final = 64 * SKETCH_WORDS
"""Words of the shortest update of which a silo shows a sketch. Of 513 words one in seven would lie alone in its sum and be
shown as it is, of 16,384 none with a chance of 1 - 2^-70; and three sketches are still 768 equations with 16,384 unknowns.
As many must have the finest scale (scales.py)."""
SEED_BYTES: Final = 32
BLOCK: Final = 1 << 15
"""Words a pass. Their sum stays below 2^15 * 2^31 = 2^46, so float64 adds them exactly; their buffers stay in the cache."""
_CELLS: Final = 2 * SKETCH_WORDS
_AES_BLOCK: Final = 16

SLACK: Final = Fraction(13, 10)
"""An estimated norm may pass the bound by this factor; by chance, an honest one at the bound does so once in 10^9."""
ABOVE: Final = 5
BELOW: Final = Fraction(1, 100)
"""Times the median of all norms: what is longer or shorter is left out. Why these: docs/poisoning.md."""

OVER_BOUND: Final = "NORM_OVER_BOUND"
ABOVE_OTHERS: Final = "NORM_ABOVE_OTHERS"
BELOW_OTHERS: Final = "NORM_BELOW_OTHERS"

Segments = Sequence[tuple[int, int]]
"""(words, fraction_bits) of each piece of the body with one fixed-point scale, in order; together the whole body."""
Sketch = NDArray[np.int64]


class SketchError(ValueError):
    """Words, segments or sketches that do not fit, or whose sums could leave the range of 64 bits."""


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one round.

    members: sorted, who stays in the sum. excluded: silo -> NORM_OVER_BOUND, NORM_ABOVE_OTHERS or NORM_BELOW_OTHERS.
    For display only (floats, the last digits may differ between machines): norms: silo -> estimated L2 norm of its
    update, over its weight, in the units of the model's weights. cosines: silo -> cosine of its sketch with the sum of
    the others' (each over its weight); None where one of them is zero.
    """

    members: tuple[str, ...]
    excluded: Mapping[str, str]
    norms: Mapping[str, float]
    cosines: Mapping[str, float | None]


def seed_of(ctx: bytes, nonces: Mapping[str, bytes], list_digest: str) -> bytes:
    """The sketch's seed, 32 bytes, from the opened first nonces (silo -> nonce) and the digest of the list L1."""
    facts = {"list": list_digest, "nonces": {silo: canonical.b64(nonce) for silo, nonce in nonces.items()}}
    return derive(hashlib.sha256(canonical.encode(facts)).digest(), "sketch", ctx, SEED_BYTES)


def prove_range(segments: Segments, word_bits: int) -> int:
    """F, the sketch's binary places. Proves that no sum of |words| < 2^(word_bits-1), shifted to F, leaves 64 bits.

    The words of the summed update have the same range, so it holds for the sketch of the sum as well.

    Raises:
        SketchError: it could, or a number is out of its range.
    """
    if not 2 <= word_bits <= 32:
        raise SketchError(f"word_bits must be from 2 to 32, not {word_bits}")
    if not segments or any(words < 0 or bits < 0 for words, bits in segments):
        raise SketchError("a body has at least one segment, with words and fraction_bits from 0 on")
    most = max(bits for _, bits in segments)
    largest = sum(words << (word_bits - 1 + most - bits) for words, bits in segments)
    if largest >= 1 << 63:
        raise SketchError(
            f"a sum of the sketch can reach 2^{largest.bit_length() - 1} and does not fit 64 bits: "
            "take fewer word_bits or scales that lie closer together"
        )
    return most


def sketch(seed: bytes, segments: Segments, chunks: Iterable[NDArray[Any]], *, word_bits: int = 32) -> Sketch:
    """The 256 sums of an update, or of a sum of updates. Constant memory.

    Parameters:
        seed: 32 bytes (`seed_of`).
        segments: as above; their words add up to the body.
        chunks: the body in order, in pieces of any shape, int16 or int32 (two's complement).
        word_bits: w; each word lies from -2^(w-1) to 2^(w-1) - 1.

    Returns:
        shape 256, int64, in units of 2^-F.

    Raises:
        SketchError: pieces that do not make up the body, another type, a word out of range, sums that may not fit.
    """
    most = prove_range(segments, word_bits)
    if len(seed) != SEED_BYTES:
        raise SketchError(f"a seed must be {SEED_BYTES} bytes, not {len(seed)}")
    least, limit = -(1 << (word_bits - 1)), (1 << (word_bits - 1)) - 1
    # CTR is what is needed: a key stream that everybody can make again. Nothing is secret here.
    stream = Cipher(algorithms.AES(seed[:16]), modes.CTR(seed[16:])).encryptor()
    zeros = bytes(2 * BLOCK)
    room = bytearray(2 * BLOCK + _AES_BLOCK)  # update_into asks for one AES block more than it writes
    cells = np.frombuffer(room, dtype="<u2", count=BLOCK)
    sums = np.zeros(_CELLS, dtype=np.int64)
    for bits, part in _pieces(segments, chunks):
        if int(part.min()) < least or int(part.max()) > limit:
            raise SketchError(f"a word does not fit {word_bits} bits")
        stream.update_into(memoryview(zeros)[: 2 * len(part)], room)
        # Plus and minus have cells of their own: one addition a word, and no sign to multiply by.
        summed = np.bincount(cells[: len(part)] & (_CELLS - 1), weights=part, minlength=_CELLS)
        sums += summed.astype(np.int64) << (most - bits)
    return sums[:SKETCH_WORDS] - sums[SKETCH_WORDS:]


def _pieces(segments: Segments, chunks: Iterable[NDArray[Any]]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The body in pieces of at most BLOCK words with one scale, as (fraction_bits, piece)."""
    rest = [[words, bits] for words, bits in reversed(segments) if words]
    for chunk in chunks:
        if chunk.dtype not in (np.dtype("<i4"), np.dtype("<i2")):
            raise SketchError(f"words must be signed integers of 2 or 4 bytes, not {chunk.dtype}")
        flat = chunk.reshape(-1)
        while len(flat):
            if not rest:
                raise SketchError("there are more words than the segments have")
            take = min(len(flat), rest[-1][0], BLOCK)
            yield rest[-1][1], flat[:take]
            flat = flat[take:]
            rest[-1][0] -= take
            if not rest[-1][0]:
                rest.pop()
    if rest:
        raise SketchError("there are fewer words than the segments have")


def judge(
    sketches: Mapping[str, Sketch], weights: Mapping[str, int], *, clip_norm: float, segments: Segments
) -> Verdict:
    """The rule, from this round's sketches alone: whoever has them, in whatever order, comes to the same set.

    Let q be a silo's sum of squares over its squared weight, and m the median of all q (of an even number: the mean of
    the two in the middle). A silo is left out where

        q > SLACK^2 * (clip_norm^2 + what rounding may add)     it did not clip             NORM_OVER_BOUND
        q > ABOVE^2 * m                                         far longer than the others  NORM_ABOVE_OTHERS
        q < BELOW^2 * m                                         empty, or nearly            NORM_BELOW_OTHERS

    All comparisons are of exact fractions. The first reason that holds is named.

    Parameters:
        sketches: silo -> its sketch, at least one.
        weights: silo -> its weight in the manifest, at least 1.
        clip_norm: the manifest's L2 bound of an update before weighing.
        segments: as for `sketch`.

    Raises:
        SketchError: no sketch, or one that is not 256 int64.
    """
    if not sketches:
        raise SketchError("there is no sketch to judge")
    for silo, row in sketches.items():
        if row.dtype != np.dtype("<i8") or row.shape != (SKETCH_WORDS,):
            raise SketchError(f"the sketch of {silo} is not {SKETCH_WORDS} sums of 64 bits")
    silos = sorted(sketches)
    most = max(bits for _, bits in segments)
    squares = {silo: sum(value * value for value in sketches[silo].tolist()) for silo in silos}
    scaled = {silo: Fraction(squares[silo], weights[silo] ** 2) for silo in silos}
    median = _median(list(scaled.values()))
    # Rounding up or down at random adds a variance of at most 1/4 of a unit's square a word, after the weight.
    rounding = Fraction(sum(words << 2 * (most - bits) for words, bits in segments), 4)
    bound = (Fraction(clip_norm) * 2**most) ** 2
    excluded = {}
    for silo in silos:
        if scaled[silo] > SLACK**2 * (bound + rounding / weights[silo] ** 2):
            excluded[silo] = OVER_BOUND
        elif scaled[silo] > ABOVE**2 * median:
            excluded[silo] = ABOVE_OTHERS
        elif scaled[silo] < BELOW**2 * median:
            excluded[silo] = BELOW_OTHERS
    return Verdict(
        members=tuple(silo for silo in silos if silo not in excluded),
        excluded=excluded,
        norms={silo: math.sqrt(scaled[silo]) / 2.0**most for silo in silos},
        cosines=_cosines({silo: sketches[silo] / weights[silo] for silo in silos}),
    )


def _median(values: list[Fraction]) -> Fraction:
    values.sort()
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _cosines(rows: Mapping[str, NDArray[np.float64]]) -> dict[str, float | None]:
    total = np.sum(list(rows.values()), axis=0)
    return {silo: cosine(row, total - row) for silo, row in rows.items()}


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """The cosine of the angle between two rows; None where one is zero."""
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else None
