"""Reading the log for pages and for other apps."""

from __future__ import annotations

import json
from typing import Any

from django.db.models import Q, QuerySet

from evidence.models import Entry, LogCheckpoint


def entries_of(*, kind: str, id: str) -> QuerySet[Entry]:
    """Entries about one subject, oldest first."""
    return Entry.objects.filter(subject_kind=kind, subject_id=id).order_by("time", "id")


def entries_search(*, type: str = "", subject: str = "", outcome: str = "") -> QuerySet[Entry]:
    """Entries, newest first; each argument narrows: exact or leading type, part of the subject's id, outcome."""
    entries = Entry.objects.order_by("-time", "-id")
    if type:
        entries = entries.filter(Q(type=type) | Q(type__startswith=f"{type}."))
    if subject:
        entries = entries.filter(subject_id__icontains=subject)
    if outcome:
        entries = entries.filter(outcome=outcome)
    return entries


def newest_checkpoint() -> LogCheckpoint | None:
    """The newest checkpoint, or None for an empty log."""
    return LogCheckpoint.objects.order_by("-size").first()


def waiting_count() -> int:
    """Entries that are written and not yet in a checkpoint."""
    newest = newest_checkpoint()
    size = newest.size if newest else 0
    return Entry.objects.filter(Q(index__isnull=True) | Q(index__gte=size)).count()


def content(entry: Entry) -> dict[str, Any]:
    """The record as a dict, for display; proofs always use the bytes."""
    return json.loads(bytes(entry.record))
