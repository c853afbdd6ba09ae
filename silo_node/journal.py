"""What survives kill -9: the round secrets, the decisions of a round, and what is spent for ever.

One SQLite database, FOLDER/journal.db, mode 0600. A value is on the disk before `put` returns (synchronous FULL), is put
once, and is overwritten with zeros when it is forgotten (secure_delete; the write-ahead log is cut after it).

Large values (the words of an update, 28 MB for 7,000,000 weights) lie beside it in journal.d/, encrypted under a key that
stands in the database only: forgetting the key destroys the file on any disk, also one that copies what it overwrites.
A file is complete and synced before its row exists, so that half a file is never taken for a whole one.

Implements `protocol.secure_aggregation.Journal`.
"""

from __future__ import annotations

import hmac
import os
import secrets
import sqlite3
import struct
import threading
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.secure_aggregation.errors import JournalConflict
from silo_node.errors import DiskFull, SiloError, is_disk_full
from silo_node.service.migrations import migrate

STEPS: Final = (
    (
        "CREATE TABLE IF NOT EXISTS entry("
        " key TEXT PRIMARY KEY, value BLOB NOT NULL, file TEXT, size INTEGER) WITHOUT ROWID",
    ),
)
"""Its format, step by step (migrations.py)."""

INLINE_BYTES: Final = 1 << 16
"""Values up to this size stand in the database itself."""
BLOCK_BYTES: Final = 1 << 22
"""Plaintext bytes of one encrypted block of a large value."""
_TAG: Final = 16


class JournalDamaged(SiloError):
    """A value can't be read back as it was written. The round must be given up."""

    def __init__(self, sentence: str) -> None:
        super().__init__("JOURNAL_DAMAGED", sentence)


class JournalBusy(SiloError):
    """Another program reads the journal, so what was forgotten may still be on the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            "JOURNAL_BUSY",
            f"Another program holds {path} open, so the secrets of a finished round can't be destroyed: end it. "
            "Backups must leave this file out.",
        )


class SqliteJournal:
    """Put-once, durable, destroyable. Safe to use from several threads; one process at a time (the silo's lock)."""

    def __init__(self, path: Path, *, patience: float = 30.0) -> None:
        """patience: seconds that a call waits for another program."""
        self._path = path
        self._folder = path.with_suffix(".d")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=patience)
        try:
            self._db.execute("PRAGMA secure_delete=ON")  # of this connection, also for what a step removes
            migrate(self._db, STEPS)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise JournalDamaged(
                f"{path} is damaged. It holds what was already sent: restore the newest copy of this folder that is whole, "
                "or ask the portal's admin for a new enrolment."
            ) from error
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
        # On some file systems a new file is only as durable as its folder's entry.
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        self._remove_orphans()

    def put(self, key: str, value: bytes) -> None:
        """Keep `value`, on disk before this returns. The same value again changes nothing.

        Raises: JournalConflict where the key holds another value; DiskFull.
        """
        with self._lock:
            try:
                if len(value) <= INLINE_BYTES:
                    new = self._insert((key, bytes(value), None, len(value)))
                else:
                    new = self._put_large(key, value)
            except (OSError, sqlite3.Error) as error:
                if is_disk_full(error):
                    raise DiskFull(f"no room for the journal in {self._path.parent}: nothing was sent") from error
                raise
            if not new and not hmac.compare_digest(self.get(key) or b"", value):
                raise JournalConflict(f"{key} was decided before, and differently")

    def _insert(self, row: tuple[str, bytes, str | None, int]) -> bool:
        """Whether the key was free."""
        return self._db.execute("INSERT INTO entry VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount == 1

    def _put_large(self, key: str, value: bytes) -> bool:
        if self._db.execute("SELECT 1 FROM entry WHERE key = ?", (key,)).fetchone() is not None:
            return False
        name = secrets.token_hex(16)
        try:
            return self._insert((key, self._write_file(name, value), name, len(value)))
        except (OSError, sqlite3.Error):
            (self._folder / name).unlink(missing_ok=True)
            raise

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None. Raises: JournalDamaged."""
        with self._lock:
            row = self._db.execute("SELECT value, file, size FROM entry WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        value, name, size = row
        return bytes(value) if name is None else self._read_file(key, name, value, size)

    def forget(self, prefix: str) -> None:
        """Destroy every value whose key starts with `prefix`: gone from the disk when this returns.

        Raises: JournalBusy where a reader keeps deleted rows in the write-ahead log; they go with the next call.
        """
        end = prefix + "\U0010ffff"
        with self._lock:
            names = self._db.execute(
                "SELECT file FROM entry WHERE key >= ? AND key < ? AND file IS NOT NULL", (prefix, end)
            ).fetchall()
            self._db.execute("DELETE FROM entry WHERE key >= ? AND key < ?", (prefix, end))
            (busy, *_) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        for (name,) in names:
            (self._folder / name).unlink(missing_ok=True)
        if busy:
            raise JournalBusy(self._path)

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that start with `prefix`, sorted."""
        with self._lock:
            rows = self._db.execute(
                "SELECT key FROM entry WHERE key >= ? AND key < ? ORDER BY key", (prefix, prefix + "\U0010ffff")
            )
            return [key for (key,) in rows]

    def close(self) -> None:
        """Close the database; what was put stays."""
        with self._lock:
            self._db.close()

    def _write_file(self, name: str, value: bytes) -> bytes:
        """Write, sync, and return the key of the file's encryption."""
        file_key = AESGCM.generate_key(bit_length=128)
        cipher = AESGCM(file_key)
        view = memoryview(value)
        # One buffer for all blocks: a block at a time keeps the second copy of a large value small.
        buffer = bytearray(min(BLOCK_BYTES, len(value)) + _TAG)
        handle = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb", buffering=0) as file:
            for index, start in enumerate(range(0, len(value), BLOCK_BYTES)):
                block = view[start : start + BLOCK_BYTES]
                room = memoryview(buffer)[: len(block) + _TAG]
                cipher.encrypt_into(_nonce(index), block, None, room)
                _write_all(file.fileno(), room)
            os.fsync(file.fileno())
        return file_key

    def _read_file(self, key: str, name: str, file_key: bytes, size: int) -> bytes:
        cipher = AESGCM(file_key)
        value = bytearray(size)
        view = memoryview(value)
        try:
            with (self._folder / name).open("rb", buffering=0) as file:
                for index, start in enumerate(range(0, size, BLOCK_BYTES)):
                    stop = min(start + BLOCK_BYTES, size)
                    block = file.read(stop - start + _TAG)
                    cipher.decrypt_into(_nonce(index), block, None, view[start:stop])
        except (OSError, InvalidTag, ValueError) as error:
            raise JournalDamaged(
                f"{key} can't be read back from {self._folder}: the disk lost or changed it"
            ) from error
        return bytes(value)

    def _remove_orphans(self) -> None:
        """Files without a row: a crash came between the file and its row, or between a row's end and its file's."""
        kept = {name for (name,) in self._db.execute("SELECT file FROM entry WHERE file IS NOT NULL")}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()


def _nonce(index: int) -> bytes:
    # Each file has a key of its own, so a counter never repeats under a key.
    return struct.pack(">4xQ", index)


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]
