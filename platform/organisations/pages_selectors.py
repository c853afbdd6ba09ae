"""Hospitals and silos as their pages list them."""

import json
from dataclasses import dataclass, replace
from datetime import datetime

from django.db.models import QuerySet
from django.utils import timezone

from evidence.models import Entry
from organisations.models import Organisation, Silo, SiloState
from organisations.selectors import silo_is_silent


@dataclass(frozen=True)
class SiloRow:
    """One line of the list: a hospital with one of its silos, or without any. `contact`: a state of words.py."""

    organisation: Organisation
    silo: Silo | None
    contact: str


def contact_of(silo: Silo, *, now: datetime | None = None) -> str:
    """One of: in touch, silent, never, closed."""
    if silo.state == SiloState.REVOKED:
        return "closed"
    if silo.last_seen_at is None:
        return "never"
    return "silent" if silo_is_silent(silo, now=now) else "in touch"


def silo_rows(organisations: QuerySet[Organisation] | None = None) -> list[SiloRow]:
    """Every hospital with every silo; a hospital without one has a line too."""
    chosen = Organisation.objects.all() if organisations is None else organisations
    now = timezone.now()
    rows = []
    for organisation in chosen.prefetch_related("silos"):
        silos = list(organisation.silos.all())
        rows += [SiloRow(organisation, silo, contact_of(silo, now=now)) for silo in silos]
        if not silos:
            rows.append(SiloRow(organisation, None, "never"))
    return rows


def silos_silent() -> list[Silo]:
    """Active silos that were not heard for long."""
    active = Silo.objects.filter(state=SiloState.ACTIVE).select_related("organisation")
    return [silo for silo in active if silo_is_silent(silo)]


@dataclass(frozen=True)
class KeyRow:
    """One key that a silo had, as the log tells it.

    keyid: SHA-256 of the public key, hex. since: when it was received, or followed another. until: when it ended; None for
    the present one. ended: a state of words.py, `key`: "in force", "to confirm", "rotated", "revoked", "replaced".
    entry: of the log, about its beginning.
    """

    keyid: str
    since: datetime
    until: datetime | None
    ended: str
    entry: Entry


_KEY_TYPES = ("key.enrolled", "key.rotated", "key.revoked", "organisation.registered")


def keys_of(silo: Silo) -> list[KeyRow]:
    """Every key of a silo, the newest first. From the log's entries, because an invitation forgets the key before it."""
    rows: list[KeyRow] = []
    entries = Entry.objects.filter(
        subject_kind="silo", subject_id=silo.name, outcome="success", type__in=_KEY_TYPES
    ).order_by("time", "id")
    for entry in entries:
        record = json.loads(bytes(entry.record))
        refs, change = record["refs"], record["data"].get("change")
        if entry.type == "key.rotated":
            _end(rows, entry.time, "rotated")
            rows.append(KeyRow(refs["after"], entry.time, None, "in force", entry))
        elif entry.type == "key.revoked":
            _end(rows, entry.time, "revoked")
        elif change == "silo-invited":
            _end(rows, entry.time, "replaced")
        elif change == "received":
            _end(rows, entry.time, "replaced")
            rows.append(KeyRow(refs["key"], entry.time, None, "to confirm", entry))
        elif change == "confirmed" and rows:
            rows[-1] = replace(rows[-1], ended="in force")
    return rows[::-1]


def _end(rows: list[KeyRow], at: datetime, why: str) -> None:
    """The last key, where it was not over already."""
    if rows and rows[-1].until is None:
        rows[-1] = replace(rows[-1], until=at, ended=why)
