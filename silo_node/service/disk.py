"""What may fill the silo's disk over months is kept within `[limits]`: the oldest goes first.

| what                           | limit     | oldest by                                                          |
|--------------------------------|-----------|--------------------------------------------------------------------|
| cache/PLAN/: decoded pictures  | cache_gb  | last use; the newest stays, however large it is                     |
| sent/: copies of what left     | sent_mb   | number; egress.db keeps kind, time, size and digest of each for ever |
| *-NNNNNN.log.gz: old logs      | logs_mb   | number, each log by itself (log_files.py)                           |

Runs in the training worker, which does one thing at a time: no picture goes while a training looks at it. The audit log,
the journal, the models and what was received from a PACS are never touched here.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

from silo_node.config import Config
from silo_node.service.log_files import keep_within

_GOING: Final = ".going-"
_COPY: Final = re.compile(r"\d{8,}-[a-z-]+")
LOGS: Final = ("silo.log", "worker-training.log", "worker-control.log", "broker/valkey.log")


def tidy(config: Config) -> dict[str, int]:
    """Bring everything within its limit. Returns: what -> how many were deleted."""
    limits = config.settings.limits
    for name in LOGS:
        keep_within(config.folder / name, limits.logs_mb * 1_000_000)
    return {
        "caches": _caches(config.cache, int(limits.cache_gb * 1_000_000_000)),
        "copies": _copies(config.folder / "sent", limits.sent_mb * 1_000_000),
    }


def _caches(folder: Path, most: int) -> int:
    found = []
    for each in folder.iterdir() if folder.is_dir() else []:
        if each.name.startswith(_GOING):
            shutil.rmtree(each, ignore_errors=True)  # a crash came while it was being removed
        elif each.is_dir():
            found.append((*_use_and_size(each), each))
    found.sort()
    size, gone = sum(each for _, each, _ in found), 0
    for _, its, each in found[:-1]:
        if size <= most:
            break
        # Out of the way first: half a cache must never be taken for a whole one.
        going = each.with_name(_GOING + each.name)
        each.rename(going)
        shutil.rmtree(going, ignore_errors=True)
        size, gone = size - its, gone + 1
    return gone


def _use_and_size(folder: Path) -> tuple[float, int]:
    """(when it was last read or written, as well as the disk notes that; bytes on the disk)."""
    stats = [path.stat() for path in folder.iterdir()]
    # Not the folder's own last reading, which is this one.
    used = max((max(each.st_atime, each.st_mtime) for each in stats), default=folder.stat().st_mtime)
    return used, sum(512 * each.st_blocks for each in stats)


def _copies(folder: Path, most: int) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        found = sorted((int(each.name.split("-")[0]), each.stat().st_size, each.path) for each in entries
                       if _COPY.fullmatch(each.name))  # fmt: skip
    size, gone = sum(its for _, its, _ in found), 0
    for _, its, path in found:
        if size <= most:
            break
        Path(path).unlink(missing_ok=True)
        size, gone = size - its, gone + 1
    return gone
