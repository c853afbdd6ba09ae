"""Once a second: rounds whose deadline has passed, whose missing silos are lost, or whose sum was never made or checked; and
studies that run without a round.

Everything else happens in the transaction that stores a message; the sweep is for what no message tells.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef

from federation import conf
from federation.models import CLOSED, Round, Stage
from federation.services import advance, stages, work
from federation.services.activation import study_go_on
from federation.services.facts import facts_of
from federation.services.liveness import lost_silos
from federation.services.messages import mail_for
from governance.models import Study, StudyState

RUNS = (StudyState.ACTIVE, StudyState.RUNNING)
log = structlog.get_logger(__name__)


def sweep(now: datetime | None = None) -> list[str]:
    """Look at every open round; returns the keys of those that moved. One round's fault does not stop the others."""
    moved = []
    now = now or stages.now()
    for key in list(Round.objects.exclude(stage__in=CLOSED).values_list("key", flat=True)):
        try:
            if sweep_round(key, now):
                moved.append(key)
        except Exception:
            log.exception("federation.sweep_failed", round=key)
    # A study that runs has an open round; one without is taken up where it stands.
    open_rounds = Round.objects.filter(study=OuterRef("pk")).exclude(stage__in=CLOSED)
    for study in Study.objects.filter(~Exists(open_rounds), state__in=RUNS).defer("draft"):
        try:
            item = study_go_on(study=study, now=now)
        except Exception:
            log.exception("federation.sweep_failed", study=study.pk)
        else:
            moved.extend([item.key] if item else [])
    return moved


@transaction.atomic
def sweep_round(key: str, now: datetime) -> bool:
    """Move one round on, if what it waits for can't come any more."""
    item = Round.objects.select_for_update().get(key=key)
    if item.stage in CLOSED:
        return False
    if item.stage == Stage.SUM:
        again = timedelta(seconds=conf.sum_again_after())
        if item.worked_at is None or item.worked_at < now - again:
            work.work_send(item)
        return False
    over = item.deadline_at <= now
    facts = facts_of(item.manifest_digest)
    if not over and item.stage_at > now - timedelta(seconds=conf.lost_after()):
        return False
    mail = mail_for(item, None, facts)
    missing = set(item.announced) - mail.silos(item.stage)
    lost = lost_silos(item, missing, now)
    return advance.round_advance(item, mail=mail, facts=facts, now=now, lost=lost, over=over)
