"""Pages of rounds and results, and the page on which everybody lands: what waits for me."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET

from evidence.selectors import newest_checkpoint, waiting_count
from federation import lanes, pages_selectors, plots, rollback_report
from federation.check_report import together_of
from federation.models import Purpose, Round, Stage
from federation.selectors.branches import model_next
from federation.services.sketches import left_out
from federation.waiting import waiting_for
from governance.models import Study, StudyState
from governance.views import READERS, study_context, study_for
from organisations.permissions import role_required, signed_in
from portal.listing import Choice, Listing, csv_answer, listing

# htmx stops asking once it gets this status: the round is over.
STOP_POLLING = 286


@require_GET
@signed_in
def waiting(request: HttpRequest) -> HttpResponse:
    """What waits for this person, in each of their roles."""
    sections = waiting_for(request.person)
    context: dict[str, Any] = {
        "sections": sections,
        "busy": any(section.rows for section in sections),
        "quiet": any(not section.rows for section in sections),
        "person": request.person,
    }
    if request.person.has("auditor"):
        context |= {"checkpoint": newest_checkpoint(), "unpublished": waiting_count()}
    held = {each.role for each in request.person.memberships}
    context["asleep"] = sorted(held - request.person.roles)
    return render(request, "federation/waiting.html", context)


@require_GET
@role_required(*READERS)
def rounds(request: HttpRequest, pk: str) -> HttpResponse:
    """The rounds of a study, newest first."""
    study = study_for(request, pk)
    newest = pages_selectors.newest_round(study)
    context = study_context(request, study, "rounds") | {
        "listing": _listing(request, study),
        "newest": newest,
        "open": newest is not None and _live(study, newest),
        "bytes": pages_selectors.bytes_of(study),
        "trained": pages_selectors.rounds_trained(study),
    }
    return render(request, "federation/rounds.html", context)


@require_GET
@role_required(*READERS)
def rounds_csv(request: HttpRequest, pk: str) -> HttpResponse:
    """The filtered rounds as CSV."""
    study = study_for(request, pk)
    header = (
        "round", "attempt", "purpose", "stage", "asked", "in the sum", "started (UTC)", "finished (UTC)", "bytes up",
        "model in", "model out", "mean AUC of the model in", "sum verified", "left out", "failure",
    )  # fmt: skip
    rows = (
        (
            each.number,
            each.attempt,
            each.purpose,
            each.stage,
            len(each.announced),
            len(each.members or ()),
            each.started_at,
            each.finished_at or "",
            each.bytes_up,
            each.model_digest or "",
            each.next_model_digest or "",
            each.result.auc_mean if hasattr(each, "result") else "",
            "" if each.verified is None else "yes" if each.verified else "no",
            " ".join(f"{row['silo']}:{row['code']}" for row in left_out(each.sketches)),
            (each.failure or {}).get("sentence", ""),
        )
        for each in _listing(request, study).page.paginator.object_list
    )
    return csv_answer(f"{pk}-rounds.csv", header, rows)


@require_GET
@role_required(*READERS)
def round_page(request: HttpRequest, pk: str, number: int, attempt: int) -> HttpResponse:
    """One round, a lane a silo. While it is open the lanes refresh themselves (round_live)."""
    study = study_for(request, pk)
    item = get_object_or_404(pages_selectors.rounds_of(study), number=number, attempt=attempt)
    context = study_context(request, study, "rounds") | _round_context(item)
    return render(request, "federation/round.html", context)


@require_GET
@role_required(*READERS)
def round_live(request: HttpRequest, pk: str, number: int, attempt: int) -> HttpResponse:
    """The part of a round's page that changes."""
    study = study_for(request, pk)
    item = get_object_or_404(pages_selectors.rounds_of(study), number=number, attempt=attempt)
    context = {"study": study} | _round_context(item)
    return render(request, "federation/_round_live.html", context, status=200 if item.is_open else STOP_POLLING)


@require_GET
@role_required(*READERS)
def rounds_live(request: HttpRequest, pk: str) -> HttpResponse:
    """The newest round on the list of rounds, while it is open; once over, the page is asked to load again."""
    study = study_for(request, pk)
    newest = pages_selectors.newest_round(study)
    if newest is None:
        raise Http404("This study has no round yet.")
    context = {"study": study, "live": _live(study, newest)} | _round_context(newest)
    return render(request, "federation/_newest_live.html", context)


@require_GET
@role_required(*READERS)
def results(request: HttpRequest, pk: str) -> HttpResponse:
    """Quality by round, spread across hospitals, and the models."""
    study = study_for(request, pk)
    found = pages_selectors.results_of(study)
    may_download = study.owner_id == request.user.pk or request.person.has("admin")
    models = list(pages_selectors.models_of(study)[:50])
    context = study_context(request, study, "results") | {
        "results": found,
        "curve": plots.auc_curve(found.points),
        "strip": plots.strip(found.shared, found.hospitals, found.final.auc_mean if found.final else None),
        "roc": plots.roc(found.final.histograms) if found.final else None,
        "models": models,
        "newest_model": model_next(study),
        "rollbacks": rollback_report.rollbacks_of(study),
        "may_download": may_download,
        "bytes": pages_selectors.bytes_of(study),
        "trained": pages_selectors.rounds_trained(study),
        "together": together_of(study.manifest),
    }
    return render(request, "federation/results.html", context)


@require_GET
@role_required(*READERS)
def results_csv(request: HttpRequest, pk: str) -> HttpResponse:
    """Quality by model as CSV, with hospitals' own values where they share them."""
    study = study_for(request, pk)
    points = pages_selectors.results_of(study).points
    names = sorted({name for point in points for name in point.silos})
    header = ("model", "mean AUC", "spread (standard deviation)", "hospitals", "pooled AUC", *names)
    rows = (
        (each.number, each.mean, each.std, each.count, each.pooled, *(each.silos.get(name, "") for name in names))
        for each in points
    )
    return csv_answer(f"{pk}-results.csv", header, rows)


def _live(study: Study, newest: Round) -> bool:
    """Whether more may come by itself: a round is open, or the study runs and will announce the next one."""
    return newest.is_open or study.state in (StudyState.ACTIVE, StudyState.RUNNING)


def _round_context(item: Round) -> dict[str, Any]:
    view = pages_selectors.round_view(item)
    return {
        "round": item,
        "view": view,
        "ticks": lanes.ticks(view.extent),
        "now": timezone.now(),
        "parts": list(lanes.LABELS.items()),
        "result": getattr(item, "result", None),
        "rollbacks": rollback_report.rollbacks_of(item.study_id, round=item),
        "begins_again": item.begins_again.select_related("back_to").first(),
    }


def _listing(request: HttpRequest, study: Study) -> Listing:
    return listing(
        request,
        pages_selectors.rounds_of(study),
        sorts={"round": "number", "started": "started_at", "bytes": "bytes_up", "auc": "result__auc_mean"},
        default="-round",
        filters=(
            Choice(
                "stage",
                "State",
                (("open", "open"), ("finished", "finished"), ("failed", "failed")),
                lambda rows, value: (
                    rows.filter(stage=value)
                    if value != "open"
                    else rows.exclude(stage__in=(Stage.FINISHED, Stage.FAILED))
                ),
            ),
            Choice("purpose", "For", Purpose.choices, lambda rows, value: rows.filter(purpose=value)),
        ),
        export_path=reverse("federation:rounds_csv", args=[study.pk]),
    )
