"""Which masks an update wears, and what is left of them in the sum."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from protocol.secure_aggregation.parameters import Kind, RoundParameters
from protocol.secure_aggregation.prg import Label, Stream, add_masks
from protocol.secure_aggregation.words import Lanes, is_whole, lane, pack


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

    def apply(self, lanes: Lanes, kind: Kind, start: int, *, out: Lanes | None = None, threads: int = 1) -> None:
        """Add and subtract, in place or into `out` (see `add_masks`). lanes: from word `start` of the body or tail."""
        plus, minus = (self.body_plus, self.body_minus) if kind == "body" else (self.tail_plus, self.tail_minus)
        add_masks(lanes, start, plus, minus, out=out, threads=threads)


def masked(
    parameters: RoundParameters, masks: Masks, k: int, words: bytes, *, threads: int | None = None
) -> tuple[bytes, str]:
    """Chunk k under its masks, packed, and its digest.

    Parameters:
        words: the quantised lanes of chunk k; left as they are.
        threads: None: one a core that this process may use, at most 8.
    """
    kind, start, _ = parameters.chunk_range(k)
    bits = parameters.bits(k)
    lanes: Lanes = np.frombuffer(words, dtype=lane(bits))
    # BytesIO hands out the very bytes that were written through its buffer, so a chunk is never copied.
    room = io.BytesIO(bytes(parameters.chunk_bytes(k)))
    with room.getbuffer() as view:
        out: Lanes = np.frombuffer(view, dtype=lanes.dtype) if is_whole(bits) else np.empty_like(lanes)
        masks.apply(lanes, kind, start, out=out, threads=cores() if threads is None else threads)
        if not is_whole(bits):
            view[:] = pack(out, bits)
        del out
    chunk = room.getvalue()
    return chunk, "sha256:" + hashlib.sha256(chunk).hexdigest()


def cores() -> int:
    """How many cores this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
