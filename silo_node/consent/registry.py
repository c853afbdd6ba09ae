"""Who has consented and who has opted out, as of now: loaded freshly before every round.

Each good reading of the consents is kept in FOLDER/consent/fhir.json (mode 0600), like that of the opt-out list: a server
that is away for an hour does not stop the research, one that is away longer than `max_age_hours` does. While no round reads it,
`silo run` renews a server's (renewing.py).

    FOLDER/consent/imported.json   what `silo consent import` put in place; the source where [consent] names none
    FOLDER/consent/fhir.json       the last good reading
    FOLDER/consent/asked.json      how the FHIR server answered last (asked.py)
    FOLDER/consent/known.json      patient -> code of the last decision that the silo's log knows (changes.py)
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from protocol.canonical import digest
from silo_node import opt_out_registry
from silo_node.config import Config
from silo_node.consent import fhir, rules, sources
from silo_node.consent.fhir import ConsentRecord
from silo_node.consent.keeping import keep
from silo_node.consent.opt_out import OptOut
from silo_node.consent.patients import Patients, load_map
from silo_node.consent.rules import Decision, Query
from silo_node.consent.sources import ConsentError, Found
from silo_node.errors import Refused, SiloError, UsageError
from silo_node.files import read_json
from silo_node.imaging.errors import DataError

if TYPE_CHECKING:
    from protocol.policy import PolicyDocument


@dataclass(frozen=True)
class Registry:
    """What is in force. opt_out, consents: None where this hospital keeps none. unassigned: consents of which nobody can
    tell which patient of the images they are about. digest: of all that was read; None where nothing is kept. default:
    what holds without a record, True for PERMIT. known: patients of earlier loads."""

    opt_out: OptOut | None = field(repr=False)
    consents: Mapping[str, tuple[ConsentRecord, ...]] | None = field(repr=False)
    unassigned: int
    digest: str | None
    loaded_at: datetime
    query: Query
    now: datetime
    default: bool
    known: Mapping[str, str] = field(repr=False)

    def decide(self, patient: str) -> Decision:
        """The decision for one PatientID."""
        return self.decisions.get(patient) or self._decide(patient)

    @cached_property
    def decisions(self) -> Mapping[str, Decision]:
        """The decision for each of `patients`."""
        return {patient: self._decide(patient) for patient in self.patients}

    def _decide(self, patient: str) -> Decision:
        records = (self.consents or {}).get(patient, ())
        return rules.decide(records, patient in (self.opt_out or ()), self.query, self.now, self.default)

    def permits(self, patient: str) -> bool:
        """Whether this patient's images may be used."""
        return self.decide(patient).permit

    @property
    def patients(self) -> frozenset[str]:
        """Everybody of whom anything is, or was, on record."""
        return frozenset().union(self.consents or (), self.opt_out.patients if self.opt_out else (), self.known)

    @property
    def withdrawn(self) -> frozenset[str]:
        """Those of `patients` whose images may not be used: their cached pixels must go."""
        return frozenset(patient for patient, decision in self.decisions.items() if not decision.permit)

    def counts(self) -> dict[str, int]:
        """Reason code -> patients, for the hospital's own terminal."""
        return dict(sorted(Counter(decision.code for decision in self.decisions.values()).items()))


def default_of(policy: PolicyDocument | None) -> bool:
    """Whether a patient without a record takes part: only where the policy says opt-out and names the legal basis."""
    return policy is not None and policy.consent_default == "opt-out" and bool(policy.legal_basis)


def load(config: Config, now: datetime, default: bool) -> Registry:
    """The registry in force. default: from `default_of`.

    Raises: Refused OPT_OUT_* (opt_out_registry.py); CONSENT_* where the consents can't be read and the last good reading is
    older than the limit (CONSENT_STALE) or there is none.
    """
    opt_out = opt_out_registry.load(config, now)
    held = _load(config, now)
    known = read_json(config.consent_known) or {}
    digests = [opt_out.digest] if opt_out is not None else []
    consents, unassigned = None, 0
    if held is not None:
        consents, unassigned = assign(held.found, patients_of(config, held.found))
        digests.append(digest(held.packed))
    loaded_at = now if held is None else held.read_at
    if len(digests) == 2:
        digests = [digest("\n".join(digests).encode())]
    return Registry(
        opt_out, consents, unassigned, digests[0] if digests else None, loaded_at, query_of(config), now, default, known
    )


def usable(registry: Registry) -> None:
    """Raises: Refused where this registry can permit nobody, or may have missed a "no"."""
    if registry.consents is None and not registry.default:
        raise Refused(
            "CONSENT_NO_SOURCE",
            "This hospital's policy asks for each patient's consent, and its silo knows none: set [consent] in silo.toml or "
            "use `silo consent import`; or sign a policy with opt-out that names its legal basis.",
        )
    if registry.default and registry.unassigned:
        raise unassigned_consents()


def unassigned_consents() -> Refused:
    """Where a patient without a record takes part."""
    return Refused(
        "CONSENT_UNASSIGNED",
        "Some consents can't be assigned to a patient of the images, and with opt-out each may be an objection: correct "
        "identifier_system or map in [consent] (`silo consent status`).",
    )


def no_source_any_more() -> SiloError:
    """A source that was there is not named any more."""
    return SiloError(
        "CONSENT_MISSING",
        "Consents were read before, and silo.toml names no source of them any more: set [consent] again, or remove "
        "consent/fhir.json from the silo's folder.",
    )


def assign(found: Found, patients: Patients) -> tuple[dict[str, tuple[ConsentRecord, ...]], int]:
    """(PatientID -> records, how many records could not be assigned); drafts and errors do not count as such."""
    by_patient: defaultdict[str, list[ConsentRecord]] = defaultdict(list)
    unassigned = 0
    for body in found.distinct():
        record = fhir.parse(body)
        patient = patients.of(record)
        if patient is not None:
            by_patient[patient].append(record)
        elif record.status not in rules.IGNORED:
            unassigned += 1
    return {patient: tuple(records) for patient, records in by_patient.items()}, unassigned


def patients_of(config: Config, found: Found) -> Patients:
    """How references become PatientIDs here. Raises: Refused CONSENT_MAP_*."""
    settings = config.settings.consent
    try:
        table = load_map(config.consent_map) if config.consent_map is not None else None
    except DataError as error:
        raise Refused(error.code, error.sentence) from None
    return Patients(found.patients, system=settings.identifier_system, table=table)


def query_of(config: Config) -> Query:
    """What is asked of each consent."""
    settings = config.settings.consent

    def pairs(tokens: tuple[str, ...]) -> frozenset[fhir.Coding]:
        return frozenset((system, code) for system, _, code in (token.rpartition("|") for token in tokens))

    return Query(pairs(settings.codes), pairs(settings.purposes))


def fetch(config: Config) -> Found | None:
    """What the source says now; None where there is none. Raises: ConsentError, UsageError."""
    settings = config.settings.consent
    if settings.source == "server":
        from silo_node.consent import asked, server

        try:
            found = sources.whole(server.search(settings.url, token=token(config), ca_bundle=config.ca_bundle))
        except SiloError as error:
            asked.note(config, error)
            raise
        asked.note(config, None)
        return found
    path = config.consent_path
    return None if path is None else sources.read(path, ours=path == config.consent_imported)


def renew(config: Config) -> None:
    """Read the source now, and keep what it says. Raises: SiloError where it can't be read, or there is no room."""
    _read(config)


@dataclass(frozen=True)
class _Held:
    """One reading: its content, the bytes that it is kept as, and its time."""

    found: Found = field(repr=False)
    packed: bytes = field(repr=False)
    read_at: datetime


def _load(config: Config, now: datetime) -> _Held | None:
    try:
        read = _read(config)
    except (ConsentError, UsageError) as error:
        return _kept(config, error)
    if read is not None:
        return _Held(*read, now)
    return _kept(config, no_source_any_more()) if config.consent_kept.exists() else None


def _read(config: Config) -> tuple[Found, bytes] | None:
    began = time.time()
    found = fetch(config)
    if found is None:
        return None
    packed = sources.whole(found).packed()
    keep(config.consent_kept, packed, began)
    return found, packed


def _kept(config: Config, reason: SiloError) -> _Held:
    hours = config.settings.consent.max_age_hours
    try:
        # Opened once: another reading may take its place at any time.
        with config.consent_kept.open("rb") as file:
            read_at, packed = os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        raise Refused(reason.code, reason.sentence) from None
    age = time.time() - read_at
    if age > hours * 3600:
        raise Refused(
            "CONSENT_STALE",
            f"The consents were last read {age / 3600:.0f} hours ago, at most {hours} are allowed: hospital IT has to bring "
            f"their source back. {reason.sentence}",
        )
    return _Held(sources.whole(sources.kept(packed)), packed, datetime.fromtimestamp(read_at, UTC))


def token(config: Config) -> str | None:
    """What the server is sent as Bearer token. Raises: UsageError CONSENT_TOKEN."""
    path = config.consent_token
    if path is None:
        return None
    try:
        text: Any = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UsageError("[consent] token_file cannot be read: check the path and its owner", "CONSENT_TOKEN") from None
    if not text or not text.isprintable() or " " in text:
        raise UsageError("[consent] token_file must hold the token and nothing else", "CONSENT_TOKEN")
    return str(text)
