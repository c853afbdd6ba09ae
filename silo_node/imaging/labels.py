"""labels.csv: what a hospital says about its pictures.

Columns (others are ignored): `label` 0 or 1; `PatientID` and/or `SOPInstanceUID`; optional `split` (train, test) and
`file` (path from the folder of labels.csv). A line with neither SOPInstanceUID nor file labels all pictures of its
patient.

Without a `split` column each patient is sorted by the hash of the patient id: about a quarter to test, always the same
ones, and never one patient on both sides.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from silo_node.imaging import csv_file
from silo_node.imaging.errors import TableError

TEST_SHARE = 0.25
_PATIENT, _SOP, _LABEL, _SPLIT, _FILE = "PatientID", "SOPInstanceUID", "label", "split", "file"


@dataclass(frozen=True)
class LabelRow:
    """One line. `line` is its number in the file; None means that the column is not there."""

    line: int
    label: int
    patient: str | None = field(repr=False)
    sop: str | None = field(repr=False)
    split: str | None
    file: str | None = field(repr=False)


@dataclass(frozen=True)
class Labels:
    """All lines of one labels.csv. `files` maps a path (POSIX, from `folder`) to its patient, where both are known."""

    name: str
    folder: Path
    rows: tuple[LabelRow, ...] = field(repr=False)
    files: dict[str, str] = field(repr=False)

    def patient_of(self, path: Path) -> str | None:
        """The patient of a file by this list alone, without opening the file; None where the list does not say."""
        try:
            return self.files.get(path.relative_to(self.folder).as_posix())
        except ValueError:
            return None


def split_of(patient: str) -> str:
    """'train' or 'test' for a patient without a given split: the same at every start, whatever else is in the list."""
    first = hashlib.sha256(b"consilium/split/1\n" + patient.encode()).digest()[:8]
    return "test" if int.from_bytes(first, "big") < TEST_SHARE * 2**64 else "train"


def load(path: Path) -> Labels:
    """Read and check a labels.csv.

    Raises TableError: `LABELS_MISSING` (or it does not really lie in its folder), `LABELS_MALFORMED`, `LABELS_COLUMN` (a
    column is missing), `LABELS_LABEL` (not 0 or 1), `LABELS_SPLIT` (not train or test, or a patient on both sides),
    `LABELS_FILE` (nothing of that name, or outside the folder), `LABELS_DUPLICATE` (a picture or patient twice).
    """
    path = Path(path)
    folder = path.parent.resolve()  # as the index does, or no file would be found by its path
    table = csv_file.read(path, code="LABELS", what=path.name, root=folder)
    have = set(table.columns)
    if _LABEL not in have:
        raise _error("COLUMN", path, 1, f"has no column `{_LABEL}`: add it, with 0 or 1 in every line")
    if not have & {_PATIENT, _SOP}:
        raise _error("COLUMN", path, 1, f"has neither a column `{_PATIENT}` nor `{_SOP}`: add one of them")
    if not table.lines:
        raise _error("MALFORMED", path, 1, "is the only one: add a line for each picture")
    rows = tuple(_row(path, folder, line, have) for line in table.lines)
    _check_unique(path, rows)
    check_splits(path.name, ((row.line, row.patient, row.split) for row in rows))
    files = {row.file: row.patient for row in rows if row.file is not None and row.patient is not None}
    return Labels(path.name, folder, rows, files)


def check_splits(name: str, rows: Iterable[tuple[int, str | None, str | None]]) -> None:
    """Raise TableError `LABELS_SPLIT` where (line, patient, split) rows put a patient on both sides."""
    seen: dict[str, tuple[str, int]] = {}
    for line, patient, split in rows:
        if patient is None or split is None:
            continue
        other, first = seen.setdefault(patient, (split, line))
        if other != split:
            raise TableError(
                "LABELS_SPLIT",
                f"{name}, lines {first} and {line} put one patient into both train and test: "
                "give all lines of a patient the same split.",
            )


def _row(path: Path, folder: Path, line: csv_file.Line, have: set[str]) -> LabelRow:
    def cell(column: str) -> str | None:
        if column not in have:
            return None
        text = line.cells[column]
        if not text:
            raise _error(
                "MALFORMED", path, line.number, f"has nothing in column `{column}`: fill it in or delete the line"
            )
        return text

    label = cell(_LABEL)
    if label not in ("0", "1"):
        raise _error("LABEL", path, line.number, "has a label that is neither 0 nor 1: correct it or delete the line")
    split = cell(_SPLIT)
    if split is not None and split not in ("train", "test"):
        raise _error("SPLIT", path, line.number, "has a split that is neither `train` nor `test`: correct it")
    file = cell(_FILE)
    if file is not None:
        file = _inside(path, folder, line.number, file)
    return LabelRow(line.number, int(label), cell(_PATIENT), cell(_SOP), split, file)


def _inside(path: Path, folder: Path, line: int, file: str) -> str:
    """The path as POSIX text from `folder`, checked without opening the file."""
    inner = Path(os.path.normpath(file.replace("\\", "/")))
    if inner.is_absolute() or ".." in inner.parts or "\x00" in file:
        raise _error("FILE", path, line, "names a file outside the folder of this list: use a path inside it")
    try:
        os.lstat(folder / inner)
    except OSError as error:
        # What can't be reached, or is no file, is that one picture's fault: the index says why, and the other lines count.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise _error(
                "FILE", path, line, "names a file that is not there: correct column `file` or delete the line"
            ) from None
    return inner.as_posix()


def _check_unique(path: Path, rows: tuple[LabelRow, ...]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        keys = [("picture", row.sop), ("file", row.file)]
        if row.sop is None and row.file is None:
            keys.append(("patient", row.patient))
        for kind, value in keys:
            if value is None:
                continue
            first = seen.setdefault((kind, value), row.line)
            if first != row.line:
                raise _error("DUPLICATE", path, row.line, f"names the same {kind} as line {first}: delete one of them")


def _error(kind: str, path: Path, line: int, fault: str) -> TableError:
    return TableError(f"LABELS_{kind}", f"{path.name}, line {line} {fault}.")
