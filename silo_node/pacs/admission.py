"""Whose images may come from the PACS: nobody's of whom no study could use any now.

| kept out        | who                                                                                                |
|-----------------|----------------------------------------------------------------------------------------------------|
| `OPTED_OUT`     | stands on the opt-out list                                                                         |
| `NOT_CONSENTED` | this hospital reads consents, and a round that is decided now would say no to this patient         |

It is the decision of a round (consent/rules.py): what is asked of a consent is the same for every study, so whom it denies
no study may use, and whom it permits is kept out of nothing. Without a record the policy's default holds, and where no
policy is in force the answer is no. A hospital that reads no consents only has its opt-out list.

Read as a whole, never a patient at a time. Where it can't be read nobody's images come, and nobody's go for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from silo_node import opt_out_registry
from silo_node.config import Config
from silo_node.consent import registry
from silo_node.consent.rules import PERMITS
from silo_node.errors import Refused, SiloError
from silo_node.steward import documents

LIST_SECONDS: Final = 60.0
CONSENT_SECONDS: Final = 300.0
"""Age at which a receiver reads the opt-out list, and the consents, again. At twice that a reading does not count any more."""
PATIENCE: Final = 5.0
"""Seconds that an image waits for a reading of the consents; a PACS may give up at ten."""


@dataclass(frozen=True)
class Admission:
    """One reading.

    codes: PatientID -> the code of the decision (consent/rules.py), of everybody on record; None where this hospital reads no
    consents. default: what holds without a record, True for yes. in_force: whether a data-use policy is. sure: whether images
    may go for the consents: their source itself was read, not its last good reading, and has some of patients here.
    """

    opted_out: frozenset[str] = field(repr=False)
    codes: Mapping[str, str] | None = field(repr=False)
    default: bool
    in_force: bool
    sure: bool

    def against(self, patient: str) -> str | None:
        """Why nothing of this PatientID may come, as a code; None where it may."""
        if patient in self.opted_out:
            return "OPTED_OUT"
        return None if self.codes is None or self._code(patient) in PERMITS else "NOT_CONSENTED"

    def gone(self, patients: Iterable[str]) -> frozenset[str]:
        """Those of `patients` whose images must go.

        A consent takes images away only as its source says it now, not as the last good reading does, nor where not one
        consent is there, as from a wrong address; and its absence only under a policy in force, because another may say
        what holds without one.
        """
        return frozenset(patient for patient in patients if self._goes(patient))

    def _goes(self, patient: str) -> bool:
        code = self.against(patient)
        if code != "NOT_CONSENTED":
            return code is not None
        return self.sure and (self.in_force or self._code(patient) != "DEFAULT_DENY")

    def _code(self, patient: str) -> str:
        return (self.codes or {}).get(patient, "DEFAULT_PERMIT" if self.default else "DEFAULT_DENY")


def load(config: Config, now: datetime) -> Admission:
    """The reading in force.

    Raises: Refused OPT_OUT_*, CONSENT_* (consent/registry.py); where rounds are refused too because nobody is permitted
    (CONSENT_NO_SOURCE), or somebody's "no" may be missed (CONSENT_UNASSIGNED).
    """
    try:
        _, policy = documents.load_policy(config, documents.load_trust(config), now=now)
    except SiloError:
        policy = None
    found = registry.load(config, now, registry.default_of(policy))
    if policy is not None or found.consents is not None:
        registry.usable(found)
    # Codes only: a receiver keeps them for hours beside the images.
    codes = {patient: decision.code for patient, decision in found.decisions.items()}
    return Admission(
        found.opt_out.patients if found.opt_out is not None else frozenset(),
        codes if found.consents is not None else None,
        found.default,
        policy is not None,
        found.loaded_at == now and bool(found.consents),
    )


class Standing:
    """The reading in force for a receiver, which asks for every image; safe in several threads.

    The opt-out list is read where it is asked for. Consents are read beside that, while the last reading still counts: a
    FHIR server may take a minute, and the PACS does not wait that long.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._list: tuple[float, frozenset[str]] | None = None
        self._read: Admission | SiloError | None = None
        self._read_at = 0.0
        self._reader: threading.Thread | None = None

    def against(self, patient: str) -> str | None:
        """As `Admission.against`. Raises: SiloError where nobody can tell: then nothing is taken."""
        with self._lock:
            listed = self._listed()
            reader = self._begun()
        if reader is not None and not self._counts():
            reader.join(PATIENCE)
        with self._lock:
            found, counts = self._read, self._counts()
        if isinstance(found, SiloError):
            raise Refused(found.code, found.sentence)
        if found is None or not counts:
            raise Refused("CONSENT_NOT_READ", "The consents are still being read: nothing is taken before.")
        return "OPTED_OUT" if patient in listed else found.against(patient)

    def _counts(self) -> bool:
        return isinstance(self._read, Admission) and time.monotonic() - self._read_at <= 2 * CONSENT_SECONDS

    def _listed(self) -> frozenset[str]:
        if self._list is None or time.monotonic() - self._list[0] > LIST_SECONDS:
            self._list = None
            found = opt_out_registry.load(self._config, datetime.now(UTC))
            self._list = (time.monotonic(), found.patients if found else frozenset())
        return self._list[1]

    def _begun(self) -> threading.Thread | None:
        """The reading that is under way, if one is or is due."""
        most = CONSENT_SECONDS if isinstance(self._read, Admission) else LIST_SECONDS
        due = self._read is None or time.monotonic() - self._read_at > most
        if due and self._reader is None:
            self._reader = threading.Thread(target=self._reading, daemon=True)
            self._reader.start()
        return self._reader

    def _reading(self) -> None:
        found: Admission | SiloError
        try:
            found = load(self._config, datetime.now(UTC))
        except SiloError as error:
            found = error
        except (OSError, MemoryError) as error:
            what = "there is not enough memory for them" if isinstance(error, MemoryError) else error.strerror
            found = Refused("CONSENT_MISSING", f"The consents cannot be read: {what}.")
        with self._lock:
            self._read, self._read_at, self._reader = found, time.monotonic(), None
