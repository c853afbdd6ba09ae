"""The chunk store and the model store: folders below CONSILIUM_HOME.

    chunks/<round key>/<silo>@<index>    a piece of one silo's masked update, at most 4 MiB
    chunks/<round key>/.sum@<index>      a piece of the sum, masks removed (no silo can have this name)
    models/<sha256 hex>.state            a model, ModelState.to_bytes

A file appears under its name only when it is whole: it is written under a temporary name in the same folder, flushed to
the disk and renamed. A full disk raises StorageFull and leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from federation import conf

SUM = ".sum"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAFE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\Z")


def is_full(error: OSError) -> bool:
    """Whether a disk, a quota or a limit on files is exhausted."""
    return error.errno in _FULL


class StorageFull(Exception):
    """The disk of the chunk store is full; nothing was kept. The message says which folder."""


class Damaged(Exception):
    """A stored piece is missing or its bytes are not those that were received."""


def chunk_path(round_key: str, part: str, index: int) -> Path:
    """The place of a piece. `part`: a silo's name or SUM. Raises ValueError for a name that could leave the folder."""
    for name in (round_key, part):
        if name != SUM and not _SAFE.match(name):
            raise ValueError(f"not a name that the chunk store uses: {name!r}")
    return conf.chunk_folder() / round_key / f"{part}@{int(index):06d}"


def model_path(digest: str) -> Path:
    """The place of a model's file; `digest` is "sha256:<64 hex>"."""
    return conf.model_folder() / f"{digest.removeprefix('sha256:')}.state"


class AtomicFile:
    """A file that appears whole or not at all, hashed while it is written.

    Use as a context manager: `write` any number of times, then `keep()`. Without `keep` the temporary file is removed.
    `digest` ("sha256:..") and `size` (bytes) are valid after the last write.
    """

    def __init__(self, path: Path, *, expected: int = 0) -> None:
        """`expected`: bytes that will come, checked against the free space before anything is written."""
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        self._known: bytes | None = None
        self._file: BinaryIO | None = None
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            space = os.statvfs(path.parent)
            if space.f_bavail * space.f_frsize < expected + conf.disk_reserve():
                raise StorageFull(self._full())
            self._file = self._part.open("wb", buffering=0)
        except OSError as error:
            raise self._mapped(error) from error

    def write(self, data: bytes | memoryview, *, sha256: bytes | None = None) -> None:
        """Append; raises StorageFull. `sha256`: of `data`, where it is known and `data` is the whole file."""
        if self._file is None:
            raise ValueError("the file is closed")
        try:
            view = memoryview(data).cast("B")
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self.drop()
            raise self._mapped(error) from error
        if sha256 is None:
            self._hash.update(data)
        self._known = sha256
        self.size += memoryview(data).nbytes

    @property
    def digest(self) -> str:
        return "sha256:" + (self._known.hex() if self._known else self._hash.hexdigest())

    def flush(self) -> None:
        """Bring the bytes to the disk; raises StorageFull. The file still has its temporary name."""
        if self._file is None:
            return
        try:
            os.fdatasync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self.drop()
            raise self._mapped(error) from error
        self._file = None

    def keep(self, *, durable: bool = True) -> None:
        """Give the file its name; what was there before is replaced.

        `durable=False` leaves the flushing to the system: for what can be made again, and is checked when it is read.
        """
        if durable:
            self.flush()
        elif self._file is not None:
            self._file.close()
            self._file = None
        self._part.replace(self.path)

    def drop(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def _full(self) -> str:
        return f"the disk of {self.path.parent} is full; free some space and send the piece again"

    def _mapped(self, error: OSError) -> Exception:
        return StorageFull(self._full()) if is_full(error) else error


def read_chunk(round_key: str, part: str, index: int, *, digest: str, into: bytearray) -> memoryview:
    """The bytes of a piece, read into the buffer `into` (at least as long), checked against `digest`.

    Raises Damaged where the file is missing, has another length or other bytes: no wrong sum, ever.
    """
    path = chunk_path(round_key, part, index)
    view = memoryview(into)
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > len(view):
                raise Damaged(f"piece {index} of {part} in {round_key} is longer than a piece can be")
            got = 0
            while got < size:
                step = file.readinto(view[got:size])
                if not step:
                    break
                got += step
    except FileNotFoundError:
        raise Damaged(f"piece {index} of {part} in {round_key} is not in the chunk store") from None
    found = "sha256:" + hashlib.sha256(view[:got]).hexdigest()
    if found != digest:
        raise Damaged(f"piece {index} of {part} in {round_key} has other bytes than those that were received")
    return view[:got]


def make_durable(path: Path) -> None:
    """Bring a file that has its name already to the disk."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())


def forget_parts(round_key: str, parts: Iterable[str]) -> None:
    """Remove the pieces of these silos (or SUM) of a round; what is not there is not missed."""
    names = set(parts)
    for path in _pieces(round_key):
        if path.name.partition("@")[0] in names:
            path.unlink(missing_ok=True)


def forget_round(round_key: str) -> None:
    """Remove everything that is stored for a round."""
    folder = chunk_path(round_key, SUM, 0).parent
    if folder.is_dir():
        shutil.rmtree(folder)


def _pieces(round_key: str) -> list[Path]:
    folder = chunk_path(round_key, SUM, 0).parent
    return list(folder.iterdir()) if folder.is_dir() else []
