"""Decoded pictures, kept once in memory-mapped files: the second epoch does not decode.

    FOLDER/<digest>/slots.db      which slot holds which picture (SQLite)
    FOLDER/<digest>/uint8.bin     slots of H*W bytes          (files of at most 8 bits)
    FOLDER/<digest>/uint16.bin    slots of H*W*2 bytes, little endian

A slot's key is a SHA-256 over SOP instance UID and a random salt, and so is the patient's mark, by which a withdrawn
patient's pictures are found even when the index has forgotten them: no header value stands in the cache. `seen` is the same
over patient, size and time of the file that was decoded: when the index speaks of another file of that instance, the
picture is overwritten and the file decoded. Pixels are
flushed before their row is committed: a slot without its row is free, whatever was half written there. Deleted pictures
are overwritten with zeros.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silo_node.imaging.cohort import Item
from silo_node.imaging.decoder_pool import DecoderPool
from silo_node.imaging.errors import StorageError
from silo_node.service.migrations import migrate

_KINDS: Mapping[str, Any] = {"uint8": np.dtype("u1"), "uint16": np.dtype("<u2")}
_GROW = 512
STEPS = (
    (
        "CREATE TABLE IF NOT EXISTS slots ("
        " kind TEXT NOT NULL, slot INTEGER NOT NULL, key BLOB UNIQUE, patient BLOB, PRIMARY KEY (kind, slot))",
        "CREATE TABLE IF NOT EXISTS form ("
        " one INTEGER PRIMARY KEY CHECK (one = 0), height INTEGER NOT NULL, width INTEGER NOT NULL,"
        " window TEXT NOT NULL, salt BLOB NOT NULL)",
    ),
    ("ALTER TABLE slots ADD COLUMN seen BLOB",),
)
"""The format of slots.db, step by step (migrations.py)."""


class Cache:
    """One plan's pictures. `plan_digest` names what decides their bits (see training.plan.pixels_digest)."""

    def __init__(self, folder: Path, plan_digest: str, *, size: tuple[int, int], window: str = "full") -> None:
        self._size = size
        self._window = window
        self._folder = Path(folder) / plan_digest.removeprefix("sha256:")[:32]
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.decoded = 0  # pictures decoded by this object, for tests and reports
        with closing(self._open()) as db, db:
            db.execute("INSERT OR IGNORE INTO form VALUES (0, ?, ?, ?, ?)", (*size, window, secrets.token_bytes(32)))
            *form, self._salt = db.execute("SELECT height, width, window, salt FROM form").fetchone()
        if tuple(form) != (*size, window):
            raise ValueError("this cache was made for another size or window")

    @classmethod
    def existing(cls, folder: Path) -> Cache:
        """The cache in one plan's own folder, as it was made."""
        with closing(sqlite3.connect(folder / "slots.db", timeout=30)) as db:
            height, width, window = db.execute("SELECT height, width, window FROM form").fetchone()
        return cls(folder.parent, folder.name, size=(height, width), window=window)

    def fill(self, items: Sequence[Item]) -> dict[Path, str]:
        """Decode what is not there yet. Answers path -> problem code for files that could not be decoded.

        Raises StorageError `DISK_FULL` where there is no room.
        """
        problems: dict[Path, str] = {}
        with closing(self._open()) as db:
            rows = db.execute("SELECT key, seen, kind, slot FROM slots WHERE key IS NOT NULL")
            known = {key: (seen, (kind, slot)) for key, seen, kind, slot in rows}
            there = [known.get(self._mark("sop", item.sop)) for item in items]
            pairs = zip(items, there, strict=True)
            missing = [item for item, found in pairs if found is None or found[0] != self._seen(item)]
            if not missing:
                return problems
            self._erase(db, [known[key][1] for key in {self._mark("sop", item.sop) for item in missing} & known.keys()])
            with DecoderPool(size=self._size, window=self._window) as pool:
                for start in range(0, len(missing), _GROW):
                    self._decode(db, pool, missing[start : start + _GROW], problems)
        return problems

    def _decode(
        self, db: sqlite3.Connection, pool: DecoderPool, items: Sequence[Item], problems: dict[Path, str]
    ) -> None:
        fresh: dict[str, list[tuple[Item, NDArray[Any]]]] = {kind: [] for kind in _KINDS}
        by_path = {item.path: item for item in items}
        for path, found in pool.decode(list(by_path.values())):
            if isinstance(found, str):
                problems[path] = found
                continue
            self.decoded += 1
            fresh[found.dtype.name].append((by_path[path], found))
        for kind, pictures in fresh.items():
            self._store(db, kind, pictures)

    def open(self, items: Sequence[Item]) -> Pictures:
        """The pictures of `items`, in their order. Raises KeyError for one that `fill` has not stored."""
        with closing(self._open()) as db:
            rows = db.execute("SELECT kind, slot, key, seen FROM slots WHERE key IS NOT NULL")
            where = {(key, seen): (kind, slot) for kind, slot, key, seen in rows}
        places = [where[self._mark("sop", item.sop), self._seen(item)] for item in items]
        return Pictures({kind: self._map(kind) for kind in {kind for kind, _ in places}}, places, self._size)

    def forget(self, patients: Iterable[str]) -> int:
        """Overwrite and free all pictures of these patients; how many there were."""
        marks = {self._mark("patient", patient) for patient in patients}
        with closing(self._open()) as db:
            rows = db.execute("SELECT kind, slot, patient FROM slots WHERE key IS NOT NULL").fetchall()
            found = [(kind, slot) for kind, slot, patient in rows if patient in marks]
            self._erase(db, found)
        return len(found)

    def _erase(self, db: sqlite3.Connection, places: list[tuple[str, int]]) -> None:
        for kind in {kind for kind, _ in places}:
            pixels = self._map(kind, writable=True)
            pixels[[slot for its_kind, slot in places if its_kind == kind]] = 0
            pixels.flush()
        with db:
            db.executemany(
                "UPDATE slots SET key = NULL, patient = NULL, seen = NULL WHERE kind = ? AND slot = ?", places
            )

    def _store(self, db: sqlite3.Connection, kind: str, pictures: list[tuple[Item, NDArray[Any]]]) -> None:
        if not pictures:
            return
        query = "SELECT slot FROM slots WHERE kind = ? AND key IS NOT NULL"
        taken = {slot for (slot,) in db.execute(query, (kind,))}
        slots = list(islice((slot for slot in count() if slot not in taken), len(pictures)))
        try:
            self._grow(kind, max(slots) + 1)
            pixels = self._map(kind, writable=True)
            pixels[slots] = np.stack([picture for _, picture in pictures])
            pixels.flush()
            with db:
                rows = [
                    (kind, slot, self._mark("sop", item.sop), self._mark("patient", item.patient), self._seen(item))
                    for slot, (item, _) in zip(slots, pictures, strict=True)
                ]
                db.executemany("INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?)", rows)
        except (OSError, sqlite3.OperationalError) as error:
            raise StorageError("DISK_FULL", "No space is left for decoded pictures: free some disk space.") from error

    def _grow(self, kind: str, slots: int) -> None:
        """Reserve the blocks: writing to a sparse map on a full disk would end the process by a signal."""
        one = self._size[0] * self._size[1] * _KINDS[kind].itemsize
        path = self._folder / f"{kind}.bin"
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            need = -(-slots // _GROW) * _GROW * one
            if os.fstat(handle).st_size < need:
                os.posix_fallocate(handle, 0, need)
        finally:
            os.close(handle)

    def _map(self, kind: str, *, writable: bool = False) -> np.memmap[Any, Any]:
        path = self._folder / f"{kind}.bin"
        one = self._size[0] * self._size[1] * _KINDS[kind].itemsize
        shape = (path.stat().st_size // one, *self._size)
        return np.memmap(path, dtype=_KINDS[kind], mode="r+" if writable else "r", shape=shape)

    def _mark(self, kind: str, value: str) -> bytes:
        return hashlib.sha256(self._salt + f"{kind}\n{value}".encode()).digest()

    def _seen(self, item: Item) -> bytes:
        return self._mark("seen", f"{item.size}\n{item.mtime_ns}\n{item.patient}")

    def _open(self) -> sqlite3.Connection:
        path = self._folder / "slots.db"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(path, timeout=30)
        migrate(db, STEPS)
        return db


class Pictures:
    """Pictures in a fixed order, read from the map on demand."""

    def __init__(
        self, maps: Mapping[str, np.memmap[Any, Any]], places: Sequence[tuple[str, int]], size: tuple[int, int]
    ) -> None:
        self._maps = maps
        self._size = size
        self._kinds = np.array([kind for kind, _ in places], dtype="U6")
        self._slots = np.array([slot for _, slot in places], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._slots)

    def batch(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """float32 [B, H, W] in 0..1."""
        out = np.empty((len(indices), *self._size), dtype=np.float32)
        for kind, pixels in self._maps.items():
            at = np.flatnonzero(self._kinds[indices] == kind)
            out[at] = pixels[self._slots[indices[at]]]
            out[at] /= np.float32(np.iinfo(pixels.dtype).max)
        return out


def forget(folder: Path, patients: Iterable[str]) -> int:
    """Delete these patients' pictures from every cache below `folder`; how many pictures there were.

    Not while a training runs on them: it would go on with black pictures. Training calls this itself at its start.
    """
    wanted = list(patients)
    return sum(cache.forget(wanted) for cache in _all(Path(folder))) if wanted else 0


def _all(folder: Path) -> Iterator[Cache]:
    for inner in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (inner / "slots.db").is_file():
            yield Cache.existing(inner)
