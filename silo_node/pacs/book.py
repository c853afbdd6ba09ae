"""FOLDER/pacs.db: which instances are wanted, there or refused, and how the last fetch ended.

It survives kill -9: an instance is `there` only after its file has its name, so a run that was stopped fetches nothing
twice but perhaps the one instance it was at.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from silo_node.errors import DiskFull, UsageError, is_disk_full
from silo_node.service import reading
from silo_node.service.migrations import Step, migrate, version_of

STEPS: Final[tuple[Step, ...]] = (
    (
        "CREATE TABLE IF NOT EXISTS studies (study TEXT PRIMARY KEY, instances INTEGER NOT NULL)",
        """CREATE TABLE IF NOT EXISTS instances (
    sop TEXT PRIMARY KEY, study TEXT, series TEXT, patient TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('wanted', 'there', 'refused')), code TEXT, tries INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX IF NOT EXISTS instances_by_state ON instances (state)",
        "CREATE INDEX IF NOT EXISTS instances_by_patient ON instances (patient)",
        "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
)
MAX_TRIES: Final = 3
"""Runs in which an instance that was refused is asked for again; then it stays refused."""


class Book:
    """pacs.db, opened. Safe to use from several threads, and beside other processes.

    Raises (everywhere): UsageError `PACS_DB_DAMAGED`; UpgradeNeeded; DiskFull.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._db = sqlite3.connect(path, timeout=30.0, check_same_thread=False)
        try:
            with _faults_named():
                migrate(self._db, STEPS)
                self._db.execute("PRAGMA journal_mode = WAL")
                # After a power cut the last rows may be gone, never a part of one: they are fetched again.
                self._db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def _do(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with _faults_named(), self._lock, self._db:
            self._db.executemany(sql, rows)

    def _ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with _faults_named(), self._lock:
            return self._db.execute(sql, values).fetchall()

    # --- studies -----------------------------------------------------------------------------------------------------

    def listed(self) -> dict[str, int]:
        """Study -> how many instances it had when they were listed last."""
        return dict(self._ask("SELECT study, instances FROM studies"))

    def list_study(self, study: str, patient: str, found: Iterable[tuple[str, str]], count: int | None) -> None:
        """Want those (series, sop) of a study that are neither there nor refused. count None: list it again next time."""
        with _faults_named(), self._lock, self._db:
            self._db.executemany(
                "INSERT INTO instances (sop, study, series, patient, state) VALUES (?, ?, ?, ?, 'wanted')"
                " ON CONFLICT DO NOTHING",
                ((sop, study, series, patient) for series, sop in found),
            )
            if count is not None:
                self._db.execute("INSERT OR REPLACE INTO studies VALUES (?, ?)", (study, count))

    def keep_only(self, studies: Iterable[str]) -> None:
        """Want nothing any more of studies that the query does not find, or whose patient is kept out."""
        kept = frozenset(studies)
        gone = [
            (study,)
            for (study,) in self._ask("SELECT DISTINCT study FROM instances WHERE state = 'wanted'")
            if study not in kept
        ]
        self._do("DELETE FROM instances WHERE state = 'wanted' AND study = ?", gone)
        self._do("DELETE FROM studies WHERE study = ?", gone)

    # --- instances ---------------------------------------------------------------------------------------------------

    def wanted(self) -> list[tuple[str, str, str, str]]:
        """(study, series, sop, patient), those that were never refused first."""
        return self._ask(
            "SELECT study, series, sop, patient FROM instances WHERE state = 'wanted' ORDER BY tries, study, sop"
        )  # type: ignore[return-value]

    def there(self, sop: str, study: str | None, patient: str) -> None:
        """Its file has its name."""
        self._do(
            "INSERT INTO instances (sop, study, patient, state) VALUES (?, ?, ?, 'there') ON CONFLICT (sop) DO UPDATE"
            " SET state = 'there', code = NULL, patient = excluded.patient, study = excluded.study",
            [(sop, study, patient)],
        )

    def refuse(self, sop: str, code: str) -> None:
        """It was not taken; after MAX_TRIES it is not wanted any more."""
        self._do(
            "UPDATE instances SET code = ?, tries = tries + 1,"
            " state = CASE WHEN tries + 1 >= ? THEN 'refused' ELSE 'wanted' END WHERE sop = ?",
            [(code, MAX_TRIES, sop)],
        )

    def want_again(self) -> None:
        """Ask for everything that was refused once more."""
        self._do("UPDATE instances SET state = 'wanted', tries = 0 WHERE state = ?", [("refused",)])

    def patients(self) -> dict[str, str]:
        """SOP instance -> patient of everything that is there."""
        return dict(self._ask("SELECT sop, patient FROM instances WHERE state = 'there'"))

    def of_patient(self, patient: str) -> list[str]:
        """SOP instances that are there of one patient."""
        return [sop for (sop,) in self._ask("SELECT sop FROM instances WHERE patient = ? AND state = 'there'", patient)]

    def forget(self, sops: Iterable[str]) -> None:
        """Their files are gone; their studies are listed again should they be asked for."""
        rows = [(sop,) for sop in sops]
        with _faults_named(), self._lock, self._db:
            self._db.executemany("DELETE FROM studies WHERE study = (SELECT study FROM instances WHERE sop = ?)", rows)
            self._db.executemany("DELETE FROM instances WHERE sop = ?", rows)

    def counts(self) -> dict[str, int]:
        """State -> instances."""
        return dict(self._ask("SELECT state, COUNT(*) FROM instances GROUP BY state"))

    def refusals(self) -> dict[str, int]:
        """Reason code -> instances that are not here for it."""
        return dict(self._ask("SELECT code, COUNT(*) FROM instances WHERE code IS NOT NULL GROUP BY code"))

    # --- state -------------------------------------------------------------------------------------------------------

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a state, such as "fetch"."""
        self._do("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(name, json.dumps(value))])

    def noted(self, name: str) -> dict[str, Any] | None:
        """What `note` kept."""
        found = self._ask("SELECT value FROM meta WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None


def noted(path: Path, name: str) -> dict[str, Any] | None:
    """As `Book.noted`, without writing: also on a full disk. Raises: as `Book`."""
    with _faults_named(), closing(reading.opened(path)) as db:
        if version_of(db, STEPS) == 0 and not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
            return None
        found = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return json.loads(found[0]) if found else None


@contextmanager
def _faults_named() -> Iterator[None]:
    """What SQLite says, as an error that tells what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if is_disk_full(error):
            raise DiskFull("no room for pacs.db: make room and try again") from error
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise UsageError(
                "pacs.db is damaged: delete it and the inbox; the next fetch gets both again", "PACS_DB_DAMAGED"
            ) from error
        raise
