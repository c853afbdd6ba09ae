"""Whose consent is it? A reference in FHIR -> the PatientID (0010,0020) of this hospital's images.

Exactly one way holds, chosen by the settings:

    map                 a CSV file `reference,PatientID`; reference as in the consents ("Patient/17"), or "system|value"
    identifier_system   the identifier of this system, beside the reference or in the Patient resource it points to
    neither             "Patient/17" is read literally: the PatientID is 17; a URN or a whole address is that of a Patient
                        resource beside it, whose id is taken

A consent that this can't assign is counted. With an opt-in policy it helps nobody; with opt-out it may be somebody's "no",
so then the round is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from silo_node.consent.fhir import ConsentRecord, identifiers
from silo_node.imaging import csv_file

_LITERAL = re.compile(r"Patient/([A-Za-z0-9.-]{1,64})")


class Patients:
    """Assigns records to PatientIDs.

    Parameters: known: key ("Patient/1" or fullUrl) -> {"id", "identifier"} of the Patient resources of the source.
    system: the setting identifier_system, empty for none. table: from `load_map`, None for none.
    """

    def __init__(self, known: Mapping[str, Any], *, system: str = "", table: Mapping[str, str] | None = None) -> None:
        self._known, self._system, self._table = known, system, table

    def of(self, record: ConsentRecord) -> str | None:
        """The PatientID, None where the record can't be assigned to exactly one."""
        if record.subject is None:
            return None
        reference, beside = record.subject.reference, record.subject.identifiers
        if self._table is not None:
            keys = [f"{system}|{value}" for system, value in beside] + ([reference] if reference is not None else [])
            return _one({self._table[key] for key in keys if key in self._table})
        known = self._known.get(reference or "", {})
        if self._system:
            return _one(
                {
                    value
                    for system, value in (*beside, *identifiers(known.get("identifier", [])))
                    if system == self._system
                }
            )
        literal = _LITERAL.fullmatch(reference or "")
        # A URN, or an address: of the Patient resource that stands under it in the same source, and of none else.
        return literal[1] if literal is not None else known.get("id")


def load_map(path: Path) -> dict[str, str]:
    """The CSV map. Raises: TableError CONSENT_MAP_MISSING or CONSENT_MAP_MALFORMED (file and line are named)."""
    table = csv_file.read(path, code="CONSENT_MAP", what=path.name)
    if set(table.columns) != {"reference", "PatientID"}:
        raise csv_file.malformed("CONSENT_MAP", path.name, 1, "must be the header `reference,PatientID`")
    found: dict[str, str] = {}
    for line in table.lines:
        reference, patient = line.cells["reference"], line.cells["PatientID"]
        if not reference or not patient or not patient.isprintable():
            raise csv_file.malformed("CONSENT_MAP", path.name, line.number, "has an empty or unreadable cell")
        if found.setdefault(reference, patient) != patient:
            raise csv_file.malformed(
                "CONSENT_MAP", path.name, line.number, "gives another PatientID than a line before"
            )
    return found


def _one(found: set[str]) -> str | None:
    return next(iter(found)) if len(found) == 1 else None
