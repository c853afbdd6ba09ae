"""Where a study went back: from which model the next round starts, and which models were left behind.

0 - 1 - 2 - 3 - 4 - 5 - 6        the study went back from 6 to 4: 5 and 6 are left behind
                 \\- 7 - 8        models made later have new numbers; a finished training round makes one, on any branch
"""

from __future__ import annotations

from collections.abc import Iterable

from federation.models import GlobalModel, Rollback
from governance.models import Study


def gone_back(study: Study | str) -> list[Rollback]:
    """The roll-backs that were decided, oldest first."""
    rows = Rollback.objects.filter(study=study, state=Rollback.State.ROLLED_BACK).select_related(
        "back_to", "first_round"
    )
    return list(rows.order_by("pk"))


def model_newest(study: Study | str) -> GlobalModel | None:
    """The model with the highest number: as many rounds of training have finished."""
    return GlobalModel.objects.filter(study=study).order_by("-number").first()


def model_next(study: Study | str) -> GlobalModel | None:
    """The model from which the next round starts: the newest, or the one to which the study went back since."""
    newest, back = model_newest(study), gone_back(study)
    if newest is None or not back or (back[-1].newest is not None and newest.number > back[-1].newest):
        return newest
    return back[-1].back_to


def left_behind(study: Study | str) -> frozenset[int]:
    """Numbers of the models that roll-backs left behind; those of a round that is still open join when they are made."""
    newest, back = model_newest(study), gone_back(study)
    if newest is None:
        return frozenset()
    return frozenset(_left(back, newest.number))


def _left(back: Iterable[Rollback], newest: int) -> Iterable[int]:
    for each in back:
        yield from range(each.back_to.number + 1, (newest if each.newest is None else each.newest) + 1)
