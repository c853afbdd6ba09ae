"""The silo's own audit log: what this hospital's node did, provable to a stranger, kept inside the hospital.

A record is first a row of FOLDER/evidence.db, on disk before `record` returns; any process of the silo may write one.
One sequencer at a time (a file lock) gives the rows their indices in FOLDER/log as tiles, then signs the checkpoint.
Payloads that name or count patients stay beside the log: the record holds their salted digest only, so they can be erased
and every proof still verifies.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from protocol import canonical
from protocol.transparency.note import Checkpoint, open_checkpoint, sign_checkpoint
from protocol.transparency.proof import make_proof
from protocol.transparency.tiles import FolderTileStore, append, inclusion_from_tiles, root_at
from silo_node.errors import DiskFull, SiloError, is_disk_full
from silo_node.files import write_bytes
from silo_node.keys import Keys
from silo_node.service.migrations import migrate

STEPS: Final = (
    (
        "CREATE TABLE IF NOT EXISTS entry("
        " number INTEGER PRIMARY KEY AUTOINCREMENT, record BLOB NOT NULL, private BLOB, salt BLOB,"
        " position INTEGER UNIQUE)",
    ),
)
"""Its format, step by step (migrations.py)."""


class EvidenceDamaged(SiloError):
    """The log on disk is not the one that was signed."""

    def __init__(self, sentence: str) -> None:
        super().__init__("EVIDENCE_DAMAGED", sentence)


@dataclass(frozen=True)
class Kept:
    """A record's bytes, and what stands beside it: payload and salt, None where there is none or it was erased. position:
    its index in the tree, None before it has one."""

    data: bytes
    payload: Any = field(repr=False)
    salt: bytes | None = field(repr=False)
    position: int | None


class EvidenceLog:
    """One silo's log. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, keys: Keys, *, silo: str, organisation: str = "") -> None:
        self._keys = keys
        self._silo = silo
        self._organisation = organisation
        self._folder = folder / "log"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "evidence.db"
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        self._db.execute("PRAGMA secure_delete=ON")  # of this connection, also for what a step removes
        migrate(self._db, STEPS)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")

    def record(
        self,
        kind: str,
        *,
        subject: tuple[str, str, str | None],
        outcome: str = "success",
        reasons: Sequence[str] = (),
        refs: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        private: Any = None,
        actor: Mapping[str, str] | None = None,
    ) -> str:
        """Write one record, on disk when this returns.

        Parameters: kind: a dot name of the list in docs. subject: (kind, id, version). reasons: codes. data: numbers and
        codes only, no free text, no counts below the policy's limit. private: what stays outside the record, any
        canonical value. actor: None for the silo itself.
        Returns: the record's id. Raises: DiskFull, CanonicalError.
        """
        salt = secrets.token_bytes(32) if private is not None else None
        payload = canonical.encode(private) if private is not None else None
        hidden = None
        if salt is not None and payload is not None:
            hidden = "sha256:" + sha256(b"audit/private/v1\n" + salt + payload).hexdigest()
        name = uuid7()
        record = canonical.encode(
            {
                "v": 1,
                "id": name,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "type": kind,
                "actor": dict(actor)
                if actor is not None
                else {"id": self._silo, "role": "silo", "org": self._organisation, "auth": "silo-key"},
                "subject": {"kind": subject[0], "id": subject[1], "version": subject[2]},
                "outcome": outcome,
                "reasons": list(reasons),
                "refs": dict(refs or {}),
                "data": dict(data or {}),
                "private": hidden,
            }
        )
        if len(record) > 65_535:
            raise ValueError(f"a record of {len(record)} bytes; 65,535 are the most")
        try:
            with self._lock:
                self._db.execute("INSERT INTO entry(record, private, salt) VALUES (?, ?, ?)", (record, payload, salt))
        except sqlite3.Error as error:
            if is_disk_full(error):
                raise DiskFull("no room for the audit log: nothing was done that it should have recorded") from error
            raise
        return name

    def sequence(self) -> str | None:
        """Give indices to what was recorded since the last time and sign the new checkpoint.

        Returns the signed note, or None where there was nothing new.
        Raises: EvidenceDamaged where the tiles are not those of the last checkpoint.
        """
        with self._sequencer():
            with self._lock:
                rows = self._db.execute(
                    "SELECT number, record FROM entry WHERE position IS NULL ORDER BY number"
                ).fetchall()
                placed = self._db.execute("SELECT count(*) FROM entry WHERE position IS NOT NULL").fetchone()[0]
            store = FolderTileStore(self._folder)
            before = self.checkpoint()
            size = before.size if before is not None else 0
            if before is not None and root_at(store, size) != before.root:
                raise EvidenceDamaged(f"the tiles in {self._folder} are not those of its checkpoint: restore them")
            if placed > size:
                raise EvidenceDamaged(f"{self._folder} has lost entries that were signed: restore it from a backup")
            # A crash after the checkpoint and before the rows got their places: they get them now. The order is that
            # of their numbers in both cases, so each gets the place that it has in the tree.
            self._place(rows[: size - placed], placed)
            rows = rows[size - placed :]
            if not rows:
                return None
            new_size, root = append(store, size, [bytes(record) for _, record in rows])
            note = sign_checkpoint(Checkpoint(self._keys.log_origin, new_size, root), self._keys.log)
            write_bytes(self._folder / "checkpoint", note.encode())
            self._place(rows, size)
            return note

    def checkpoint(self) -> Checkpoint | None:
        """The last signed checkpoint, verified; None for a log without entries."""
        path = self._folder / "checkpoint"
        if not path.exists():
            return None
        return open_checkpoint(path.read_text(encoding="utf-8"), self._keys.log_vkey)

    def counts(self) -> dict[str, int]:
        """entries: recorded; sequenced: with an index."""
        with self._lock:
            entries, placed = self._db.execute("SELECT count(*), count(position) FROM entry").fetchone()
        return {"entries": entries, "sequenced": placed}

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All records in the order in which they were written, of one type or all."""
        with self._lock:
            rows = self._db.execute("SELECT record FROM entry ORDER BY number").fetchall()
        found = [canonical.decode(bytes(record)) for (record,) in rows]
        return [record for record in found if kind is None or record["type"] == kind]

    def find(self, kind: str, subject: str) -> list[Kept]:
        """All records of this type about this subject's id, in order."""
        with self._lock:
            rows = self._db.execute("SELECT record, private, salt, position FROM entry ORDER BY number").fetchall()
        found = []
        for data, private, salt, position in rows:
            record = canonical.decode(bytes(data))
            if record["type"] == kind and record["subject"]["id"] == subject:
                payload = canonical.decode(bytes(private)) if private is not None else None
                found.append(Kept(bytes(data), payload, salt, position))
        return found

    def proof(self, position: int) -> str:
        """The tlog-proof of an entry, under the last signed checkpoint. Raises: ProofError where it is not in there yet."""
        with self._sequencer():
            note = (self._folder / "checkpoint").read_text(encoding="utf-8")
            size = open_checkpoint(note, self._keys.log_vkey).size
            return make_proof(position, inclusion_from_tiles(FolderTileStore(self._folder), position, size), note)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def _place(self, rows: Sequence[tuple[int, bytes]], start: int) -> None:
        if not rows:
            return
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "UPDATE entry SET position = ? WHERE number = ?",
                [(start + offset, number) for offset, (number, _) in enumerate(rows)],
            )
            self._db.execute("COMMIT")

    @contextmanager
    def _sequencer(self) -> Iterator[None]:
        handle = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def uuid7() -> str:
    """A random id whose first bits are the time (RFC 9562)."""
    value = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | (7 << 76)
    value = value & ~(0x3 << 62) | (2 << 62)
    return str(uuid.UUID(int=value))
