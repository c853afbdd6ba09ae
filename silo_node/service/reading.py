"""A database of the silo, opened to look into it: nothing is written, so it works on a full disk and a read-only drive too."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

_NO_ROOM_BESIDE: Final = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_FULL")


def opened(path: Path, patience: float = 5.0) -> sqlite3.Connection:
    """A connection that can't write. patience: seconds that it waits for a writer.

    SQLite keeps an index of the write-ahead log in a file beside the database, which a reader makes where it is missing. Where
    that can't be made, the database is read without that log: what was written last may be missing then, as long as no
    program that can write has opened it since.
    Raises: sqlite3.Error.
    """
    try:
        return _opened(path, "mode=ro", patience)
    except sqlite3.Error as error:
        if not getattr(error, "sqlite_errorname", "").startswith(_NO_ROOM_BESIDE):
            raise
    return _opened(path, "mode=ro&immutable=1", patience)


def _opened(path: Path, how: str, patience: float) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=patience, isolation_level=None)
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # the file is opened with the first question only
    except BaseException:
        db.close()
        raise
    return db
