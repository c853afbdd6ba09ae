"""Looking at the log is itself an entry of the log."""

from __future__ import annotations

from django.core.cache import cache
from django.db import transaction

from evidence.services import Actor, Subject, record

_NOTED_SECONDS = 600


def note_view(actor: Actor) -> None:
    """Write audit.viewed: once in ten minutes a person, so that reading does not flood what is read."""
    if not cache.add(f"audit-viewed:{actor.id}", 1, timeout=_NOTED_SECONDS):
        return
    with transaction.atomic():
        record(type="audit.viewed", actor=actor, subject=Subject("log", "entries"))
