"""The silo's SQLite files from one version of the software to the next: numbered steps, `PRAGMA user_version`.

Each database's module lists its steps. Step 1 makes the tables (IF NOT EXISTS, because files of the first versions bear
the number 0); a later version appends a step and never edits an old one. A step and its number are one transaction: a
crash or a full disk leaves the version before. A file of a newer version is left alone: going back to older software
could misread what decides whether something was sent already.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from silo_node.errors import SiloError

Step = Sequence[str]
"""SQL statements, run in their order."""

_VERSION: Final = "PRAGMA user_version"


class UpgradeNeeded(SiloError):
    """The file was written by newer software than this."""

    exit_code = 2

    def __init__(self, name: str, found: int, known: int) -> None:
        super().__init__(
            "UPGRADE_NEEDED",
            f"{name} was written by a newer version of this software (its format is {found}, this version knows "
            f"{known}): install that version again. Nothing was changed.",
        )


def migrate(db: sqlite3.Connection, steps: Sequence[Step]) -> int:
    """Bring the database up to `len(steps)`; another process may do the same at the same time.

    Call it before anything else is done with the connection, outside a transaction.
    Returns: the version that it had. Raises: UpgradeNeeded, with nothing changed; sqlite3.Error.
    """
    before = version_of(db, steps)
    for number in range(before + 1, len(steps) + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            # Looked at again under the lock: another process may have done this step meanwhile.
            if version_of(db, steps) < number:
                for statement in steps[number - 1]:
                    db.execute(statement)
                db.execute(f"{_VERSION} = {number}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    return before


def version_of(db: sqlite3.Connection, steps: Sequence[Step]) -> int:
    """The number of its format. Raises: UpgradeNeeded for a newer one than this software knows; sqlite3.Error."""
    (found,) = db.execute(_VERSION).fetchone()
    if found > len(steps):
        raise UpgradeNeeded(_name(db), found, len(steps))
    return int(found)


def _name(db: sqlite3.Connection) -> str:
    (_, _, path) = db.execute("PRAGMA database_list").fetchone()
    return Path(path).name or "The database"
