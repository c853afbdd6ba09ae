"""The one place where a round's stage changes, and who is told.

A stage changes by `UPDATE ... WHERE stage = <expected>`: of two processes that both think that it is time, one wins and
the other does nothing. Who has something new to do is woken when the transaction has committed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from federation import conf
from federation.models import CLOSED, Purpose, Round, Stage
from federation.services.facts import Facts
from portal import events


def round_move(item: Round, *, to: Stage, facts: Facts, wake: Iterable[str], now: datetime, **fields: Any) -> bool:
    """Move a round from the stage that `item` shows to `to`; False where another process moved it first.

    `wake`: silos that have something new to do. `fields`: further columns, set by the same statement. Must run inside
    a transaction. `item` shows the new values afterwards.
    """
    changes: dict[str, Any] = {"stage": to, "stage_at": now, "deadline_at": deadline(item, to, facts, now), **fields}
    if to in CLOSED:
        changes["finished_at"] = now
    if not Round.objects.filter(pk=item.pk, stage=item.stage).update(**changes):
        return False
    for name, value in changes.items():
        setattr(item, name, value)
    tell(item, wake)
    return True


def tell(item: Round, silos: Iterable[str]) -> None:
    """On commit: wake these silos' long polls and everybody who watches the study."""
    events.publish(*silos, study=item.study_id)


def deadline(item: Round, stage: Stage, facts: Facts, now: datetime) -> datetime:
    """When the stage ends at the latest. Uploads end with the announced deadline; what only the members can give, long
    after: shares, nonces and check words."""
    if stage in (Stage.KEYS, Stage.ROW, Stage.BUNDLES, Stage.READY):
        seconds = min(facts.round_seconds, conf.setup_seconds())
    elif stage == Stage.UPDATE:
        return announced_deadline(item, facts)
    elif stage in (Stage.UNMASK, Stage.NONCE, Stage.CHECK):
        seconds = facts.unmask_seconds
    else:
        seconds = facts.round_seconds
    return now + timedelta(seconds=seconds)


def announced_deadline(item: Round, facts: Facts) -> datetime:
    """The deadline in the announcement: until then an update is waited for."""
    return item.started_at + timedelta(seconds=facts.round_seconds)


def first_stage(purpose: Purpose) -> Stage:
    """Where a round begins: the first model is only signed, everything else is summed."""
    return Stage.STATE if purpose == Purpose.INITIAL else Stage.KEYS


def now() -> datetime:
    """The portal's clock."""
    return timezone.now()
