"""FOLDER/egress.db: what left this hospital, when, of which kind, how many bytes, and the digest of each body.

A row is written before its request goes out, and completed with the answer's status; so a row without status means
"perhaps sent". Where no connection stood, the status is NOT_SENT, and its bytes are in no sum. Requests without a body
(polls, downloads) are only counted: nothing left but the question. The sums by kind are kept in memory for a second at most
before they are written; the rows are what an auditor counts on.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from silo_node.errors import DiskFull, PortalError, SiloError, is_disk_full
from silo_node.service import logs, reading
from silo_node.service.migrations import migrate, version_of

STEPS: Final = (
    (
        "CREATE TABLE IF NOT EXISTS sent("
        " id INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,"
        " round TEXT, bytes INTEGER NOT NULL, digest TEXT NOT NULL, status INTEGER)",
        "CREATE INDEX IF NOT EXISTS sent_round ON sent(round)",
        "CREATE TABLE IF NOT EXISTS total("
        " kind TEXT PRIMARY KEY, requests INTEGER NOT NULL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL)"
        " WITHOUT ROWID",
    ),
)
"""Its format, step by step (migrations.py)."""

NOT_SENT: Final = 0
"""In place of a status: there was no connection over which it could have left."""
SOON: Final = 1.0
"""Seconds."""


class EgressLogBusy(PortalError):
    """What is about to leave can't be noted, so it does not leave; tried again like a portal that is away."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            "EGRESS_LOG",
            f"{path} can't be written, because another program holds it open (a backup?) or it is damaged: nothing was "
            "sent. End that program, or restore the file.",
        )


def totals_of(path: Path) -> dict[str, dict[str, int]]:
    """As `EgressLog.totals`, of what is written by now, without writing: also on a full disk. Raises: SiloError."""
    if not path.exists():
        return {}
    try:
        with closing(reading.opened(path)) as db:
            if version_of(db, STEPS) == 0 and not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
                return {}
            rows = db.execute("SELECT kind, requests, bytes_up, bytes_down FROM total ORDER BY kind").fetchall()
    except sqlite3.Error as error:
        raise EgressLogUnread(path, error) from error
    return {kind: {"requests": n, "bytes_up": up, "bytes_down": down} for kind, n, up, down in rows}


class EgressLogUnread(SiloError):
    """What left can't be told now."""

    def __init__(self, path: Path, error: sqlite3.Error) -> None:
        super().__init__("EGRESS_LOG", f"{path} can't be read ({getattr(error, 'sqlite_errorname', error)}).")


class EgressLog:
    """Counts and rows, shared by the processes of one silo.

    Bytes are those of bodies and of the headers that this silo wrote; the transport below them (TCP, TLS) is not counted.
    """

    def __init__(self, path: Path, *, patience: float = 30.0) -> None:
        """patience: seconds that a call waits for another program."""
        self._path = path
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=patience)
        migrate(self._db, STEPS)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL")
        self._rounds: dict[str, list[int]] = {}
        self._counted: dict[str, list[int]] = {}
        self._written = 0.0

    def sending(
        self, *, kind: str, method: str, path: str, round_id: str | None, body: int, head: int, digest: str
    ) -> int | None:
        """Note a request that is about to leave; sizes in bytes, digest of the body. Returns its row, or None.

        Raises: DiskFull, EgressLogBusy.
        """
        with self._lock:
            counted = self._counted.setdefault(kind, [0, 0, 0])
            counted[0] += 1
            counted[1] += body + head
            if round_id is not None:
                self._rounds.setdefault(round_id, [0, 0])[0] += body + head
            self._write_counted(SOON)
            if not body:
                return None
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            try:
                return self._db.execute(
                    "INSERT INTO sent(time, kind, method, path, round, bytes, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (now, kind, method, path, round_id, body, digest),
                ).lastrowid
            except sqlite3.Error as error:
                if is_disk_full(error):
                    raise DiskFull("no room to note in egress.db what leaves: nothing was sent, make room") from error
                raise EgressLogBusy(self._path) from error

    def not_sent(self, row: int | None, *, kind: str, sent: int, round_id: str | None) -> None:
        """Take back what `sending` noted (`sent`: body and head, bytes): there was no connection, so nothing left."""
        with self._lock:
            counted = self._counted.setdefault(kind, [0, 0, 0])
            counted[0] -= 1
            counted[1] -= sent
            if round_id in self._rounds:
                self._rounds[round_id][0] -= sent
            self._complete(row, NOT_SENT)

    def answered(self, row: int | None, *, kind: str, status: int, received: int, round_id: str | None) -> None:
        """Note the answer: its HTTP status and the bytes that came with it."""
        with self._lock:
            self._counted.setdefault(kind, [0, 0, 0])[2] += received
            if round_id is not None:
                self._rounds.setdefault(round_id, [0, 0])[1] += received
            self._complete(row, status)

    def _complete(self, row: int | None, status: int) -> None:
        if row is None:
            return
        try:
            self._db.execute("UPDATE sent SET status = ? WHERE id = ?", (status, row))
        except sqlite3.Error as error:
            # The request is over, and an answer counts: the row goes on saying "perhaps sent".
            logs.get().warning("egress_log.behind", why=type(error).__name__)

    def of_round(self, round_id: str) -> tuple[int, int]:
        """Bytes up and down for one round, since this process started; forgotten when read."""
        with self._lock:
            up, down = self._rounds.pop(round_id, (0, 0))
        return up, down

    def totals(self) -> dict[str, dict[str, int]]:
        """kind -> requests, bytes_up, bytes_down, since the silo exists."""
        with self._lock:
            self._write_counted(0.0)
            rows = self._db.execute("SELECT kind, requests, bytes_up, bytes_down FROM total ORDER BY kind").fetchall()
        return {kind: {"requests": n, "bytes_up": up, "bytes_down": down} for kind, n, up, down in rows}

    def rows(self, round_id: str | None = None, *, most: int | None = None) -> list[dict[str, Any]]:
        """The rows with a body, of one round or all, oldest first. most: only so many, the newest."""
        names = ("time", "kind", "method", "path", "round", "bytes", "digest", "status")
        where, values = ("WHERE round = ?", (round_id,)) if round_id is not None else ("", ())
        with self._lock:
            found = self._db.execute(
                f"SELECT {', '.join(names)} FROM sent {where} ORDER BY id DESC LIMIT ?",
                (*values, -1 if most is None else most),
            ).fetchall()
        return [dict(zip(names, row, strict=True)) for row in reversed(found)]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._write_counted(0.0)
            self._db.close()

    def _write_counted(self, age: float) -> None:
        """Add what was counted to the table, where that was not done for `age` seconds."""
        now = time.monotonic()
        if now - self._written < age or not self._counted:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO total VALUES (?, ?, ?, ?) ON CONFLICT(kind) DO UPDATE SET requests = requests"
                " + excluded.requests, bytes_up = bytes_up + excluded.bytes_up,"
                " bytes_down = bytes_down + excluded.bytes_down",
                [(kind, *values) for kind, values in self._counted.items()],
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            logs.get().warning("egress_log.behind", why=type(error).__name__)
            self._written = now  # kept in memory until there is room, or the other program is gone
            return
        self._counted, self._written = {}, now
