"""The last good reading of a source, as a file whose own time is when that reading began.

Several readings may be under way at once: a round's, a command's, the receiver's, and the one that renews the copy. A slow one
that ends last must not put what it saw first in the place of what a later one saw: that may be somebody's "no".
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from silo_node.files import replacing


def keep(path: Path, data: bytes, began: float) -> None:
    """`data`, of a reading that began then (seconds since 1970), unless a reading that began later is kept. Raises: DiskFull."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(path.parent):
        before = path.stat().st_mtime if path.exists() else None
        if before is not None and began < before <= time.time():  # not one of before the clock was set back
            return
        if before is not None and path.read_bytes() == data:
            os.utime(path, (began, began))
            return
        with replacing(path) as file:
            file.write(data)
            file.flush()
            os.utime(file.fileno(), (began, began))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One thread of one process at a time."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
