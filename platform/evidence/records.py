"""The shape of a record: its types, and the rules that keep names, free text and floats out of the leaf."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from portal.actors import Actor, Subject
from protocol import canonical
from protocol.transparency.record import OUTCOMES, check_record
from protocol.transparency.record import RecordError as RecordFormError

TYPES = frozenset(
    {
        "log.genesis",
        "auth.login",
        "auth.failed",
        "audit.viewed",
        "audit.exported",
        "audit.erased",
        "organisation.registered",
        "role.changed",
        "key.enrolled",
        "key.rotated",
        "key.revoked",
        "policy.changed",
        "policy.proposed",
        "study.drafted",
        "study.submitted",
        "study.approved",
        "study.rejected",
        "study.withdrawn",
        "study.activated",
        "study.paused",
        "study.resumed",
        "study.completed",
        "study.stopped",
        "study.expired",
        "match.decided",
        "round.started",
        "round.cohort",
        "round.finished",
        "round.failed",
        "round.refused",
        "update.exported",
        "model.released",
        "rollback.proposed",
        "rollback.withdrawn",
        "rollback.decided",
        "dp.spent",
        "dataset.registered",
        "data.accessed",
        "consent.recorded",
        "consent.withdrawn",
        "silo.checkpoint",
        "witness.cosigned",
        "witness.refused",
        "software.updated",
    }
)
# Identifiers, digests, codes, keys, dates. No space: what has no space is no sentence and no name of a person.
_TOKEN = re.compile(r"[A-Za-z0-9_.:+/=\-]{0,300}")


class RecordError(ValueError):
    """A record that may not be written; the message names the member."""


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: 2026-11-23T10:00:00.000Z."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


def leaf_data(
    *,
    id: UUID,
    time: datetime,
    type: str,
    actor: Actor,
    subject: Subject,
    outcome: str,
    reasons: Sequence[str],
    refs: Mapping[str, str],
    data: Mapping[str, Any],
    private: str | None,
) -> bytes:
    """The canonical bytes of one record. Raises RecordError naming the member that breaks a rule."""
    if type not in TYPES:
        raise RecordError(f"type: {type!r} is no type of the log")
    if outcome not in OUTCOMES:
        raise RecordError(f"outcome: must be one of {', '.join(OUTCOMES)}")
    record = {
        "v": 1,
        "id": str(id),
        "time": format_time(time),
        "type": type,
        "actor": {"id": actor.id, "role": actor.role, "org": actor.org, "auth": actor.auth},
        "subject": {"kind": subject.kind, "id": subject.id, "version": subject.version},
        "outcome": outcome,
        "reasons": list(reasons),
        "refs": dict(refs),
        "data": dict(data),
        "private": private,
    }
    _check(record, "record")
    leaf = canonical.encode(record)
    try:
        check_record(leaf)
    except RecordFormError as error:
        raise RecordError(str(error)) from error
    return leaf


def _check(value: Any, where: str) -> None:
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        if not _TOKEN.fullmatch(value):
            raise RecordError(f"{where}: free text has no place in a record; put it into `private`")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check(item, f"{where}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, f"{where} key")
            _check(item, f"{where}.{key}")
    else:
        raise RecordError(f"{where}: a {type(value).__name__} can't stand in a record (no floats, no bytes)")
