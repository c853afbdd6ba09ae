"""The header scan: one row a file of the data folder, in SQLite, read without touching pixels.

Every file is a row. One that cannot be used has a `problem` (a code of PROBLEMS) and stays out of every cohort; the
scan goes on. A second scan opens only files whose size or time changed. What is no regular file, and a link that leads
out of the folder, is never opened; a row is of the file that was opened, whatever its name leads to a moment later
(known.py). Files of patients who opted out are not
opened: the patient is known from labels.csv (column `file`) or from an earlier scan. While anybody has opted out, a
file of which neither says whose it is stays closed too.

The index stays inside the hospital (file mode 0600): it holds patient ids, because the cohort is a list of patients.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from silo_node.consent.opt_out import OptOut
from silo_node.errors import is_disk_full
from silo_node.imaging import header
from silo_node.imaging.errors import ScanError
from silo_node.imaging.labels import Labels
from silo_node.service.migrations import migrate

if TYPE_CHECKING:
    from silo_node.pacs.inbox import Patients

PROBLEMS: Mapping[str, str] = {
    "NOT_DICOM": "not a DICOM file: 128 bytes and DICM (the preamble) do not begin it, nor an image without them",
    "CORRUPT": "the header is damaged or cut off",
    "UNREADABLE": "the operating system does not let us read the file",
    "NOT_A_FILE": "not a regular file (a pipe, a socket, a device): never opened",
    "LINK_OUTSIDE": "a link that leads out of the data folder: not followed",
    "LINK_FOLDER": "a link to a folder inside the data folder: not followed, what is in it is read at its own place",
    "BAD_NAME": "the name of the file or of its folder is not UTF-8: not opened; rename it",
    "HEADER_TOO_LARGE": "the header is longer or nested deeper than any real one, or inflates to too much",
    "NO_PATIENT": "the header has no patient id (its pixels are not looked at, they may be damaged too)",
    "NO_INSTANCE": "the header has no SOP instance UID",
    "NO_IMAGE": "the file holds no image (a report, a directory, a presentation state), or is cut off before it",
    "TOO_LARGE": "the image has more pixels than this node decodes",
    "WRONG_MODALITY": "an image of another modality than this silo keeps (`modalities` in silo.toml)",
    "DUPLICATE": "another file holds the same SOP instance",
    "OPTED_OUT": "not opened, because the patient opted out",
    "PATIENT_UNKNOWN": "not opened, because patients have opted out and labels.csv does not say whose file it is",
    "NO_PIXELS": "the header describes an image, but no pixel data follows it",
    "PIXELS_CUT": "the pixel data is shorter than the header says, or its end is missing",
    "PIXELS_CORRUPT": "the pixel data is damaged or cut off",
    "PIXELS_NO_VALUE": "no pixel holds a finite number",
    "PIXELS_UNSUPPORTED": "the pixel data is in a form that no installed decoder reads",
    "PIXELS_CRASHED": "a decoder crashed on the pixel data; only its own process ended",
    "PIXELS_SLOW": "decoding was ended after too long",
    "FILE_CHANGED": "exchanged or overwritten since the scan: not used until the next scan has read it anew",
    "PIXELS_MEMORY": "decoding needs more memory than this node gives one file",
}
PASSED_OVER: Mapping[str, str] = {
    "CSV": "lists (*.csv)",
    "HIDDEN": "files whose name begins with a dot",
    "HIDDEN_FOLDER": "folders whose name begins with a dot, each with all that is in it",
}
"""What is looked for no further and gets no row; a scan says how many."""
WORTH_ANOTHER_TRY = frozenset({"PIXELS_CRASHED", "PIXELS_SLOW", "PIXELS_MEMORY"})
"""May have been the machine's fault and not the file's: `silo scan --pixels` decodes these again."""
BUSY_SECONDS = 30.0  # how long one scan waits for another
_BATCH = 1000
_TRIED_AGAIN = frozenset({"UNREADABLE", "FILE_CHANGED", "LINK_OUTSIDE", "NOT_A_FILE", "OPTED_OUT", "PATIENT_UNKNOWN"})
_SKIPPED_SUFFIXES = frozenset({".csv"})
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
    # `meta` did not say in which folder the files of the inbox have to lie: the next scan reads them anew.
    ("DELETE FROM files WHERE path LIKE '/%'",),
)
"""Its format, step by step (migrations.py)."""
_COLUMNS = (
    "path, size, mtime_ns, sop, patient, study, series, modality, rows, columns, frames, transfer_syntax, problem"
)


@dataclass(frozen=True)
class IndexedFile:
    """One file. `path` is absolute, and really lies in `root`, as a real path; `size` in bytes; `problem` None means usable;
    `rows`, `columns` in pixels."""

    path: Path = field(repr=False)
    root: Path = field(repr=False)
    size: int
    mtime_ns: int
    sop: str | None = field(repr=False)
    patient: str | None = field(repr=False)
    modality: str | None
    rows: int | None
    columns: int | None
    transfer_syntax: str | None
    problem: str | None
    frames: int | None = None


@dataclass(frozen=True)
class ScanReport:
    """What a scan found. `opened`: headers read now; `unchanged`: known already; `problems`: code -> files; `passed_over`:
    code of PASSED_OVER -> files or folders that are no rows and in no other number."""

    files: int
    usable: int
    patients: int
    opened: int
    unchanged: int
    gone: int
    problems: Mapping[str, int]
    modalities: Mapping[str, int]
    seconds: float
    passed_over: Mapping[str, int] = field(default_factory=dict)


def scan(
    data_folder: Path,
    index_db: Path,
    *,
    labels: Labels | None = None,
    opt_out: OptOut | None = None,
    inbox: Patients | None = None,
    modalities: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> ScanReport:
    """Bring the index up to date with the folder, in one transaction at the end.

    progress: called after each file with how many were opened and how many were known already.

    modalities: those of images that this silo keeps, empty for all.

    inbox: a second root, with whose its files are; these stand in the index by their absolute paths.

    Raises ScanError `DATA_FOLDER_MISSING`, `DATA_FOLDER_EMPTY` (no file at all: a network drive that is not mounted
    must not empty the index), `DATA_FOLDER_NAME`, and those of `why`.
    """
    began = time.perf_counter()
    root = Path(data_folder).resolve()
    if not root.is_dir():
        raise ScanError("DATA_FOLDER_MISSING", "The data folder is not there: check `data` in silo.toml.")
    if not _is_text(str(root)):
        raise ScanError("DATA_FOLDER_NAME", "The data folder's path is not UTF-8: rename what is not in it.")
    inner = inbox.folder.resolve() if inbox is not None else root
    opened = unchanged = 0
    with closing(_open(Path(index_db))) as db, _damage_named():
        reader = _made_by(db)
        known = {
            path: (size, mtime, patient, problem)
            for path, size, mtime, patient, problem in db.execute(
                "SELECT path, size, mtime_ns, patient, problem FROM files"
            )
        }
        # What is read waits in a table of this connection, so that nobody waits for a long scan.
        db.execute(f"CREATE TEMP TABLE fresh AS SELECT {_COLUMNS} FROM files LIMIT 0")
        rows: list[tuple[object, ...]] = []
        gone = set(known)
        passed: Counter[str] = Counter()
        local = False  # whether the data folder itself holds anything
        for path, size, mtime, problem in _both(root, inbox, inner, passed):
            local |= not path.startswith("/")
            before = known.get(path)
            gone.discard(path)
            # A file whose read failed for a reason outside the file, or which was not opened, is tried again.
            same = before is not None and before[:2] == (size, mtime) and before[3] not in _TRIED_AGAIN
            left = before is not None and opt_out is not None and before[2] in opt_out  # since the file was read
            if same and not left and reader == str(header.VERSION):
                unchanged += 1
            elif problem is not None:
                rows.append((path, size, mtime, *(None,) * 9, problem))
            else:
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
                    found = header.read(*((path, inner) if path.startswith("/") else (f"{root}/{path}", root)))
                    row = found.as_row()
                    rows.append((path, *(row if found.size is not None else (size, mtime, *row[2:]))))
                    opened += 1
            if len(rows) == _BATCH:
                _keep(db, rows)
            if progress is not None:
                progress(opened, unchanged)
        _keep(db, rows)
        came = len(gone) < len(known) or db.execute("SELECT 1 FROM fresh LIMIT 1").fetchone() is not None
        if not local and (not came or any(not path.startswith("/") for path in known)):
            raise ScanError("DATA_FOLDER_EMPTY", "The data folder holds no file: check that its drive is mounted.")
        db.commit()
        with db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT OR REPLACE INTO meta VALUES ('root', ?), ('inbox', ?)", (str(root), str(inner)))
            db.execute("INSERT OR REPLACE INTO meta VALUES ('reader', ?)", (str(header.VERSION),))
            db.execute(f"INSERT OR REPLACE INTO files ({_COLUMNS}) SELECT {_COLUMNS} FROM fresh")
            db.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])
            _mark_modalities(db, modalities)
            _mark_duplicates(db)
        return _report(db, opened, unchanged, len(gone), time.perf_counter() - began, passed)


def _both(
    root: Path, inbox: Patients | None, inner: Path, passed: Counter[str]
) -> Iterator[tuple[str, int, int, str | None]]:
    """The files of the data folder, then those of the inbox (really at `inner`) by their absolute paths."""
    yield from _walk(root, passed)
    if inbox is not None and inbox.folder.is_dir():
        for path, *seen in _walk(inner, passed):
            yield (inbox.folder / path).as_posix(), *seen


def _keep(db: sqlite3.Connection, rows: list[tuple[object, ...]]) -> None:
    db.executemany(f"INSERT INTO fresh VALUES ({', '.join('?' * 13)})", rows)
    rows.clear()


def _made_by(db: sqlite3.Connection) -> str | None:
    """The version of the reader that filled the index; another one would give other rows. None for a new index."""
    found = db.execute("SELECT value FROM meta WHERE name = 'reader'").fetchone()
    return found[0] if found else None


def files(index_db: Path) -> list[IndexedFile]:
    """All rows, by path. Raises ScanError `INDEX_MISSING` before the first scan, and as `why`."""
    if not Path(index_db).is_file():
        raise ScanError("INDEX_MISSING", "The data folder has not been scanned: run `silo scan`.")
    with closing(_open(Path(index_db))) as db, _damage_named():
        roots = {name: Path(value) for name, value in db.execute("SELECT * FROM meta WHERE name IN ('root', 'inbox')")}
        if "root" not in roots:
            raise ScanError("INDEX_MISSING", "The data folder has not been scanned: run `silo scan`.")
        rows = db.execute(
            "SELECT path, size, mtime_ns, sop, patient, modality, rows, columns, transfer_syntax, problem, frames"
            " FROM files ORDER BY path"
        )
        return [
            IndexedFile(roots["root"] / path, roots["inbox" if path.startswith("/") else "root"], *rest)
            for path, *rest in rows
        ]


def files_of(index_db: Path, patient: str) -> int:
    """How many files are of this patient, usable or not. Raises ScanError `INDEX_MISSING` before the first scan,
    `INDEX_DAMAGED`."""
    if not Path(index_db).is_file():
        raise ScanError("INDEX_MISSING", "The data folder has not been scanned: run `silo scan`.")
    with closing(_open(Path(index_db))) as db, _damage_named():
        return int(db.execute("SELECT count(*) FROM files WHERE patient = ?", (patient,)).fetchone()[0])


def mark(index_db: Path, problems: Mapping[Path, str | None]) -> None:
    """Record that files (absolute paths) cannot be used, by a code of PROBLEMS, until the file changes; None: it can."""
    with closing(_open(Path(index_db))) as db, _damage_named(), db:
        root = Path(db.execute("SELECT value FROM meta WHERE name = 'root'").fetchone()[0])
        db.executemany(
            "UPDATE files SET problem = ? WHERE path = ?",
            [(code, key(path, root)) for path, code in problems.items() if code in (None, *PROBLEMS)],
        )


def key(path: Path, root: Path) -> str:
    """The name of an absolute path in the index: from the data folder where it is in there."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def counted_again(report: ScanReport, index_db: Path) -> ScanReport:
    """The report of a scan after files were marked."""
    with closing(_open(Path(index_db))) as db, _damage_named():
        return _report(db, report.opened, report.unchanged, report.gone, report.seconds, report.passed_over)


def count(data_folder: Path) -> int:
    """How many files a scan will look at."""
    return sum(1 for _ in _walk(Path(data_folder).resolve(), Counter()))


def _walk(root: Path, passed: Counter[str]) -> Iterator[tuple[str, int, int, str | None]]:
    """(path from root, bytes, mtime_ns, problem) of every file that may be an image, sorted; not hidden ones or lists.

    Nothing is opened, and no link to a folder or out of the root is followed: `problem` says so. What is left out is counted
    in `passed`, by codes of PASSED_OVER.
    """
    closed: list[Path] = []
    for folder, inner, names in os.walk(root, onerror=lambda error: closed.append(Path(error.filename))):
        here = Path(folder)
        links = [name for name in inner if (here / name).is_symlink()]
        passed["HIDDEN_FOLDER"] += sum(name.startswith(".") and name not in links for name in inner)
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in links)
        below = "" if here == root else here.relative_to(root).as_posix() + "/"
        for name in sorted([*names, *links]):
            if name.startswith(".") or name[name.rfind(".") :].lower() in _SKIPPED_SUFFIXES:
                passed["HIDDEN" if name.startswith(".") else "CSV"] += 1
                continue
            found = _look(root, here / name, is_folder=name in links)
            path = below + name
            if not _is_text(path):
                path, found = _as_text(root, path), (*found[:2], "BAD_NAME")
            yield path, *found
    for each in closed:  # what is in there may be whole series: not to be missed in silence
        if each != root:
            path = each.relative_to(root).as_posix()
            yield path if _is_text(path) else _as_text(root, path), 0, 0, "UNREADABLE"


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8: no database, list or page could name the file
        return False
    return True


def _as_text(root: Path, path: str) -> str:
    """A name for what has none in UTF-8; one that no other file below `root` has."""
    shown = os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    while os.path.lexists(root / shown):
        shown += "\\"
    return shown


def _look(root: Path, path: Path, *, is_folder: bool) -> tuple[int, int, str | None]:
    """(bytes, mtime_ns, problem)."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            if not path.resolve().is_relative_to(root):
                return 0, status.st_mtime_ns, "LINK_OUTSIDE"
            if is_folder:
                return 0, status.st_mtime_ns, "LINK_FOLDER"
            status = path.stat()
    except (OSError, RuntimeError):  # RuntimeError: a link that leads to itself
        return 0, 0, "UNREADABLE"
    return status.st_size, status.st_mtime_ns, None if stat.S_ISREG(status.st_mode) else "NOT_A_FILE"


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ScanError(*why(error)) from error
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
    except sqlite3.Error as error:
        raise ScanError(*why(error)) from error


_DAMAGED: Final = (
    "SQLITE_CORRUPT",
    "SQLITE_NOTADB",
    "SQLITE_FORMAT",
    "SQLITE_SCHEMA",
    "SQLITE_ERROR",
    "SQLITE_MISMATCH",
)
_READ_ONLY: Final = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")


def why(error: OSError | sqlite3.Error) -> tuple[str, str]:
    """Code and sentence for what stands against index.db; damage is said only where SQLite found some, since the file is then
    deleted. The sentence names no path: it may leave the hospital."""
    name = getattr(error, "sqlite_errorname", None) or errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    if is_disk_full(error):
        return "DISK_FULL", "No space is left for the index: free some and scan again."
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return "INDEX_BUSY", "Another scan is running: wait for it to end."
    if name.startswith(_READ_ONLY) or name in ("EACCES", "EPERM", "EROFS"):
        return "INDEX_READ_ONLY", (
            "The index can't be opened for writing by this user: run as the owner of the silo's folder, or correct owner and "
            "mode of index.db; a drive that is mounted read-only must be mounted for writing."
        )
    if isinstance(error, sqlite3.Error) and name.startswith(_DAMAGED):
        return "INDEX_DAMAGED", "The index cannot be used: delete index.db and scan again."
    if isinstance(error, sqlite3.Error) and not name:
        return "INDEX_DAMAGED", "The index holds what it should not: delete index.db and scan again."
    return "INDEX_IO", (
        f"The drive of the index can't be read or written ({name or type(error).__name__}): look at the drive, its cable or "
        "the network, then scan again. The index itself may be whole: do not delete it for this."
    )


def _mark_modalities(db: sqlite3.Connection, kept: Collection[str]) -> None:
    """What is not of one of `kept` is not used; none: everything is."""
    db.execute("UPDATE files SET problem = NULL WHERE problem = 'WRONG_MODALITY'")
    if kept:
        db.execute(
            "UPDATE files SET problem = 'WRONG_MODALITY' WHERE (problem IS NULL OR problem = 'DUPLICATE')"
            f" AND coalesce(modality, '') NOT IN ({', '.join('?' * len(kept))})",
            list(kept),
        )


def _mark_duplicates(db: sqlite3.Connection) -> None:
    """Of several files with one SOP instance only the first path is used."""
    db.execute("UPDATE files SET problem = NULL WHERE problem = 'DUPLICATE'")
    db.execute(
        "UPDATE files SET problem = 'DUPLICATE' WHERE problem IS NULL AND EXISTS ("
        "SELECT 1 FROM files AS other"
        " WHERE other.sop = files.sop AND other.path < files.path AND other.problem IS NULL)"
    )


def _report(
    db: sqlite3.Connection, opened: int, unchanged: int, gone: int, seconds: float, passed_over: Mapping[str, int]
) -> ScanReport:
    problems = dict(db.execute("SELECT problem, count(*) FROM files WHERE problem IS NOT NULL GROUP BY 1 ORDER BY 1"))
    modalities = dict(
        db.execute("SELECT coalesce(modality, 'none'), count(*) FROM files WHERE problem IS NULL GROUP BY 1 ORDER BY 1")
    )
    (patients,) = db.execute("SELECT count(DISTINCT patient) FROM files WHERE problem IS NULL").fetchone()
    usable = sum(modalities.values())
    return ScanReport(
        files=usable + sum(problems.values()),
        usable=usable,
        patients=patients,
        opened=opened,
        unchanged=unchanged,
        gone=gone,
        problems=problems,
        modalities=modalities,
        seconds=seconds,
        passed_over={code: count for code, count in sorted(passed_over.items()) if count},
    )
