"""Enough trained? The largest number of rounds, or no gain any more in the securely summed mean AUC over hospitals."""

from __future__ import annotations

from collections.abc import Sequence

from federation.models import Purpose, RoundResult, Stage
from federation.selectors.branches import left_behind
from federation.services.facts import Facts
from governance.models import Study


def stop_cause(*, study: Study, trained: int, facts: Facts) -> str:
    """ "max_rounds", "plateau", or "" where training goes on. `trained`: finished training rounds."""
    if trained >= facts.max_rounds:
        return "max_rounds"
    if facts.patience is None:
        return ""
    rows = RoundResult.objects.filter(
        round__study=study, round__purpose=Purpose.TRAIN, round__stage=Stage.FINISHED
    ).order_by("round__number")
    gone = left_behind(study)
    # One score a model: one to which the study went back is scored again, and what was left behind says nothing any more.
    scores = {number: score for number, score in rows.values_list("model_number", "auc_mean") if number not in gone}
    return "plateau" if plateau(list(scores.values()), facts.patience, facts.min_delta) else ""


def plateau(scores: Sequence[float | None], patience: int, min_delta: float) -> bool:
    """Whether the last `patience` scores brought no gain of `min_delta` over the best before them.

    A round without a score (fewer than two hospitals with both classes) says nothing and does not count.
    """
    known = [score for score in scores if score is not None]
    if len(known) <= patience:
        return False
    best = max(known[:-patience])
    return max(known[-patience:]) < best + min_delta
