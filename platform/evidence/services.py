"""Writing to the audit log. `record` and `acting` write; the sequencer, proofs and exports have their own modules.

with acting(type="study.withdrawn", actor=actor, subject=subject) as act:   # one transaction
    ...check the rules, raise Refused...                                    # -> rolled back, recorded as denied
    ...change the state...
    act.record(refs=.., data=..)                                            # -> committed together
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from evidence.exports import export_log
from evidence.models import Entry
from evidence.proofs import NotPublished, proof_for
from evidence.records import leaf_data
from evidence.sequencer import LogForked, sequence, sequence_on_commit
from portal.actors import ANONYMOUS, SYSTEM, Actor, Subject, silo_actor
from portal.ids import uuid7
from portal.problems import Refused
from protocol.transparency.record import private_digest
from protocol.transparency.tree import leaf_hash

__all__ = [
    "ANONYMOUS",
    "SYSTEM",
    "Act",
    "Actor",
    "LogForked",
    "NotPublished",
    "Subject",
    "acting",
    "erase_private",
    "export_log",
    "proof_for",
    "record",
    "sequence",
    "sequence_on_commit",
    "silo_actor",
]


def record(
    *,
    type: str,
    actor: Actor,
    subject: Subject,
    outcome: str = "success",
    reasons: Sequence[str] = (),
    refs: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    private: Mapping[str, Any] | None = None,
) -> Entry:
    """Write one entry into the current transaction, still without a place in the log.

    Parameters: reasons: codes. refs: name -> digest or id. data: identifiers, numbers, codes; no floats, no free text, no
    names. private: free text and personal data, salted into the leaf as a digest and erasable.
    Raises: TransactionManagementError outside an atomic block (an act and its entry are one); RecordError.
    """
    if not transaction.get_connection().in_atomic_block:
        raise transaction.TransactionManagementError(
            "An evidence entry is written in the transaction of the act that it records: use transaction.atomic()."
        )
    now = timezone.now()
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    number = uuid7()
    salt = secrets.token_bytes(32) if private else None
    leaf = leaf_data(
        id=number,
        time=now,
        type=type,
        actor=actor,
        subject=subject,
        outcome=outcome,
        reasons=reasons,
        refs=refs or {},
        data=data or {},
        private=private_digest(salt, dict(private)) if private and salt else None,
    )
    entry = Entry.objects.create(
        id=number,
        time=now,
        type=type,
        outcome=outcome,
        subject_kind=subject.kind,
        subject_id=subject.id,
        actor_id=actor.id,
        record=leaf,
        private=dict(private) if private else None,
        salt=salt,
        leaf_hash=leaf_hash(leaf),
    )
    transaction.on_commit(_sequence_when_many, robust=True)
    return entry


@dataclass(frozen=True)
class Act:
    """An act under way: who does what to what. `record` writes its entry."""

    type: str
    actor: Actor
    subject: Subject

    def record(self, **content: Any) -> Entry:
        """`record` with this act's type, actor and subject, each of which `content` may replace."""
        return record(**{"type": self.type, "actor": self.actor, "subject": self.subject, **content})


@contextmanager
def acting(*, type: str, actor: Actor, subject: Subject) -> Iterator[Act]:
    """One transaction around an act. A `Refused` rolls it back, is recorded with outcome denied, and goes on."""
    try:
        with transaction.atomic():
            yield Act(type, actor, subject)
    except Refused as refused:
        with transaction.atomic():
            record(type=type, actor=actor, subject=subject, outcome="denied", reasons=(refused.code,))
        refused.recorded = True
        raise


def erase_private(*, entry: Entry, actor: Actor) -> None:
    """Erase an entry's private payload and salt (GDPR 17). The leaf and every proof stay valid; the erasure is recorded."""
    with acting(type="audit.erased", actor=actor, subject=Subject("entry", str(entry.pk))) as act:
        if entry.salt is None:
            raise Refused("NOTHING_PRIVATE", "This entry has no private payload, or it was erased before.")
        Entry.objects.filter(pk=entry.pk).update(private=None, salt=None)
        act.record()
    entry.private = entry.salt = None


def _sequence_when_many() -> None:
    if Entry.objects.filter(index__isnull=True).count() >= settings.EVIDENCE_EVERY_ENTRIES:
        from evidence.tasks import sequence_log

        sequence_log.delay()
