"""A log file that several processes append to, cut into pieces by size, the old ones compressed, the oldest deleted.

    silo.log  ->  silo-000001.log.gz, silo-000002.log.gz, ...    a higher number is newer

A line is written under a lock of the file beside it (`.silo.log.lock`), and whoever finds the file too long under that
lock cuts it: so no line goes into a piece that is being compressed, and none is lost. The lock is the kernel's record lock,
which belongs to a process: a forked child doesn't share its parent's.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from silo_node.errors import is_disk_full

MOST_MB: Final = 100
"""MB of one log with all its pieces, unless `[limits] logs_mb` says otherwise."""
SHARE: Final = 10
"""One piece is a tenth of what all may have, before compression; so some ten pieces at least are kept."""
LONGEST_PIECE: Final = 5_000_000
"""Bytes: compressing it takes some 0.1 s, in which the other processes wait with their lines."""
_PIECE: Final = re.compile(r"-(\d{6,})\.log(\.gz)?")


class RotatingFile:
    """What structlog and the readers of children's output write lines to. One thread at a time."""

    def __init__(self, path: Path, most_mb: int) -> None:
        self._path = path
        self._most = most_mb * 1_000_000
        self._piece = min(self._most // SHARE, LONGEST_PIECE)
        self._lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._handle = self._opened()

    def write(self, text: str | bytes) -> None:
        """Whole lines, or to stderr where the disk is full: a line that can't be kept must not end the work."""
        data = text.encode() if isinstance(text, str) else text
        try:
            with self._locked():
                self._current(len(data))
                os.write(self._handle, data)
        except OSError as error:
            if not is_disk_full(error):
                raise
            sys.stderr.write(data.decode("utf-8", "replace"))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Give the handles back."""
        os.close(self._handle)
        os.close(self._lock)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _current(self, more: int) -> None:
        """The handle is that of the file of this name, and there is room in it for `more` bytes."""
        mine = os.fstat(self._handle)
        try:
            there = os.stat(self._path)  # noqa: PTH116 - each line comes here
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            os.close(self._handle)
            self._handle = self._opened()
            mine = os.fstat(self._handle)
        if mine.st_size and mine.st_size + more > self._piece:
            self._cut()

    def _cut(self) -> None:
        found = pieces(self._path)
        number = max((number for number, _ in found), default=0) + 1
        piece = self._path.with_name(f"{self._path.stem}-{number:06d}.log")
        self._path.replace(piece)
        os.close(self._handle)
        self._handle = self._opened()
        # Also those that an earlier process could not compress, because it was killed or the disk was full.
        for _, path in [*found, (number, piece)]:
            if path.suffix != ".gz":
                _compress(path)
        keep_within(self._path, self._most - self._piece)


def pieces(path: Path) -> list[tuple[int, Path]]:
    """(number, piece) of a log file, oldest first."""
    found = []
    for each in path.parent.glob(f"{path.stem}-*.log*"):
        match = _PIECE.fullmatch(each.name.removeprefix(path.stem))
        if match is not None:
            found.append((int(match[1]), each))
    return sorted(found)


def keep_within(path: Path, most: int) -> None:
    """Delete the oldest pieces until all have at most `most` bytes."""
    found = pieces(path)
    size = sum(each.stat().st_size for _, each in found)
    for _, each in found:
        if size <= most:
            return
        size -= each.stat().st_size
        each.unlink(missing_ok=True)


def _compress(path: Path) -> None:
    """PATH becomes PATH.gz, whole or not at all; it stays as it is where there is no room."""
    beside = path.with_name(f".{path.name}.gz.tmp")
    try:
        with (
            path.open("rb") as source,
            os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6) as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
        beside.replace(path.with_name(path.name + ".gz"))
        path.unlink()
    except OSError as error:
        beside.unlink(missing_ok=True)
        if not is_disk_full(error):
            raise
