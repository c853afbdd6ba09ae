"""Hospitals and silos as their pages list them."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet
from django.utils import timezone

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
