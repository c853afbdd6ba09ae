"""The CSV opt-out list: `PatientID,date`, one line a patient who has said no.

The list only ever takes patients away. A date in the future counts at once: waiting for it would use pictures of
somebody who has already said no. A list that cannot be read as a whole is refused, because a line that was skipped may
be somebody.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from silo_node.imaging import csv_file

_PATIENT_NAMES = frozenset({"patientid", "patient"})
_DATE_NAMES = frozenset({"date", "optoutdate", "since"})


@dataclass(frozen=True)
class OptOut:
    """Patients who opted out. `digest` is "sha256:<hex>" of the file's bytes; `loaded_at` is UTC, for the 24 h rule."""

    patients: frozenset[str] = field(repr=False)
    digest: str
    loaded_at: datetime

    def __contains__(self, patient: object) -> bool:
        return patient in self.patients

    def __len__(self) -> int:
        return len(self.patients)

    def unknown(self, known: Iterable[str]) -> int:
        """How many listed patients the hospital's index does not know: above zero may mean a mistyped id."""
        return len(self.patients.difference(known))


def nobody(now: datetime | None = None) -> OptOut:
    """The list of a hospital that keeps none."""
    return OptOut(frozenset(), "sha256:" + hashlib.sha256(b"").hexdigest(), now or datetime.now(UTC))


def load(path: Path, *, now: datetime | None = None) -> OptOut:
    """Read an opt-out list. Raises TableError `OPT_OUT_MISSING` or `OPT_OUT_MALFORMED` (file and line are named)."""
    return read(path, now=now)[0]


def read(path: Path, *, now: datetime | None = None) -> tuple[OptOut, bytes]:
    """(the list, the bytes that it was read from), for whoever keeps what was checked. Raises: as `load`."""
    path = Path(path)
    raw = csv_file.content(path, code="OPT_OUT", what=path.name)
    table = csv_file.parse(raw, code="OPT_OUT", what=path.name)
    patient_column = _column(table.columns, _PATIENT_NAMES)
    date_column = _column(table.columns, _DATE_NAMES)
    if patient_column is None or date_column is None:
        raise csv_file.malformed("OPT_OUT", path.name, 1, "must be the header `PatientID,date`")
    patients: set[str] = set()
    for line in table.lines:
        patient = line.cells[patient_column]
        if not patient or not patient.isprintable():
            raise csv_file.malformed("OPT_OUT", path.name, line.number, "has no readable patient id: fill it in")
        _check_date(path.name, line.number, line.cells[date_column])
        patients.add(patient)
    return OptOut(frozenset(patients), table.digest, now or datetime.now(UTC)), raw


def _check_date(name: str, line: int, text: str) -> None:
    try:
        date.fromisoformat(text)
    except ValueError:
        # Without a cause: its message would quote the cell.
        raise csv_file.malformed("OPT_OUT", name, line, "has a date that is not written YYYY-MM-DD") from None


def _column(columns: tuple[str, ...], names: frozenset[str]) -> str | None:
    found = [column for column in columns if re.sub(r"[\s_-]", "", column).lower() in names]
    return found[0] if len(found) == 1 else None
