"""The words of an update: lanes in memory, packed on the wire.

    bits   lane    on the wire, little-endian
    64     uint64  8 bytes (the tail)
    32     uint32  4 bytes
    24     uint32  the low 3 bytes
    16     uint16  2 bytes
    12     uint16  two words in 3 bytes, the low word first; an odd last one in 2 bytes, four zero bits on top

Sums and masks are added in the ring of the lane; 2^w divides its size, so cutting a lane to w bits at the end gives the
sum modulo 2^w. Update and published sum use the same words.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[np.unsignedinteger[Any]]
Packed = bytes | bytearray | memoryview

WORD_BITS: Final = (32, 24, 16, 12)
"""Sizes of a body word."""
TAIL_BITS: Final = 64
_LANES: Final = {64: "<u8", 32: "<u4", 24: "<u4", 16: "<u2", 12: "<u2"}
_BLOCK: Final = 1 << 14
"""Words a pass (even): what a pass reads and writes stays in the cache."""


def lane(word_bits: int) -> np.dtype[Any]:
    """The type of a word in memory. Raises ValueError for a size that no word has."""
    if word_bits not in _LANES:
        raise ValueError(f"word_bits must be 32, 24, 16 or 12, not {word_bits!r}")
    return np.dtype(_LANES[word_bits])


def is_whole(word_bits: int) -> bool:
    """Whether lanes already are the packed words."""
    return 8 * lane(word_bits).itemsize == word_bits


def packed_bytes(words: int, word_bits: int) -> int:
    """How many bytes `words` words take on the wire."""
    lane(word_bits)
    return (words * word_bits + 7) // 8


def pack(lanes: Lanes, word_bits: int) -> memoryview:
    """The words on the wire; bits of a lane above `word_bits` are dropped.

    Parameters:
        lanes: one contiguous row of lane(word_bits).

    Returns:
        bytes; the lanes themselves, not copied, where those are the packed words.

    Raises:
        ValueError: another type or shape.
    """
    _check(lanes, word_bits)
    if is_whole(word_bits):
        return lanes.view(np.uint8).data
    packed = np.zeros(packed_bytes(len(lanes), word_bits), dtype=np.uint8)
    for low in range(0, len(lanes), _BLOCK):
        part = lanes[low : low + _BLOCK]
        into = packed[packed_bytes(low, word_bits) :]
        if word_bits == 24:
            _cut(part, into)
            continue
        even = len(part) & ~1
        pairs = part[:even].view(np.uint32)
        _cut(pairs & np.uint32(0xFFF) | pairs >> np.uint32(4) & np.uint32(0xFFF000), into)
        if even < len(part):
            into[-2:] = (part[-1:] & 0xFFF).view(np.uint8)
    return packed.data


def unpack(packed: Packed, word_bits: int) -> Lanes:
    """The lanes of packed words, unsigned; read-only and not copied where `packed` holds whole lanes.

    Raises:
        ValueError: no number of words has this length, or the bits beside the last word are not zero.
    """
    view = memoryview(packed).cast("B")
    size = view.nbytes
    words = 8 * size // word_bits if word_bits in _LANES else 0
    if packed_bytes(words, word_bits) != size:
        raise ValueError(f"{size} bytes are no row of {word_bits}-bit words")
    raw = np.frombuffer(view.toreadonly(), dtype=np.uint8)
    if is_whole(word_bits):
        return raw.view(lane(word_bits))
    lanes = np.empty(words, dtype=lane(word_bits))
    for low in range(0, words, _BLOCK):
        part = lanes[low : low + _BLOCK]
        source = raw[packed_bytes(low, word_bits) :]
        if word_bits == 24:
            _stretch(source, part)
            continue
        even = len(part) & ~1
        pairs = part[:even].view(np.uint32)
        _stretch(source, pairs)
        pairs[:] = pairs & 0xFFF | (pairs & 0xFFF000) << 4
        if even < len(part):
            part[-1:] = source[-2:].view("<u2")
            if part[-1] > 0xFFF:
                raise ValueError("the four bits above the last 12-bit word must be zero")
    return lanes


def add_packed(total: Lanes, packed: Packed, word_bits: int) -> None:
    """Add packed words to lanes, in place, in the ring of the lane.

    Raises:
        ValueError: another length or type, or what `unpack` refuses.
    """
    _check(total, word_bits)
    view = memoryview(packed).cast("B")
    if view.nbytes != packed_bytes(len(total), word_bits):
        raise ValueError(
            f"{len(total)} words of {word_bits} bits are {packed_bytes(len(total), word_bits)} bytes, not {view.nbytes}"
        )
    step = len(total) if is_whole(word_bits) else _BLOCK
    for low in range(0, len(total), max(step, 1)):
        part = total[low : low + step]
        first = packed_bytes(low, word_bits)
        np.add(part, unpack(view[first : first + packed_bytes(len(part), word_bits)], word_bits), out=part)


def signed(lanes: Lanes, word_bits: int) -> NDArray[np.int32]:
    """The words as two's complement of `word_bits` bits; bits of a lane above them do not count.

    Returns:
        int32, of the shape of `lanes`; at 32 bits a view.

    Raises:
        ValueError: another type or shape, or 64 bits.
    """
    _check(lanes, word_bits)
    if word_bits == TAIL_BITS:
        raise ValueError("words of 64 bits have no 32-bit value")
    above = 8 * lanes.itemsize - word_bits
    # Up and down again: the arithmetic shift copies the sign into the bits above the word.
    values = (lanes << above if above else lanes).view(f"<i{lanes.itemsize}")
    return np.asarray(values >> above if above else values, dtype="<i4")


def _check(lanes: Lanes, word_bits: int) -> None:
    if lanes.dtype != lane(word_bits) or lanes.ndim != 1 or not lanes.flags.c_contiguous:
        raise ValueError(f"words of {word_bits} bits must be one contiguous row of {lane(word_bits)}")


def _cut(words: Lanes, into: NDArray[np.uint8]) -> None:
    """The low three bytes of each 4-byte word, to the front of `into`. Byte by byte is the fastest numpy has here."""
    source, target = words.view(np.uint8), into[: 3 * len(words)]
    for byte in range(3):
        target[byte::3] = source[byte::4]


def _stretch(source: NDArray[np.uint8], words: Lanes) -> None:
    """Fill 4-byte words from three bytes each, from the front of `source`."""
    words[:] = 0
    packed, target = source[: 3 * len(words)], words.view(np.uint8)
    for byte in range(3):
        target[byte::4] = packed[byte::3]
