"""Opens a file of the data folder so that nothing in it can cost more than a fixed amount of time and memory.

    opened(path)   the file as pydicom reads it: regular files only (a FIFO would wait, a device may do anything), and of a
                   folder only what really lies in it, told from the file itself: no name is looked up a second time
    deflated       inflated here, at most MAX_INFLATED bytes: pydicom would inflate whatever a bomb holds
    read(size)     refused where a value is too long, where there are too many, or after too much time on the processor

The limits are far above any real header's: what counts is what is read, so long values that are skipped cost nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_VALUE = 16 * 2**20  # bytes of one value of a header
MAX_TOTAL = 64 * 2**20  # bytes of a header that are read, not skipped
READ_COSTS = 100  # counted for each read, so that there are at most 640,000: an element takes about 1 kB once parsed
MAX_SECONDS = 10.0  # on the processor: a slow network drive is not a hostile file
MAX_INFLATED = 256 * 2**20
_CLOCK = 25_000  # between two looks at the clock, as counted above
_PIECE = 2**16
_WINDOW = 2**14
_META = 4096  # where a deflated file says that it is one
_DEFLATED, _PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\x00\x00\x00"


class NotAFile(OSError):
    """A FIFO, a socket, a device or a folder: never read."""


class Outside(OSError):
    """Its real path does not lie in its folder: never read."""


class Changed(OSError):
    """It is not the file that the index speaks of, or it changed while it was read."""


class TooMuch(ValueError):
    """The file asks for more than any real header does."""


class Source:
    """A file that counts what is read of it; what pydicom needs of one (read, seek, tell), and faster than Python's own.

    size: bytes that can be read. seen: (bytes, mtime_ns) of the file itself. deflated: the bytes were inflated; the real
    transfer syntax is the deflated one.
    """

    def __init__(
        self, handle: int | None, content: bytes, size: int, *, seen: tuple[int, int], deflated: bool = False
    ) -> None:
        """handle: of the file, None where `content` is all of it. content: the first bytes."""
        self._handle, self.size, self.seen, self.deflated = handle, size, seen, deflated
        self._window, self._start, self._at = content, 0, 0
        self.allow()

    def allow(self, *, value: int = MAX_VALUE, total: int = MAX_TOTAL) -> None:
        """Start to count anew with other limits, in bytes: pixel data follows the header."""
        self._value, self._left = value, total
        self._look = total - _CLOCK
        self._until = time.thread_time() + MAX_SECONDS

    def read(self, size: int | None = None, /) -> bytes:
        """As a file's; TooMuch beyond the limits, and where all that is left is asked for."""
        if size is None or not 0 <= size <= self._value:
            raise TooMuch("a value is too long")
        self._left -= size + READ_COSTS
        if self._left < self._look:
            self._look = self._left - _CLOCK
            if self._left < 0 or time.thread_time() > self._until:
                raise TooMuch("the header is too long, or takes too long")
        at = self._at - self._start
        found = self._window[at : at + size] if at >= 0 else b""
        elsewhere = at < 0 or self._start + len(self._window) < self.size
        if len(found) < size and elsewhere and self._handle is not None:
            self._window, self._start = os.pread(self._handle, max(size, _WINDOW), self._at), self._at
            found = self._window[:size]
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As a file's."""
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise ValueError("a place before the file")
        self._at = at
        return at

    def tell(self) -> int:
        """As a file's."""
        return self._at


def handle_of(path: Path | str, root: Path | str | None) -> int:
    """A regular file, open for reading; `root`: a real path in which its own must lie, None for anywhere.

    The open file is asked, not its name, which may lead elsewhere by now. Raises OSError; NotAFile, Outside.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if root is not None:
            real = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115 - twice as fast
            if not real.startswith(str(root).rstrip("/") + "/"):
                raise Outside(errno.EXDEV, "it is a link that leads out of its folder")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise NotAFile(errno.EINVAL, "it is no regular file")
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextmanager
def opened(
    path: Path | str, *, root: Path | str | None = None, seen: tuple[int, int] | None = None
) -> Iterator[Source]:
    """The file, to be read within limits.

    root: as in `handle_of`; None only for a file that is of no folder yet. seen: (bytes, mtime_ns) that it must have.
    Raises OSError; NotAFile, Outside, Changed before anything is read, and Changed at the end where it changed meanwhile;
    zlib.error, EOFError and TooMuch where it is deflated.
    """
    handle = handle_of(path, root)
    try:
        now = _seen(handle)
        if seen not in (None, now):
            raise Changed(errno.ESTALE, "it has another size or time than at the scan")
        start = os.pread(handle, _WINDOW, 0)
        end = _end_of_meta(start) if _DEFLATED in start[:_META] else None
        if end is None:
            yield Source(handle, start, now[0], seen=now)
        else:
            content = start[:end].replace(_DEFLATED, _PLAIN) + _inflated(handle, end)
            yield Source(None, content, len(content), seen=now, deflated=True)
        if seen is not None and _seen(handle) != seen:
            raise Changed(errno.ESTALE, "it was written to while it was read")
    finally:
        os.close(handle)


def _seen(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_size, status.st_mtime_ns


def _end_of_meta(start: bytes) -> int | None:
    """Where the deflated data set begins (PS3.5 A.5); None where the file meta group does not name that syntax."""
    if start[128:132] != b"DICM":
        return None
    at, end, deflated = 132, len(start), False
    while at + 8 <= end:
        group, element, kind, length = struct.unpack_from("<HH2sH", start, at)
        if group != 2:
            break
        value = at + 8
        if kind in (b"OB", b"UN"):
            value, length = at + 12, int.from_bytes(start[at + 8 : at + 12], "little")
        if element == 0 and length == 4:
            end = min(end, value + 4 + int.from_bytes(start[value : value + 4], "little"))
        deflated |= element == 0x10 and start[value : value + length].strip(b" \x00") == _DEFLATED
        at = value + length
    return at if deflated and at <= len(start) else None


def _inflated(handle: int, start: int) -> bytes:
    """What is deflated from `start` on. Raises zlib.error, EOFError, and TooMuch beyond MAX_INFLATED bytes."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    out: list[bytes] = []
    left = MAX_INFLATED
    while not stream.eof and (piece := os.pread(handle, _PIECE, start)):
        start += len(piece)
        more = stream.decompress(piece, left + 1)
        left -= len(more)
        if left < 0:
            raise TooMuch("the file inflates to too much")
        out.append(more)
    if not stream.eof:
        raise EOFError("the deflated data set is cut off")
    return b"".join(out)
