"""Reading organisations and silos."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from organisations.models import Silo, SiloState
from protocol.signing import fingerprint


def silos_waiting() -> QuerySet[Silo]:
    """Silos whose fingerprint an admin has to compare and confirm."""
    return Silo.objects.filter(state=SiloState.PENDING).select_related("organisation")


def silos_active() -> QuerySet[Silo]:
    """Silos that may take part."""
    return Silo.objects.filter(state=SiloState.ACTIVE).select_related("organisation")


def silo_fingerprint(silo: Silo) -> str:
    """The key's fingerprint in groups of four, or an empty text before enrolment."""
    return fingerprint(silo.public) if silo.public is not None else ""


def silo_is_silent(silo: Silo, *, now: datetime | None = None) -> bool:
    """Whether an active silo was not heard for long (ten long polls)."""
    limit = timedelta(seconds=max(250, settings.SILO_LOST_SECONDS))
    return silo.state == SiloState.ACTIVE and (
        silo.last_seen_at is None or (now or timezone.now()) - silo.last_seen_at > limit
    )
