"""FOLDER/feedback/STUDY: what rounding and cutting took from this silo's updates, to be sent with the next one.

kept.f32     what is still owed after the last round that ended with this silo's update in its sum
sent.f32     what will be owed once the round in which the update was sent has ended so
summed.json  that the sum with it was published, and which model came of it

Each .f32 is the length of a JSON line (4 bytes, big-endian), the line, and raw float32. It is as private as an update: mode
0600, never sent, removed when the study ends.

How a round ended is told by the model of the next one, which t silos signed, and not by the portal: the model that came of
the sum makes `sent` what is kept; the same model as before says that the round failed, and leaves `kept` as it was. Any
other model means that this silo missed how the round ended; then both are dropped, because what is owed may have been sent.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.model_state import Table, table_as_list
from silo_node.errors import UsageError
from silo_node.files import read_json, replacing, write_json

MAX_LINE: Final = 4096


@dataclass(frozen=True)
class Owed:
    """One .f32: what belongs to the round `round` on `model`. of: names manifest and table. values: float32[d], a map."""

    round: str
    model: str
    of: str
    values: NDArray[np.float32]


class ErrorFeedback:
    """What one silo owes to one study, whose manifest and table `of` names."""

    def __init__(self, folder: Path, study: str, of: str) -> None:
        self._folder = folder / study
        self._of = of

    def take(self, model: str, words: int) -> NDArray[np.float32] | None:
        """What is owed to a round on `model`, float32[words], read-only; None where nothing is, or it is not known."""
        sent, kept = self._read("sent.f32"), self._read("kept.f32")
        if sent is not None and sent.model != model:
            if self._summed() == (sent.round, model):
                (self._folder / "sent.f32").replace(self._folder / "kept.f32")
                kept = self._read("kept.f32")
            else:
                kept = None
        self.left_out()
        if kept is None or kept.of != self._of or len(kept.values) != words:
            self._remove("kept.f32")
            return None
        return kept.values

    def sent(self, round_id: str, model: str, values: NDArray[np.float32]) -> None:
        """Keep what an update of `round_id` on `model` leaves owed; on the disk when this returns. Raises: DiskFull."""
        self._remove("summed.json")
        line = json.dumps({"round": round_id, "model": model, "of": self._of}).encode()
        with replacing(self._folder / "sent.f32") as file:
            file.write(len(line).to_bytes(4, "big") + line)
            file.write(memoryview(np.ascontiguousarray(values, dtype="<f4")).cast("B"))

    def summed(self, round_id: str, next_model: str) -> None:
        """The update is in the sum that was published, from which `next_model` follows. Raises: DiskFull."""
        write_json(self._folder / "summed.json", {"round": round_id, "next": next_model})

    def left_out(self) -> None:
        """The update that was sent is in no sum: what was owed before stays owed."""
        self._remove("sent.f32")
        self._remove("summed.json")

    def _read(self, name: str) -> Owed | None:
        """None where there is no such file, or not the whole of one."""
        path = self._folder / name
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(4), "big")
                line: Any = json.loads(file.read(min(length, MAX_LINE)))
            start = 4 + length
            values = np.memmap(path, dtype="<f4", mode="r", offset=start, shape=((size - start) // 4,))
            return Owed(line["round"], line["model"], line["of"], values)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _summed(self) -> tuple[str, str] | None:
        try:
            note = read_json(self._folder / "summed.json")
        except UsageError:
            return None
        return None if note is None else (note["round"], note["next"])

    def _remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)


def names(manifest: str, table: Table) -> str:
    """What `of` is for a manifest (its digest) and a table: with another one nothing is owed any more."""
    return canonical.digest(canonical.encode({"manifest": manifest, "table": table_as_list(table)}))


def forget(folder: Path, study: str) -> None:
    """The study has ended. Looked up among the folders that are there: a name never becomes a path."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name == study:
                shutil.rmtree(path, ignore_errors=True)
