"""The arrows of a study's life, and the one function that follows them."""

from __future__ import annotations

from django.utils import timezone

from governance.models import Study, StudyState
from portal.problems import Refused

S = StudyState
ARROWS: dict[str, frozenset[str]] = {
    S.DRAFT: frozenset({S.SUBMITTED, S.WITHDRAWN}),
    S.SUBMITTED: frozenset({S.SUBMITTED, S.APPROVED, S.REJECTED, S.WITHDRAWN, S.EXPIRED}),
    S.REJECTED: frozenset({S.SUBMITTED, S.WITHDRAWN}),
    S.APPROVED: frozenset({S.SUBMITTED, S.ACTIVE, S.WITHDRAWN, S.EXPIRED}),
    S.ACTIVE: frozenset({S.RUNNING, S.PAUSED, S.WITHDRAWN, S.STOPPED, S.EXPIRED}),
    S.RUNNING: frozenset({S.PAUSED, S.COMPLETED, S.WITHDRAWN, S.STOPPED, S.EXPIRED}),
    S.PAUSED: frozenset({S.ACTIVE, S.RUNNING, S.COMPLETED, S.WITHDRAWN, S.STOPPED, S.EXPIRED}),
    S.COMPLETED: frozenset({S.RELEASED}),
    S.RELEASED: frozenset(),
    S.WITHDRAWN: frozenset(),
    S.EXPIRED: frozenset(),
    S.STOPPED: frozenset(),
}
OPEN = frozenset({S.APPROVED, S.ACTIVE, S.RUNNING, S.PAUSED})  # hospitals may decide
EDITABLE = frozenset({S.DRAFT, S.SUBMITTED, S.REJECTED, S.APPROVED})  # before anything ran


def locked(study: Study) -> Study:
    """The study as it is in the database now, locked until the transaction ends."""
    return Study.objects.select_for_update().get(pk=study.pk)


def move(study: Study, to: str) -> None:
    """Change the state by a conditional update, so that of two that try at once one wins.

    Raises Refused(OUT_OF_STAGE) where no arrow leads there, or where someone else was first.
    """
    before = study.state
    if to not in ARROWS[before]:
        raise Refused(
            "OUT_OF_STAGE", f"The study is {StudyState(before).label}; it can't become {StudyState(to).label} now."
        )
    changes: dict[str, object] = {"state": to}
    if to == S.SUBMITTED:
        changes["submitted_at"] = timezone.now()
    if to == S.ACTIVE and study.activated_at is None:
        changes["activated_at"] = timezone.now()
    if before == S.PAUSED:
        changes["paused_reason"] = None
    if not Study.objects.filter(pk=study.pk, state=before).update(**changes):
        raise Refused("OUT_OF_STAGE", "Somebody else changed the study a moment ago; look at it again.")
    for name, value in changes.items():
        setattr(study, name, value)
