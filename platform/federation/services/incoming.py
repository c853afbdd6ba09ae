"""A large upload, piece by piece: no request body is larger than a chunk, so a browser cuts a model's file.

models/.incoming-<study>/<index>     a piece of at most 4 MiB, until the upload is finished, given up or a day old
"""

from __future__ import annotations

import io
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

from federation import conf
from federation.services.errors import Refused
from federation.services.models import PIECE
from federation.storage import AtomicFile, StorageFull

_OLD_SECONDS = 24 * 3600


def piece_keep(*, study: str, index: int, data: bytes) -> None:
    """Keep a piece; the first one begins the upload anew. Refused: too large, too many, a full disk."""
    if not data or len(data) > PIECE or index * PIECE + len(data) > conf.model_bytes():
        raise too_large()
    if index == 0:
        _forget_old()
        pieces_forget(study=study)
    try:
        with AtomicFile(_folder(study) / str(index), expected=len(data)) as file:
            file.write(data)
            file.keep(durable=False)
    except StorageFull as error:
        raise Refused("DISK_FULL", "The portal's disk is full; its operator has to make room.") from error


def pieces_open(*, study: str, count: int) -> BinaryIO:
    """The file of which `count` pieces came. Refused: one is missing."""
    possible = 1 <= count <= -(-conf.model_bytes() // PIECE)
    paths = [_folder(study) / str(index) for index in range(count)] if possible else []
    if not paths or not all(path.is_file() for path in paths):
        raise Refused("PIECES_MISSING", "Not all of the file arrived; choose it again.", status=422)
    return io.BufferedReader(_Pieces(paths))


def pieces_forget(*, study: str) -> None:
    """Remove what is kept of an upload."""
    shutil.rmtree(_folder(study), ignore_errors=True)


def too_large() -> Refused:
    """The file is larger than the portal takes."""
    return Refused("TOO_LARGE", f"A model's file may have at most {conf.model_bytes() >> 20} MiB.")


class _Pieces(io.RawIOBase):
    """Files one after the other, as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = list(reversed(paths))
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while True:
            if self._file is None:
                if not self._paths:
                    return 0
                self._file = self._paths.pop().open("rb")
            data = self._file.read(len(view))
            if data:
                view[: len(data)] = data
                return len(data)
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _folder(study: str) -> Path:
    return conf.model_folder() / f".incoming-{study}"


def _forget_old() -> None:
    for folder in conf.model_folder().glob(".incoming-*"):
        if time.time() - folder.stat().st_mtime > _OLD_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
