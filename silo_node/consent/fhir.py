"""One FHIR R4 Consent, of which only the fields that decide are read: strict about types, nothing is repaired.

Three dialects have the same shape and differ in which levels they fill:

    MII       root deny, nested permits (or denies) each with one policy code
    gICS      root permit, all its codes beside it
    IHE PCF   root permit, a purpose such as HRESCH

A resource that does not fit becomes a record with a `fault`, not an error: the patient it names has said something that
we can't read, and the rules make that a DENY.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from silo_node.consent import fhir_time
from silo_node.consent.fhir_time import Moment

STATUSES: Final = ("draft", "proposed", "active", "rejected", "inactive", "entered-in-error")
MAX_LEVELS: Final = 8
"""Provisions inside provisions; practice has two."""
MAX_PROVISIONS: Final = 10_000

Coding = tuple[str, str]
"""(system, code), both as written."""

_READ = frozenset({"id", "extension", "type", "period", "code", "purpose", "provision"})
_KEPT = ("id", "implicitRules", "status", "dateTime", "provision")


@dataclass(frozen=True)
class Provision:
    """One level. type: "permit", "deny", or None (allowed at the root only). codes, purposes: empty where it names none.
    narrowed: names of elements that limit it further, of which we understand none."""

    type: str | None
    start: Moment | None
    end: Moment | None
    codes: frozenset[Coding]
    purposes: frozenset[Coding]
    narrowed: tuple[str, ...]
    nested: tuple[Provision, ...]


@dataclass(frozen=True)
class Subject:
    """Whose consent: a reference as written, and identifiers (system, value) that stand beside it."""

    reference: str | None = field(repr=False)
    identifiers: tuple[Coding, ...] = field(repr=False)


@dataclass(frozen=True)
class ConsentRecord:
    """What one resource says. status: None where unreadable. when: None where it has no date. modifier: whether it holds
    an element that may change its meaning. fault: why it can't be read, None where it can."""

    status: str | None
    when: Moment | None
    provision: Provision | None
    subject: Subject | None
    modifier: bool = False
    fault: str | None = None


class _Fault(ValueError):
    pass


def parse(body: Mapping[str, Any]) -> ConsentRecord:
    """The record in a Consent resource (from `fhir_json.decode`). Never raises for what a resource may hold."""
    faults: list[str] = []
    status = body.get("status")
    if status not in STATUSES:
        faults.append("status is missing or none of R4's")
        status = None
    when = subject = provision = None
    try:
        when = fhir_time.parse(body["dateTime"]) if "dateTime" in body else None
    except ValueError as error:
        faults.append(f"dateTime {error}")
    try:
        subject = _subject(body.get("patient"))
    except _Fault as error:
        faults.append(str(error))
    try:
        if "provision" in body:
            provision = _provision(body["provision"], 1, [0])
    except _Fault as error:
        faults.append(str(error))
    return ConsentRecord(status, when, provision, subject, modified(body), "; ".join(faults) or None)


def modified(body: Mapping[str, Any]) -> bool:
    """Whether an element that may change the meaning of the whole stands anywhere in it; `contained` resources have
    their own meaning."""
    if "implicitRules" in body:
        return True
    return any("modifierExtension" in part for part in _objects({k: v for k, v in body.items() if k != "contained"}))


def reduced(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same Consent with nothing but what `parse` reads: what a silo keeps of it."""
    kept: dict[str, Any] = {"resourceType": "Consent", **{key: body[key] for key in _KEPT if key in body}}
    patient = body.get("patient")
    if isinstance(patient, Mapping):
        kept["patient"] = {key: patient[key] for key in ("reference", "identifier") if key in patient}
    elif "patient" in body:
        kept["patient"] = patient
    if modified(body):
        kept["modifierExtension"] = [{}]
    return kept


def identifiers(items: object) -> tuple[Coding, ...]:
    """The (system, value) pairs of a list of FHIR identifiers; what has not both is left out."""
    found = []
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, Mapping) and isinstance(item.get("system"), str) and isinstance(item.get("value"), str):
            found.append((item["system"], item["value"]))
    return tuple(found)


def _objects(value: object) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _subject(value: object) -> Subject:
    if not isinstance(value, Mapping):
        raise _Fault("patient is missing")
    reference = value.get("reference")
    if reference is not None and not isinstance(reference, str):
        raise _Fault("patient.reference is not text")
    if isinstance(reference, str):
        reference = re.sub(r"/_history/[^/]*$", "", reference)
    found = identifiers(value.get("identifier"))
    if reference is None and not found:
        raise _Fault("patient has neither a reference nor an identifier")
    return Subject(reference, found)


def _provision(value: object, level: int, seen: list[int]) -> Provision:
    seen[0] += 1
    if not isinstance(value, Mapping):
        raise _Fault("a provision is not an object")
    if level > MAX_LEVELS or seen[0] > MAX_PROVISIONS:
        raise _Fault(f"more than {MAX_LEVELS} levels or {MAX_PROVISIONS} provisions")
    kind = value.get("type")
    # R4 forbids the root's type and requires the others'; two of the dialects write it at the root all the same.
    if kind not in ("permit", "deny") and (kind is not None or level > 1):
        raise _Fault("a provision's type is neither permit nor deny")
    period = value.get("period", {})
    if not isinstance(period, Mapping):
        raise _Fault("a period is not an object")
    return Provision(
        type=kind,
        start=_moment(period, "start"),
        end=_moment(period, "end"),
        codes=frozenset(coding for item in _list(value, "code") for coding in _concept(item)),
        purposes=frozenset(coding for item in _list(value, "purpose") for coding in _codings([item])),
        narrowed=tuple(sorted(key for key in value if key not in _READ and not key.startswith("_"))),
        nested=tuple(_provision(item, level + 1, seen) for item in _list(value, "provision")),
    )


def _moment(period: Mapping[str, Any], name: str) -> Moment | None:
    try:
        return fhir_time.parse(period[name]) if name in period else None
    except ValueError as error:
        raise _Fault(f"a period's {name} {error}") from None


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name, [])
    # FHIR has no empty arrays; one here would be read as "names none", which is wider than what was meant.
    if not isinstance(found, list) or (name in value and not found):
        raise _Fault(f"a provision's {name} is not a list, or an empty one")
    return found


def _concept(value: object) -> list[Coding]:
    if not isinstance(value, Mapping):
        raise _Fault("a code is not an object")
    coding = value.get("coding", [])
    if not isinstance(coding, list):
        raise _Fault("a code's coding is not a list")
    # A concept in words only is a code that is none of ours, not the absence of one.
    return _codings(coding) or [("", "")]


def _codings(items: list[Any]) -> list[Coding]:
    found = []
    for item in items:
        if not isinstance(item, Mapping):
            raise _Fault("a coding is not an object")
        system, code = item.get("system", ""), item.get("code", "")
        if not isinstance(system, str) or not isinstance(code, str):
            raise _Fault("a coding's system or code is not text")
        found.append((system, code))
    return found
