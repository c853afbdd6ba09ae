"""Which masks an update wears, and what is left of them in the sum."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from protocol.secure_aggregation.parameters import Kind, RoundParameters
from protocol.secure_aggregation.prg import Label, Stream, add_masks


@dataclass(frozen=True)
class Masks:
    """Streams to add and to subtract, for the body and for the tail."""

    body_plus: tuple[Stream, ...]
    body_minus: tuple[Stream, ...]
    tail_plus: tuple[Stream, ...]
    tail_minus: tuple[Stream, ...]

    @classmethod
    def build(
        cls,
        ctx: bytes,
        *,
        self_plus: Iterable[bytes] = (),
        self_minus: Iterable[bytes] = (),
        pair_plus: Iterable[bytes] = (),
        pair_minus: Iterable[bytes] = (),
    ) -> Masks:
        """Masks of these seeds (32 bytes each)."""
        plus: list[tuple[bytes, Label]] = [(seed, "self") for seed in self_plus] + [
            (seed, "pair") for seed in pair_plus
        ]
        minus: list[tuple[bytes, Label]] = [(seed, "self") for seed in self_minus]
        minus += [(seed, "pair") for seed in pair_minus]
        return cls(
            tuple(Stream(seed, label, ctx) for seed, label in plus),
            tuple(Stream(seed, label, ctx) for seed, label in minus),
            tuple(Stream(seed, "tail", ctx) for seed, _ in plus),
            tuple(Stream(seed, "tail", ctx) for seed, _ in minus),
        )

    def apply(self, buffer: bytearray | memoryview, kind: Kind, start: int) -> None:
        """Add and subtract in place. buffer: words from word `start` of the body (4 bytes) or tail (8 bytes)."""
        if kind == "body":
            add_masks(np.frombuffer(buffer, dtype="<u4"), start, self.body_plus, self.body_minus)
        else:
            add_masks(np.frombuffer(buffer, dtype="<u8"), start, self.tail_plus, self.tail_minus)


def masked(parameters: RoundParameters, masks: Masks, k: int, words: bytes) -> tuple[bytes, str]:
    """Chunk k under its masks, and its digest.

    Parameters:
        words: the quantised words of chunk k, little-endian; left as they are.
    """
    kind, start, _ = parameters.chunk_range(k)
    # BytesIO hands its own bytes out again, so a chunk is copied once.
    room = io.BytesIO(words)
    with room.getbuffer() as view:
        masks.apply(view, kind, start)
    chunk = room.getvalue()
    return chunk, "sha256:" + hashlib.sha256(chunk).hexdigest()
