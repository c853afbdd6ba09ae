"""Fixed-point scales: one for all words where the manifest fixes `fraction_bits`, else one a tensor, agreed beforehand.

A word is round(u * weight * 2^f) for an element u of a clipped update. Where the manifest says null, each shared tensor T
has a bound 2^e_T for its elements; the bounds are part of the model's state, so t silos signed them before the round.
All of this is exact: integers and fractions, the same at every hospital and at the portal.

    range     n * (2^e * heaviest * 2^f + 1) <= 2^(word_bits - 1) - 1 for n silos, so f_T = levels - e_T with
              levels = floor(log2(((2^(word_bits - 1) - 1) / n - 1) / heaviest)): no sum of n words can wrap round
    first     2^e the least power of two >= FIRST * clip_norm / sqrt(d): d weights of one size have the L2 norm clip_norm
              at clip_norm / sqrt(d) each
    next      from m_T, the largest |word| of T in the published sum: 2^e the least power of two >=
              margin * m_T / (total_weight * 2^f_T), margin = SMALL_MARGIN for up to SMALL elements, else MARGIN; no less
              than 2^-FALL of the last one, at most clip_norm's own power of two; a tensor whose sum is all zero keeps it

The published sum is known to all, so nothing private is spent. An element beyond its tensor's bound is cut to it
(quantise.py); what is cut goes into error feedback where the manifest has that, else it is lost like what `clip` takes. The
sum then reaches the bound, and the next one is `margin` times as large.

Scales may not lie so far apart that the sketch check's 64-bit sums could leave their range: f_T is at most the least f of
the model plus 64 - word_bits - (bits of d). With long words and many weights that costs digits which nobody misses.

Where sketches are shown, no few words may have a finer scale than all others: modulo the next scale's unit a sum of the sketch
would be of these words alone, and show single ones of a small tensor. So f_T is at most the largest f that `crowd` words
reach, counted from the finest tensor on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.model_state import LEAST_SCALE, MOST_SCALE, Scales, TensorSpec, check_scales, update_words
from protocol.secure_aggregation.parameters import Segment

MARGIN: Final = 4
SMALL_MARGIN: Final = 16
"""A silo's largest element over the mean's. Measured on chest images (docs/secure-aggregation.md): half of all tensors stay
below 3, but updates of small ones may cancel, and reach 25. Room in small tensors costs hardly any digits of the whole."""
SMALL: Final = 256
"""Elements up to which a tensor is small."""
FALL: Final = 1
"""Powers of two by which a bound may fall in a round."""
FIRST: Final = 8
"""The largest element of a first update over its root mean square, as powers of two go."""
LEAST_BITS: Final = 4
"""Binary digits that the lightest silo's largest element must keep."""

Segments = tuple[Segment, ...]


class ScalesError(ValueError):
    """Numbers of a manifest that no scale fits, or scales that do not belong to the study. Says what to change."""


@dataclass(frozen=True)
class FixedPoint:
    """What the manifest says about words, and the proof that no sum of them wraps round.

    word_bits: of a word of the body. fraction_bits: binary places of all words; None: each tensor's follow the sum.
    clip_norm: L2 bound of one update before weighing. silos: n, all that may be in a sum. heaviest, lightest: weights.
    crowd: the fewest words that may have the finest scale; more than 1 where sketches are shown (sketch.LEAST_WORDS).

    Raises:
        ScalesError: a sum could wrap round, or a word would say too little.
    """

    word_bits: int
    fraction_bits: int | None
    clip_norm: float
    silos: int
    heaviest: int = 1
    lightest: int = 1
    crowd: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.word_bits <= 32 or self.silos < 1 or not 1 <= self.lightest <= self.heaviest:
            raise ScalesError("word_bits from 2 to 32, at least one silo and weights from 1 on are needed")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ScalesError(f"clip_norm must be a positive finite number, not {self.clip_norm}")
        if self.fraction_bits is not None:
            self._prove_fixed(self.fraction_bits)
            return
        if self._room <= 0 or self.lightest * Fraction(2) ** self.levels < 2**LEAST_BITS:
            raise ScalesError(
                f"words of {self.word_bits} bits leave a silo of weight {self.lightest} less than {LEAST_BITS} bits of its "
                f"own, with {self.silos} silos of weights up to {self.heaviest}: take more word_bits, fewer silos or "
                "weights that lie closer together"
            )
        if self.levels < self.most:
            raise ScalesError(
                f"words of {self.word_bits} bits can't hold whole numbers up to clip_norm {self.clip_norm:g}, with "
                f"{self.silos} silos of weights up to {self.heaviest}: take more word_bits, a smaller clip_norm or smaller "
                "weights"
            )

    def _prove_fixed(self, bits: int) -> None:
        if bits < 0:
            raise ScalesError("fraction_bits must be at least 0")
        if self.silos * (Fraction(self.clip_norm) * self.heaviest * 2**bits + 1) >= 2 ** (self.word_bits - 1):
            raise ScalesError(
                f"{self.silos} updates of length clip_norm and weight {self.heaviest} could overflow a sum of "
                f"{self.word_bits} bits; lower fraction_bits, clip_norm or the weights"
            )

    @property
    def _room(self) -> Fraction:
        """The largest |u * weight * 2^f| of one silo; the 1 is for rounding."""
        return Fraction(2 ** (self.word_bits - 1) - 1, self.silos) - 1

    @cached_property
    def levels(self) -> int:
        """e + f of every tensor: the largest k with n * (heaviest * 2^k + 1) <= 2^(word_bits - 1) - 1."""
        return -ceil_log2(self.heaviest / self._room)

    @cached_property
    def most(self) -> int:
        """The exponent that no bound passes: 2^most >= clip_norm, and no element is longer than the whole update."""
        return min(max(ceil_log2(Fraction(self.clip_norm)), LEAST_SCALE), MOST_SCALE)

    # --- scales ------------------------------------------------------------------------------------------------------

    def initial(self, table: Sequence[TensorSpec]) -> Scales | None:
        """The bounds of the first round; None where the manifest fixes the scale."""
        if self.fraction_bits is not None:
            return None
        # The square root stays exact: 2^e >= FIRST * clip_norm / sqrt(d) where 4^e >= (FIRST * clip_norm)^2 / d.
        square = (FIRST * Fraction(self.clip_norm)) ** 2 / update_words(table)
        exponent = min(max(-(-ceil_log2(square) // 2), LEAST_SCALE), self.most)
        return (exponent,) * sum(spec.kind == "shared" for spec in table)

    def next_scales(
        self, table: Sequence[TensorSpec], scales: Scales | None, maxima: Sequence[int], *, total_weight: int
    ) -> Scales | None:
        """The bounds of the next round, from this round's and from `maxima`, the largest |word| of each shared tensor's sum.

        Raises: ScalesError.
        """
        places = self._places(table, scales)
        if scales is None:
            return None
        if len(maxima) != len(scales) or total_weight < 1:
            raise ScalesError("there must be one maximum for each shared tensor, and a weight of at least 1")
        margins = (SMALL_MARGIN if spec.size <= SMALL else MARGIN for spec in table if spec.kind == "shared")
        return tuple(
            self._next(scale, Fraction(margin * m, total_weight) / 2**bits)
            for scale, bits, margin, m in zip(scales, places, margins, maxima, strict=True)
        )

    def _next(self, scale: int, wanted: Fraction) -> int:
        if wanted <= 0:
            return scale
        return min(max(ceil_log2(wanted), scale - FALL, LEAST_SCALE), self.most)

    # --- what follows from them --------------------------------------------------------------------------------------

    def segments(self, table: Sequence[TensorSpec], scales: Scales | None) -> Segments:
        """The scales of the words of an update, in order; neighbours of one scale are one segment.

        Raises: ScalesError where the scales are not those of such a study.
        """
        found: list[Segment] = []
        sizes = (spec.size for spec in table if spec.kind == "shared")
        for size, bits in zip(sizes, self._places(table, scales), strict=True):
            if found and found[-1].fraction_bits == bits:
                size += found.pop().words
            found.append(Segment(size, bits))
        return tuple(found)

    def bound(self, fraction_bits: int) -> Fraction:
        """The largest |element| of one silo's update that is sent with this scale."""
        if self.fraction_bits is not None:
            return Fraction(self.clip_norm)
        return min(Fraction(2) ** (self.levels - fraction_bits), Fraction(self.clip_norm))

    def word_bounds(self, segments: Sequence[Segment], weights: Iterable[int]) -> tuple[int, ...]:
        """For each segment the largest |word| that an honest sum over silos of these weights can have."""
        summed = tuple(weights)
        at: dict[int, int] = {}
        for _, bits in segments:
            if bits not in at:
                one = self.bound(bits) * 2**bits
                at[bits] = sum(math.floor(one * weight) + 1 for weight in summed)
        return tuple(at[bits] for _, bits in segments)

    def _places(self, table: Sequence[TensorSpec], scales: Scales | None) -> list[int]:
        """The binary places of each shared tensor."""
        shared = sum(spec.kind == "shared" for spec in table)
        if self.fraction_bits is not None:
            if scales is not None:
                raise ScalesError("the model carries scales, but the manifest fixes fraction_bits")
            return [self.fraction_bits] * shared
        if scales is None:
            raise ScalesError("the model carries no scales, but the manifest lets them follow the sum")
        check_scales(table, scales)
        if max(scales) > self.most:
            raise ScalesError(f"a scale of the model is above 2^{self.most}, the bound of clip_norm")
        apart = max(0, 64 - self.word_bits - update_words(table).bit_length())
        least = self.levels - max(scales)
        finest = min(least + apart, self.levels - self._crowded(table, scales))
        return [min(self.levels - scale, finest) for scale in scales]

    def _crowded(self, table: Sequence[TensorSpec], scales: Scales) -> int:
        """The least exponent that counts: `crowd` words have it or a lower one. The highest where there are not so many."""
        sizes = (spec.size for spec in table if spec.kind == "shared")
        words = 0
        for scale, size in sorted(zip(scales, sizes, strict=True)):
            words += size
            if words >= self.crowd:
                return scale
        return max(scales)


def ceil_log2(value: Fraction) -> int:
    """The least k with 2^k >= value, for a value above 0."""
    k = value.numerator.bit_length() - value.denominator.bit_length()  # 2^(k-1) < value < 2^(k+1)
    return k if Fraction(2) ** k >= value else k + 1


# --- words by segment and by tensor ----------------------------------------------------------------------------------

Number = TypeVar("Number", bound=np.generic)


class Spread(Generic[Number]):
    """One number a segment, for any range of words: without a step of Python for each segment."""

    def __init__(self, segments: Sequence[Segment], numbers: Sequence[Any], kind: type[Number]) -> None:
        self._ends = np.cumsum([words for words, _ in segments], dtype=np.int64)
        self._numbers = np.array(numbers, dtype=kind)

    def of(self, start: int, stop: int) -> Any:
        """The numbers of words `start` to `stop`: one where they lie in one segment, else an array of stop - start."""
        first, last = np.searchsorted(self._ends, (start, stop - 1), side="right")
        if first == last:
            return self._numbers[first]
        ends = self._ends[first : last + 1].clip(max=stop)
        return np.repeat(self._numbers[first : last + 1], np.diff(ends, prepend=start))


def cut(segments: Iterable[Segment], start: int, stop: int) -> Iterator[Segment]:
    """The segments of words `start` to `stop`."""
    at = 0
    for words, bits in segments:
        low, high = max(at, start), min(at + words, stop)
        if low < high:
            yield Segment(high - low, bits)
        at += words


class Maxima:
    """The largest |word| of each shared tensor, from the pieces of a sum in order."""

    def __init__(self, table: Sequence[TensorSpec]) -> None:
        ends = np.cumsum([spec.size for spec in table if spec.kind == "shared"], dtype=np.int64)
        self._starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
        self._found = np.zeros(len(ends), dtype=np.int64)
        self._at = 0
        self._words = int(ends[-1])

    def add(self, words: NDArray[Any]) -> None:
        """The next piece: signed words, any length. Raises: ScalesError for more words than the tensors have."""
        if self._at + len(words) > self._words:
            raise ScalesError("there are more words than the tensors have")
        if not len(words):
            return
        first, last = np.searchsorted(self._starts, (self._at, self._at + len(words) - 1), side="right") - 1
        offsets = (self._starts[first : last + 1] - self._at).clip(min=0)
        # Two passes without a copy; the least word has no negative in its own type, so it grows first.
        highest = np.maximum.reduceat(words, offsets).astype(np.int64)
        lowest = np.minimum.reduceat(words, offsets).astype(np.int64)
        found = self._found[first : last + 1]
        np.maximum(found, np.maximum(highest, -lowest), out=found)
        self._at += len(words)

    def values(self) -> tuple[int, ...]:
        """Of each tensor. Raises: ScalesError where words are missing."""
        if self._at != self._words:
            raise ScalesError("there are fewer words than the tensors have")
        return tuple(self._found.tolist())
