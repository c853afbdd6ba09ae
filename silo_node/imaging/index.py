"""The header scan: one row a file of the data folder, in SQLite, read without touching pixels.

Every file is a row. One that cannot be used has a `problem` (a code of PROBLEMS) and stays out of every cohort; the
scan goes on. A second scan opens only files whose size or time changed. Files of patients who opted out are not
opened: the patient is known from labels.csv (column `file`) or from an earlier scan. While anybody has opted out, a
file of which neither says whose it is stays closed too.

The index stays inside the hospital (file mode 0600): it holds patient ids, because the cohort is a list of patients.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from silo_node.consent.opt_out import OptOut
from silo_node.errors import is_disk_full
from silo_node.imaging import header
from silo_node.imaging.errors import ScanError
from silo_node.imaging.labels import Labels
from silo_node.migrations import migrate

if TYPE_CHECKING:
    from silo_node.pacs.inbox import Patients

PROBLEMS: Mapping[str, str] = {
    "NOT_DICOM": "not a DICOM file",
    "CORRUPT": "the header is damaged or cut off",
    "UNREADABLE": "the operating system does not let us read the file",
    "NO_PATIENT": "the header has no patient id",
    "NO_INSTANCE": "the header has no SOP instance UID",
    "NO_IMAGE": "the file holds no image (a report, a directory, a presentation state), or is cut off before it",
    "TOO_LARGE": "the image has more pixels than this node decodes",
    "DUPLICATE": "another file holds the same SOP instance",
    "OPTED_OUT": "not opened, because the patient opted out",
    "PATIENT_UNKNOWN": "not opened, because patients have opted out and labels.csv does not say whose file it is",
    "PIXELS_CORRUPT": "the pixel data is damaged or cut off",
    "PIXELS_UNSUPPORTED": "the pixel data is in a form that no installed decoder reads",
}
BUSY_SECONDS = 30.0  # how long one scan waits for another
_TRIED_AGAIN = frozenset({"UNREADABLE", "OPTED_OUT", "PATIENT_UNKNOWN"})
_SKIPPED_SUFFIXES = frozenset({".csv", ".md", ".txt", ".json", ".toml"})
STEPS = (
    (
        "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE IF NOT EXISTS files ("
        " path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
        " sop TEXT, patient TEXT, study TEXT, series TEXT, modality TEXT,"
        " rows INTEGER, columns INTEGER, frames INTEGER, transfer_syntax TEXT, problem TEXT)",
        "CREATE INDEX IF NOT EXISTS files_by_sop ON files (sop)",
        "CREATE INDEX IF NOT EXISTS files_by_patient ON files (patient)",
    ),
)
"""Its format, step by step (migrations.py)."""
_COLUMNS = (
    "path, size, mtime_ns, sop, patient, study, series, modality, rows, columns, frames, transfer_syntax, problem"
)


@dataclass(frozen=True)
class IndexedFile:
    """One file. `path` is absolute; `problem` None means usable; `rows`, `columns` in pixels."""

    path: Path = field(repr=False)
    sop: str | None = field(repr=False)
    patient: str | None = field(repr=False)
    modality: str | None
    rows: int | None
    columns: int | None
    transfer_syntax: str | None
    problem: str | None


@dataclass(frozen=True)
class ScanReport:
    """What a scan found. `opened`: headers read now; `unchanged`: known already; `problems`: code -> files."""

    files: int
    usable: int
    patients: int
    opened: int
    unchanged: int
    gone: int
    problems: Mapping[str, int]
    modalities: Mapping[str, int]
    seconds: float


def scan(
    data_folder: Path,
    index_db: Path,
    *,
    labels: Labels | None = None,
    opt_out: OptOut | None = None,
    inbox: Patients | None = None,
) -> ScanReport:
    """Bring the index up to date with the folder, in one transaction.

    inbox: a second root, with whose its files are; these stand in the index by their absolute paths.

    Raises ScanError `DATA_FOLDER_MISSING`, `DATA_FOLDER_EMPTY` (no file at all: a network drive that is not mounted
    must not empty the index), `INDEX_DAMAGED`, `INDEX_BUSY`, `DISK_FULL`.
    """
    began = time.perf_counter()
    root = Path(data_folder).resolve()
    if not root.is_dir():
        raise ScanError("DATA_FOLDER_MISSING", "The data folder is not there: check `data` in silo.toml.")
    found = dict(_walk(root))
    empty = not found
    if inbox is not None and inbox.folder.is_dir():
        found.update({(inbox.folder / path).as_posix(): seen for path, seen in _walk(inbox.folder)})
    if not found:
        raise ScanError("DATA_FOLDER_EMPTY", "The data folder holds no file: check that its drive is mounted.")
    opened = unchanged = 0
    with closing(_open(Path(index_db))) as db, _damage_named(), db:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('root', ?)", (str(root),))
        known = {
            path: (size, mtime, patient, problem)
            for path, size, mtime, patient, problem in db.execute(
                "SELECT path, size, mtime_ns, patient, problem FROM files"
            )
        }
        if empty and any(not path.startswith("/") for path in known):
            raise ScanError("DATA_FOLDER_EMPTY", "The data folder holds no file any more: check its drive.")
        rows = []
        for path, (size, mtime) in found.items():
            before = known.get(path)
            # A file whose read failed for a reason outside the file, or which was not opened, is tried again.
            same = before is not None and before[:2] == (size, mtime) and before[3] not in _TRIED_AGAIN
            if same:
                unchanged += 1
                continue
            names = (
                before[2] if before else None,
                labels.patient_of(root / path) if labels else None,
                inbox.patient_of(Path(path)) if inbox and path.startswith("/") else None,
            )
            out = [name for name in names if name is not None and opt_out is not None and name in opt_out]
            if out:
                rows.append((path, size, mtime, None, out[0], *(None,) * 7, "OPTED_OUT"))
            elif opt_out and not any(names):
                rows.append((path, size, mtime, *(None,) * 9, "PATIENT_UNKNOWN"))
            else:
                rows.append((path, size, mtime, *header.read(root / path).as_row()))
                opened += 1
        db.executemany(f"INSERT OR REPLACE INTO files ({_COLUMNS}) VALUES ({', '.join('?' * 13)})", rows)
        gone = [(path,) for path in known if path not in found]
        db.executemany("DELETE FROM files WHERE path = ?", gone)
        _mark_duplicates(db)
        return _report(db, opened, unchanged, len(gone), time.perf_counter() - began)


def files(index_db: Path) -> list[IndexedFile]:
    """All rows, by path. Raises ScanError `INDEX_MISSING` before the first scan, `INDEX_DAMAGED`."""
    if not Path(index_db).is_file():
        raise ScanError("INDEX_MISSING", "The data folder has not been scanned: run `silo scan`.")
    with closing(_open(Path(index_db))) as db, _damage_named():
        root = db.execute("SELECT value FROM meta WHERE name = 'root'").fetchone()
        if root is None:
            raise ScanError("INDEX_MISSING", "The data folder has not been scanned: run `silo scan`.")
        rows = db.execute(
            "SELECT path, sop, patient, modality, rows, columns, transfer_syntax, problem FROM files ORDER BY path"
        )
        return [IndexedFile(Path(root[0]) / path, *rest) for path, *rest in rows]


def mark(index_db: Path, problems: Mapping[Path, str]) -> None:
    """Record that files (absolute paths) cannot be used, by a code of PROBLEMS. Until the file changes."""
    with closing(_open(Path(index_db))) as db, _damage_named(), db:
        root = Path(db.execute("SELECT value FROM meta WHERE name = 'root'").fetchone()[0])
        db.executemany(
            "UPDATE files SET problem = ? WHERE path = ?",
            [(code, key(path, root)) for path, code in problems.items() if code in PROBLEMS],
        )


def key(path: Path, root: Path) -> str:
    """The name of an absolute path in the index: from the data folder where it is in there."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _walk(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(path from root, (size, mtime_ns)) of every file that may be an image, sorted; not hidden ones or lists."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if name.startswith(".") or path.suffix.lower() in _SKIPPED_SUFFIXES:
                continue
            try:
                stat = path.stat()
            except OSError:
                yield path.relative_to(root).as_posix(), (0, 0)  # a row UNREADABLE will say so
                continue
            yield path.relative_to(root).as_posix(), (stat.st_size, stat.st_mtime_ns)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_SECONDS)
    with _damage_named():
        migrate(db, STEPS)
        db.execute("PRAGMA journal_mode = WAL")
    return db


@contextmanager
def _damage_named() -> Iterator[None]:
    """Maps what SQLite says to a ScanError that tells what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        if is_disk_full(error):
            raise ScanError("DISK_FULL", "No space is left for the index: free some and scan again.") from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise ScanError("INDEX_BUSY", "Another scan is running: wait for it to end.") from error
        raise ScanError("INDEX_DAMAGED", "The index cannot be used: delete index.db and scan again.") from error


def _mark_duplicates(db: sqlite3.Connection) -> None:
    """Of several files with one SOP instance only the first path is used."""
    db.execute("UPDATE files SET problem = NULL WHERE problem = 'DUPLICATE'")
    db.execute(
        "UPDATE files SET problem = 'DUPLICATE' WHERE problem IS NULL AND EXISTS ("
        "SELECT 1 FROM files AS other"
        " WHERE other.sop = files.sop AND other.path < files.path AND other.problem IS NULL)"
    )


def _report(db: sqlite3.Connection, opened: int, unchanged: int, gone: int, seconds: float) -> ScanReport:
    rows: Iterable[tuple[str | None, str | None, str | None]] = db.execute(
        "SELECT patient, modality, problem FROM files"
    ).fetchall()
    usable = [(patient, modality) for patient, modality, problem in rows if problem is None]
    return ScanReport(
        files=len(list(rows)),
        usable=len(usable),
        patients=len({patient for patient, _ in usable}),
        opened=opened,
        unchanged=unchanged,
        gone=gone,
        problems=dict(sorted(Counter(problem for *_, problem in rows if problem).items())),
        modalities=dict(sorted(Counter(modality or "none" for _, modality in usable).items())),
        seconds=seconds,
    )
