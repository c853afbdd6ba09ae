"""Check words: each silo's linear hash of what it sent, so that a published sum can be held against all of them.

    h = sum_k a_k x_k  mod 2^61 - 1,  over the body's signed words and then the tail's unsigned ones

The coefficients come from the second nonces, which are opened only once the portal is bound to a sum. Then h of the
published sum equals the sum of the silos' words, and for another sum it does with chance 2^-61 (universal hashing,
Carter and Wegman 1979). Three words of each tail are random (evaluation.py), so the word itself tells nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.secure_aggregation.prg import Stream

PRIME: Final = 2**61 - 1
WORD_BYTES: Final = 8
_BLOCK: Final = 1 << 15
_LIMB: Final = 21
"""Bits of a coefficient that are multiplied at once: times a 32-bit word they stay below 2^53, and _ROW of them in 2^63."""
_ROW: Final = 1 << 10


def seed_of(ctx: bytes, published: str, nonces: Mapping[str, bytes]) -> bytes:
    """32 bytes from the second nonces (silo -> 32 bytes) and the digest of the published sum.

    No party chose it: each nonce was committed to in `ready`, and one honest nonce makes it unknown before.
    """
    opened = [[silo, canonical.b64(nonces[silo])] for silo in sorted(nonces)]
    facts = canonical.encode({"ctx": ctx.hex(), "sum": published, "nonces": opened})
    return hashlib.sha256(facts).digest()


class CheckWord:
    """Adds up h over an update or a sum, given in order.

    Parameters:
        seed: from `seed_of`.
        ctx: 32 bytes, the attempt's context.
    """

    def __init__(self, seed: bytes, ctx: bytes) -> None:
        self._coefficients = Stream(seed, "check", ctx).at(0)
        self._total = 0

    def body(self, words: NDArray[np.signedinteger[Any]]) -> None:
        """Add the next words of the body: signed, of at most 32 bits, shape any."""
        for low in range(0, len(words), _BLOCK):
            part = words[low : low + _BLOCK].astype(np.int64)
            coefficients = self._next(len(part))
            rows = np.arange(0, len(part), _ROW)
            for limb in range(0, 61, _LIMB):
                digits = ((coefficients >> np.uint64(limb)) & np.uint64((1 << _LIMB) - 1)).astype(np.int64)
                sums = np.add.reduceat(digits * part, rows)
                self._total += sum(sums.tolist()) << limb

    def tail(self, words: NDArray[np.uint64]) -> None:
        """Add the words of the tail, after the whole body."""
        self._total += sum(a * x for a, x in zip(self._next(len(words)).tolist(), words.tolist(), strict=True))

    @property
    def value(self) -> int:
        """h so far, 0 to 2^61 - 2."""
        return self._total % PRIME

    def _next(self, count: int) -> NDArray[np.uint64]:
        """The next coefficients: 61 bits of each 8 bytes of key stream."""
        drawn = np.frombuffer(self._coefficients.update(bytes(8 * count)), dtype="<u8")
        return drawn & np.uint64(PRIME)


def to_bytes(word: int) -> bytes:
    """A check word as it travels: 8 bytes, big-endian."""
    return word.to_bytes(WORD_BYTES, "big")


def add_up(words: Iterable[bytes]) -> int:
    """The sum of check words as they travel. Raises: ValueError for one that is not below 2^61 - 1."""
    numbers = [int.from_bytes(word, "big") for word in words]
    if any(number >= PRIME for number in numbers):
        raise ValueError("a check word must be below 2^61 - 1")
    return sum(numbers) % PRIME
