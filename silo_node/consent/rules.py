"""May this patient's images be used? A pure function of what is on record; every doubt is a DENY.

1. The opt-out list beats all.
2. Records that are drafts, or entered in error, do not count. Of the others those count that are about what is asked:
   they name one of its codes or purposes, or they name none (at the root), or we can't tell.
3. Without a record the hospital's default decides.
4. The newest record decides alone. Where two may be the newest, or one has no date, the answer is DENY.
5. It is DENY unless it is readable, without an unknown modifier, active, and not dated in the future.
6. `type` is read literally at each level. Exceptions beat their level, and among them deny beats permit. A permit
   counts only where it names what is asked and nothing from the root down to it is out of its period, about something
   else, or narrowed by an element that we can't evaluate. A deny counts in all these cases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from silo_node.consent.fhir import Coding, ConsentRecord, Provision
from silo_node.consent.fhir_time import EVER

IGNORED: Final = ("draft", "entered-in-error")
PERMITS: Final = ("PERMITTED", "DEFAULT_PERMIT")
"""The codes of a PERMIT; every other is a DENY."""

SENTENCES: Final = {
    "PERMITTED": "The newest consent permits the use for research.",
    "DEFAULT_PERMIT": "No consent is on record, and the hospital's policy names a legal basis for use without one.",
    "OPTED_OUT": "The patient stands on the opt-out list, which beats every consent.",
    "DEFAULT_DENY": "No consent about this use is on record, and without one nothing is used here.",
    "UNREADABLE": "The newest consent does not have the form of FHIR R4, so nobody can tell what it says.",
    "MODIFIER": "The newest consent holds a modifier that may change its meaning and is not known here.",
    "UNDATED": "The consent has no date, so nobody can tell whether it is the newest.",
    "TIE": "Two or more consents may be the newest, so nobody can tell which one holds.",
    "REJECTED": "The newest consent is recorded as rejected.",
    "INACTIVE": "The newest consent is recorded as inactive.",
    "NOT_ACTIVE": "The newest consent is only proposed, not active.",
    "FUTURE": "The newest consent is dated in the future.",
    "DENIED": "The newest consent denies this use.",
    "PERIOD": "The newest consent permits this use, but not at this time.",
    "NARROWED": "The newest consent permits this use only under limits that can't be evaluated here.",
    "NOT_NAMED": "The newest consent does not permit this use by any of the codes or purposes that are asked for.",
}
"""Reason code -> what a person is told. No sentence names anybody."""


@dataclass(frozen=True)
class Query:
    """What is asked: any of these codes, or any of these purposes; at least one. Raises: ValueError for none, because then
    no objection would be about it."""

    codes: frozenset[Coding]
    purposes: frozenset[Coding]

    def __post_init__(self) -> None:
        if not self.codes and not self.purposes:
            raise ValueError("a query needs a code or a purpose")


@dataclass(frozen=True)
class Decision:
    """code: a key of SENTENCES. record: the one that decided, None where none did."""

    permit: bool
    code: str
    record: ConsentRecord | None = field(default=None, repr=False)

    @property
    def word(self) -> str:
        """PERMIT or DENY."""
        return "PERMIT" if self.permit else "DENY"

    @property
    def sentence(self) -> str:
        """Why, in words."""
        return SENTENCES[self.code]


def decide(records: Iterable[ConsentRecord], opt_out: bool, query: Query, now: datetime, default: bool) -> Decision:
    """The decision for one patient.

    Parameters: records: all of this patient's, in any order. opt_out: whether the patient stands on the list.
    now: with its zone. default: what holds without a record, True for PERMIT.
    """
    # 1
    if opt_out:
        return Decision(False, "OPTED_OUT")
    # 2
    relevant = [record for record in records if record.status not in IGNORED and _about(record, query)]
    # 3
    if not relevant:
        return Decision(True, "DEFAULT_PERMIT") if default else Decision(False, "DEFAULT_DENY")
    # 4
    latest = max((record.when or EVER).first for record in relevant)
    newest = [record for record in relevant if (record.when or EVER).last >= latest]
    if len(newest) > 1:
        return Decision(False, "TIE")
    (record,) = newest
    # 5 and 6
    code = _standing(record, now) or _said(record, query, now)
    return Decision(code == "PERMITTED", code, record)


def _about(record: ConsentRecord, query: Query) -> bool:
    if record.fault is not None or record.modifier or record.provision is None:
        return True
    root = record.provision
    return not (root.codes or root.purposes) or _any_names(root, query)


def _any_names(level: Provision, query: Query) -> bool:
    return _names(level, query) or any(_any_names(each, query) for each in level.nested)


def _names(level: Provision, query: Query) -> bool:
    return bool(level.codes & query.codes or level.purposes & query.purposes)


def _standing(record: ConsentRecord, now: datetime) -> str | None:
    if record.fault is not None:
        return "UNREADABLE"
    if record.modifier:
        return "MODIFIER"
    if record.status != "active":
        return {"rejected": "REJECTED", "inactive": "INACTIVE"}.get(record.status or "", "NOT_ACTIVE")
    if record.when is None:
        return "UNDATED"
    return "FUTURE" if record.when.first > now else None


def _said(record: ConsentRecord, query: Query, now: datetime) -> str:
    found = [] if record.provision is None else _level(record.provision, query, now, None)
    for code in ("DENIED", "PERMITTED"):
        if code in found:
            return code
    return found[0] if found else "NOT_NAMED"


def _level(level: Provision, query: Query, now: datetime, above: str | None) -> list[str]:
    """What a level and its exceptions say. above: why no permit counts from here down, None where it may."""
    against = above or _against(level, query, now)
    below = [code for each in level.nested for code in _level(each, query, now, against)]
    if below:
        return below
    named = _names(level, query)
    if level.type == "deny" and (named or not (level.codes or level.purposes)):
        return ["DENIED"]
    if level.type == "permit" and named:
        return [against or "PERMITTED"]
    return []


def _against(level: Provision, query: Query, now: datetime) -> str | None:
    if (level.codes and not level.codes & query.codes) or (level.purposes and not level.purposes & query.purposes):
        return "NOT_NAMED"
    if level.narrowed:
        return "NARROWED"
    if (level.start is not None and now < level.start.first) or (level.end is not None and now > level.end.last):
        return "PERIOD"
    return None
