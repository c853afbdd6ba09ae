"""Notices what a silo does without being asked: new files in the data folder or the inbox, and the time of a fetch.

No file is opened. A folder's time changes when a file in it comes, goes or is renamed; in folders that changed lately
each file's size and time count too, because a file that is still being copied changes without its folder. When such a
folder has been quiet for HOT_SECONDS it is looked at once more. A file that is overwritten in an old folder waits for
the scan of every `scan_minutes`.
"""

from __future__ import annotations

import hashlib
import os
import queue
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from silo_node.config import Config
from silo_node.errors import SiloError
from silo_node.files import read_json, write_json
from silo_node.node import Node
from silo_node.service import logs

HOT_SECONDS: Final = 600.0
AGAIN_SECONDS: Final = 600.0
"""After which a task is asked for again whose work is not seen: it may have been lost with its broker."""


def signature(roots: Iterable[Path], now: float) -> str:
    """What the folders look like; another one when something changed. now: seconds since 1970."""
    found = hashlib.sha256()
    for root in roots:
        for folder, inner, names in os.walk(root):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            try:
                changed = Path(folder).stat().st_mtime_ns
            except OSError:
                continue  # gone since; its parent's time has changed
            found.update(f"{folder}\0{changed}\n".encode(errors="surrogateescape"))
            if now - changed / 1e9 > HOT_SECONDS:
                continue
            for name in sorted(names):
                try:
                    stat = Path(folder, name).lstat()
                except OSError:
                    continue
                found.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def look(config: Config) -> str:
    """The signature of the data folder and the inbox, now."""
    return signature((config.data, config.inbox), time.time())


def scanned(config: Config, seen: str) -> None:
    """A scan ended well that began when the folders looked like this."""
    write_json(config.folder / "watched.json", {"signature": seen}, sync=False)


def changed(config: Config) -> str | None:
    """The new signature where something changed since the last scan, else None."""
    seen = look(config)
    before = read_json(config.folder / "watched.json")
    return None if before is not None and before.get("signature") == seen else seen


class Watch:
    """A thread of `silo run`: puts `("task", "scan")` and `("task", "fetch")` into the main thread's queue when due."""

    def __init__(self, node: Node, events: queue.SimpleQueue[tuple[str, Any]]) -> None:
        self._node = node
        self._events = events
        self._asked: dict[str, tuple[str, float]] = {}

    def run(self) -> None:
        """Until the silo stops."""
        while not self._node.stop.wait(self._node.config.settings.limits.watch_seconds):
            try:
                self.turn()
            except (SiloError, OSError) as error:
                logs.get().warning("watch.failed", error_at=error)

    def turn(self) -> None:
        """One look."""
        from silo_node.pacs import fetch

        config = self._node.config
        seen = changed(config)
        if seen is not None:
            self._ask("scan", seen)
        if fetch.is_due(config, datetime.now(UTC)):
            self._ask("fetch", str((fetch.last(config) or {}).get("ended")))

    def _ask(self, task: str, why: str) -> None:
        before, when = self._asked.get(task, ("", 0.0))
        if before == why and time.monotonic() - when < AGAIN_SECONDS:
            return
        self._asked[task] = (why, time.monotonic())
        self._events.put(("task", task))
