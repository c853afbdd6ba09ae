"""The first record of the log: which log this is, and the pinned terms that policies are matched with."""

from __future__ import annotations

from django.conf import settings
from django.db import transaction

from evidence.models import Entry
from portal.actors import SYSTEM, Subject
from portal.keys import log_vkey
from protocol.duo import load_closure


def write_genesis() -> Entry | None:
    """Write the genesis record where there is none; the sequencer puts it first. None where it was there."""
    from evidence.services import record

    with transaction.atomic():
        if Entry.objects.filter(type="log.genesis").exists():
            return None
        return record(
            type="log.genesis",
            actor=SYSTEM,
            subject=Subject("log", settings.CONSILIUM_NAME),
            refs={"closure": load_closure().digest},
            data={"format": "consilium/audit/1", "vkey": log_vkey()},
        )
