"""Compressed pixel data (PS3.5 A.4): a table of offsets, then fragments; which of them are one frame.

    as many fragments as frames   one each: no table could say otherwise
    more                          by the table, basic or extended; without one, a frame ends where its code stream does
    fewer                         refused

A table that does not fit the fragments is refused, and so is a single frame whose fragments are several pictures: any choice
would be a guess.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from silo_node.imaging import codestream
from silo_node.imaging.bounded import Source

MOST = 200_000
_END_OF_PICTURE = b"\xff\xd9"
_PADDING = 10  # bytes at the end of a fragment in which the end of a picture may stand


def items(source: Source) -> list[tuple[int, int]] | None:
    """(place, bytes) of each item's value from where `source` stands, the table of offsets first; at most about MOST.

    None where the end is missing.
    """
    found: list[tuple[int, int]] = []
    at = source.tell()
    while len(found) <= MOST:
        source.seek(at)
        item = source.read(8)
        if len(item) < 8 or item[:2] != b"\xfe\xff":
            return None
        if item[2:4] == b"\xdd\xe0":
            return found
        length = int.from_bytes(item[4:], "little")
        if item[2:4] != b"\x00\xe0" or at + 8 + length > source.size:
            return None
        found.append((at + 8, length))
        at += 8 + length
    return found


def frame(source: Source, index: int, frames: int, extended: bytes | None) -> bytes:
    """The frame `index`, from 0, of as many as the header says. extended: the extended offset table, if there is one.

    Raises ValueError where it cannot be told which fragments they are.
    """
    found = items(source)
    if not found or not frames <= len(found) - 1 < MOST:
        raise ValueError("fragments are missing, or there are too many")
    (table, length), *fragments = found
    mine = fragments[index : index + 1]
    if len(fragments) > frames:
        basic = _piece(source, table, length)
        offsets = _numbers(extended, "Q") if extended else _numbers(basic, "L")
        if offsets:
            mine = _by_table(fragments, offsets, frames)[index]
        elif frames > 1:
            mine = _by_ends(source, fragments, frames)[index]
        else:
            if any(codestream.begins(_piece(source, at, min(size, 8))) for at, size in fragments[1:]):
                raise ValueError("the header says one frame, and there are more")
            mine = fragments
    return b"".join(_piece(source, at, size) for at, size in mine)


def _numbers(table: bytes, kind: str) -> list[int]:
    return [number for (number,) in struct.iter_unpack("<" + kind, table)]


def _by_table(fragments: list[tuple[int, int]], offsets: list[int], frames: int) -> list[list[tuple[int, int]]]:
    """The fragments of each frame; an offset counts from the first fragment's item (PS3.5 A.4)."""
    places = {at - fragments[0][0]: number for number, (at, _) in enumerate(fragments)}
    starts = [places.get(offset, -1) for offset in offsets]
    if len(starts) != frames or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
        raise ValueError("the table of offsets does not fit the fragments")
    return [fragments[a:b] for a, b in zip(starts, [*starts[1:], len(fragments)], strict=True)]


def _by_ends(source: Source, fragments: list[tuple[int, int]], frames: int) -> list[list[tuple[int, int]]]:
    """The fragments of each frame: one ends with its code stream's last marker, padded or not."""
    found: list[list[tuple[int, int]]] = [[]]
    for at, size in fragments:
        found[-1].append((at, size))
        tail = min(size, _PADDING)
        if _END_OF_PICTURE in _piece(source, at + size - tail, tail):
            found.append([])
    if len(found) != frames + 1 or found[-1]:
        raise ValueError("there is no table of offsets, and the fragments do not say where a frame ends")
    return found


def _piece(source: Source, at: int, size: int) -> bytes:
    source.seek(at)
    return source.read(size)
