"""FOLDER/runs/ROUND: what one open round has on disk besides the journal; removed when the round ends.

announce.json     the announcement as received          job.json       what the training process is to do
cohort.json       the pictures it may open (0600)        update.f32     its update, raw float32
result.json       that it is done, or why not            refused.json   that this silo said no, and why
begun.json        who trains: counts starts, so that a training that kills its process is not tried for ever
sketches.json     the digests of the sketches shown      sum.json, .words   the published sum, until it is used
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silo_node.errors import UsageError
from silo_node.files import read_json, replacing, write_json


class Run:
    """The folder of one round. Safe to make for a round that has none yet."""

    def __init__(self, runs: Path, round_id: str) -> None:
        self.id = round_id
        self.folder = runs / round_id

    @property
    def cohort(self) -> Path:
        """cohort.json."""
        return self.folder / "cohort.json"

    @property
    def summed(self) -> Path:
        """sum.words."""
        return self.folder / "sum.words"

    def read(self, name: str) -> Any | None:
        """The value kept under `name`, None where there is none, or what a power cut left of one that was not synced."""
        try:
            return read_json(self.folder / f"{name}.json")
        except UsageError:
            return None

    def write(self, name: str, value: Any, *, sync: bool = True) -> None:
        """Keep a JSON value under `name`. sync: whether it must outlive a power cut."""
        write_json(self.folder / f"{name}.json", value, sync=sync)

    def begin(self) -> int:
        """Count a start of the training and return how many there were with this one."""
        starts = int((self.read("begun") or {}).get("starts", 0)) + 1
        self.write("begun", {"starts": starts}, sync=False)
        return starts

    def write_result(self, value: dict[str, Any], update: NDArray[np.float32] | None = None) -> None:
        """Keep what training gave; the update first, so that a result without its update is never seen."""
        if update is not None:
            # Not synced: after a power cut the boot id below differs, and training runs again.
            with replacing(self.folder / "update.f32", sync=False) as file:
                # Not `tofile`: of a full disk it says neither that nor anything else.
                file.write(memoryview(np.ascontiguousarray(update, dtype="<f4")).cast("B"))
        self.write("result", {**value, "boot": boot_id()}, sync=False)

    def result(self) -> dict[str, Any] | None:
        """What training gave, None while there is nothing to trust."""
        value = self.read("result")
        return value if isinstance(value, dict) and value.get("boot") == boot_id() else None

    def update(self, words: int) -> NDArray[np.float32]:
        """The update, a read-only map of float32[words]. Raises: ValueError for a file of another length."""
        path = self.folder / "update.f32"
        if path.stat().st_size != 4 * words:
            raise ValueError(f"the update of {self.id} has {path.stat().st_size} bytes, not {4 * words}")
        return np.memmap(path, dtype="<f4", mode="r", shape=(words,))

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def open_runs(runs: Path) -> Iterator[Run]:
    """The rounds that have a folder, in the order of their names."""
    if runs.is_dir():
        for path in sorted(runs.iterdir()):
            if path.is_dir():
                yield Run(runs, path.name)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Names this start of the machine: what was written without a sync is whole as long as it runs."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else "unknown"
