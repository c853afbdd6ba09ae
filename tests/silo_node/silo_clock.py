"""`silo run` with a clock that a test moves: `python -m tests.silo_node.silo_clock FOLDER OFFSET SPEED`.

OFFSET is a file of 8 bytes (a float64): the seconds that this silo's clock is ahead of the machine's. What the silo reads
the time with is replaced before its first module is loaded. SPEED: by how much its hourly work comes sooner.
"""

from __future__ import annotations

import datetime
import mmap
import struct
import sys
import time
from pathlib import Path

_REAL = time.time
_DATETIME = datetime.datetime


def move_clock(path: Path) -> None:
    """From here on this process's clock is ahead by what stands in the file."""
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)

    def moved() -> float:
        return _REAL() + struct.unpack("<d", shared[:8])[0]

    class Moved(_DATETIME):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(moved(), tz)

    time.time = moved
    datetime.datetime = Moved  # type: ignore[misc]


def main(folder: str, offset: str, speed: str) -> None:
    """Until SIGTERM."""
    move_clock(Path(offset))
    from silo_node import sync
    from silo_node.commands.terminal import node_of
    from silo_node.service import logs

    sync.HOUR /= float(speed)  # type: ignore[misc]
    node = node_of(Path(folder))
    logs.configure(node.config.folder, node.config.name, node.config.settings.limits.logs_mb)
    try:
        sync.run(node, say=print)
    finally:
        node.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
