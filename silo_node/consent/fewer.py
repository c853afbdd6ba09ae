"""Whose "no" an import would lose: who is denied by what is in place, and would not be once the new consents took its place.

Whom the present consents deny together with the new ones, and the new ones alone do not, has lost a refusal: a newer permit
ends an older refusal in both. Asked as if the policy were opt-out, because the next one may be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from silo_node.config import Config
from silo_node.consent import fhir, registry, rules, sources
from silo_node.consent.fhir import ConsentRecord
from silo_node.consent.patients import Patients
from silo_node.consent.sources import ConsentError, Found

_Whose = tuple[str, object]
"""("", PatientID); or, where nobody can tell whose it is, ("?", what stands there)."""


@dataclass(frozen=True)
class Lost:
    """Counts. patients: of whom the new consents have nothing any more. denials: patients who would lose their "no"."""

    patients: int
    denials: int


def lost(config: Config, new: Found, now: datetime) -> Lost:
    """What is in place, held against `new`; nothing where nothing is, or it can't be read. Raises: Refused CONSENT_MAP_*."""
    old = _in_place(config)
    if old is None:
        return Lost(0, 0)
    ways, query = [registry.patients_of(config, each) for each in (old, new)], registry.query_of(config)
    before, after = _records(old, ways), _records(new, ways[::-1])

    def permitted(records: Iterable[ConsentRecord]) -> bool:
        return rules.decide(records, False, query, now, True).permit

    denials = 0
    for whose, records in before.items():
        # What the new ones repeat is one record, not two of the same time that contradict nobody.
        told = after.get(whose, ())
        both = [*told, *(record for record in records if record not in told)]
        denials += permitted(told) and not permitted(both)
    return Lost(len(before.keys() - after.keys()), denials)


def _in_place(config: Config) -> Found | None:
    """What was imported last; where that is gone, the last good reading of whatever was the source."""
    for path in (config.consent_imported, config.consent_kept):
        try:
            return sources.whole(sources.read(path, ours=True))
        except ConsentError:  # none, or one that can't be read: the new ones are what mends it
            continue
    return None


def _records(found: Found, ways: Iterable[Patients]) -> dict[_Whose, list[ConsentRecord]]:
    """Whose -> records that count. ways: how to find whose, the first one that can tell."""
    by_whose: defaultdict[_Whose, list[ConsentRecord]] = defaultdict(list)
    for body in found.distinct():
        record = fhir.parse(body)
        if record.status in rules.IGNORED:
            continue
        patient = next((each for way in ways if (each := way.of(record)) is not None), None)
        by_whose[("?", record.subject) if patient is None else ("", patient)].append(record)
    return by_whose
