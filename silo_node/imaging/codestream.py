"""What compressed pixel data says of itself: whether it begins as a picture does, and the picture's size.

Decoders believe the code stream, and pydicom believes the header of the file: where the two differ, rows and columns would be
parted at the wrong places, and another picture than the scanner's would be trained on.
"""

from __future__ import annotations

import struct

_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})  # among C0 to CF: tables and extensions, no picture
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_J2K = b"\xff\x4f\xff\x51"
_BOX = b"jP  "
_BOXES = 4096  # bytes of boxes that may stand before a JPEG 2000 code stream


def begins(start: bytes) -> bool:
    """Whether these are the first bytes of JPEG, JPEG-LS, JPEG 2000 (also in boxes) or RLE (PS3.5 G.5: the first of 1 to 15
    segments is at 64)."""
    if start[:3] == b"\xff\xd8\xff" or start[:4] == _J2K or start[4:8] == _BOX:
        return True
    return start[1:8] == b"\0\0\0\x40\0\0\0" and 1 <= start[0] <= 15


def size(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) of JPEG, JPEG-LS and JPEG 2000; None where it is another format, or does not say."""
    if frame[:2] == b"\xff\xd8":
        return _jpeg(frame)
    if frame[:4] == _J2K or frame[4:8] == _BOX:
        return _jpeg_2000(frame)
    return None


def _jpeg(frame: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        kind = frame[at + 1]
        if kind == 0xFF or kind in _ALONE:
            at += 1 if kind == 0xFF else 2
        elif (0xC0 <= kind <= 0xCF and kind not in _NO_FRAME) or kind == 0xF7:
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return (rows, columns, components) if rows and columns else None
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _jpeg_2000(frame: bytes) -> tuple[int, int, int] | None:
    at = frame.find(_J2K, 0, _BOXES)
    if at < 0 or at + 42 > len(frame):
        return None
    right, bottom, left, top = struct.unpack_from(">4L", frame, at + 8)
    (components,) = struct.unpack_from(">H", frame, at + 40)
    return bottom - top, right - left, components
