"""A study begins, goes on, or ends: what governance tells this app through its signals. Each runs in its transaction.

Pausing, resuming, stopping and completing are governance's services; here stands what they mean for rounds. A paused
study finishes the round that is open and announces no other; one that was withdrawn, stopped or has expired ends it.
"""

from __future__ import annotations

from datetime import datetime

from django.db import transaction

from federation.models import Round, StudyRun
from federation.services import rounds, stages
from federation.services.facts import facts_of
from governance.models import Study, StudyState

ENDED = (StudyState.WITHDRAWN, StudyState.STOPPED, StudyState.EXPIRED)


def newest_round(study: Study) -> Round | None:
    """The last round that was announced."""
    return Round.objects.filter(study=study, newest=True).first()


@transaction.atomic
def study_activate(*, study: Study, now: datetime | None = None) -> Round | None:
    """Announce the first round of a study that became active; None where one is open or none can begin.

    Calling it twice changes nothing.
    """
    StudyRun.objects.get_or_create(study=study)
    return study_go_on(study=study, now=now)


@transaction.atomic
def study_resumed(*, study: Study, now: datetime | None = None) -> Round | None:
    """A person let a paused study go on: failures are counted anew, and the next round is announced."""
    now = now or stages.now()
    StudyRun.objects.update_or_create(study=study, defaults={"failures_in_row": 0, "resumed_at": now})
    return study_go_on(study=study, now=now)


@transaction.atomic
def study_go_on(*, study: Study, now: datetime | None = None) -> Round | None:
    """Announce the next round of a study where none is open; None where there is nothing to announce."""
    last = newest_round(study)
    if last is not None and last.is_open:
        return None
    return rounds.study_continue(study.pk, last=last, now=now or stages.now())


@transaction.atomic
def study_halted(*, study: Study, now: datetime | None = None) -> bool:
    """A study was paused, withdrawn, stopped or has expired; True where an open round was ended for that."""
    last = newest_round(study)
    if last is None or not last.is_open or study.state not in ENDED:
        return False
    label = StudyState(study.state).label
    return rounds.round_fail(
        last,
        code="STUDY_ENDED",
        sentence=f"The study was {label}, and its open round with it.",
        facts=facts_of(last.manifest_digest),
        now=now or stages.now(),
    )
