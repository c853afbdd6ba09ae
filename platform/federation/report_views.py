"""A study as JSON for those who follow it with a program: what its pages show, no more."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from federation.check_report import whole_report
from federation.models import Rollback, Round, utc
from federation.pages_selectors import results_of
from federation.rollback_report import rollbacks_of
from federation.selectors.branches import model_next
from governance.models import Study
from governance.views import study_for
from organisations.permissions import role_required


@require_GET
@role_required("admin", "steward", "researcher", "it", "auditor")
def study_report(request: HttpRequest, pk: str) -> HttpResponse:
    """State, rounds, quality and newest model of a study that this person may see."""
    return JsonResponse(report_of(study_for(request, pk)))


def report_of(study: Study) -> dict[str, Any]:
    """The report; times are RFC 3339 UTC, AUC between 0 and 1, null where it can't be computed or is not shared."""
    results = results_of(study)
    newest = model_next(study)
    rounds = Round.objects.filter(study=study).select_related("result").order_by("number", "attempt")
    return {
        "study": study.pk,
        "title": study.title,
        "state": study.state,
        "reason": study.paused_reason,
        "model": newest.digest if newest else None,
        "weights": newest.length if newest else None,
        "auc": {
            "mean": results.final.auc_mean if results.final else None,
            "per_silo": results.shared,
            "by_model": [{"model": point.number, "mean": point.mean} for point in results.points],
        },
        "rollbacks": [_rollback(each) for each in rollbacks_of(study)],
        "rounds": [_round(item) for item in rounds],
    }


def _rollback(each: Rollback) -> dict[str, Any]:
    """A proposal to go back; AUCs and their error in millionths, as in the log."""
    return {
        "state": each.state,
        "model": each.model.number,
        "back_to": each.back_to.number,
        "round": each.round.key,
        "auc_micro": each.auc_micro,
        "best_micro": each.best_micro,
        "error_micro": each.error_micro,
        "first_round": each.first_round.key if each.first_round else None,
    }


def _round(item: Round) -> dict[str, Any]:
    result = getattr(item, "result", None)
    return {
        "round": item.key,
        "number": item.number,
        "attempt": item.attempt,
        "purpose": item.purpose,
        "stage": item.stage,
        "started_at": utc(item.started_at),
        "finished_at": utc(item.finished_at) if item.finished_at else None,
        "announced": item.announced,
        "members": item.members,
        **whole_report(item),
        "failure": item.failure,
        "faults": item.faults,
        "bytes_up": item.bytes_up,
        "auc_mean": result.auc_mean if result else None,
        "loss": result.loss if result else None,
    }
