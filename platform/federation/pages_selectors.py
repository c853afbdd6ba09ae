"""Rounds, models and results as their pages show them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min, QuerySet, Sum
from django.utils import timezone

from federation.check_report import CheckReport, check_report
from federation.lanes import Lane, Track, draw
from federation.models import GlobalModel, Purpose, Round, RoundResult, Seat, SiloMetric, Stage
from federation.plots import Point, interval
from federation.selectors.branches import left_behind
from governance.models import Study
from governance.pages_selectors import manifest_content, visible_studies
from portal.access import Person
from protocol.secure_aggregation.sparse import promised


def may_watch(person: Person, study: str) -> bool:
    """Whether a person may see the rounds of this study."""
    return visible_studies(person).filter(pk=study).exists()


def rounds_of(study: Study) -> QuerySet[Round]:
    """All rounds of a study, newest first."""
    return Round.objects.filter(study=study).select_related("manifest", "result").order_by("-number", "-attempt")


def newest_round(study: Study) -> Round | None:
    """The round that runs or ran last."""
    return rounds_of(study).first()


@dataclass(frozen=True)
class RoundView:
    """One round with its lanes. `seconds`: from the announcement to its end, or until now; `bytes_up`: of all silos."""

    round: Round
    lanes: list[Lane]
    extent: float
    seconds: float
    in_sum: int
    bytes_up: int
    checks: CheckReport | None
    masking: str


def round_view(item: Round, *, now: datetime | None = None) -> RoundView:
    """Everything that the page of a round draws."""
    now = now or timezone.now()
    hospitals = {each.silo: each.organisation for each in manifest_content(item.manifest).participants}
    tracks = [_track(item, silo, hospitals.get(silo, silo), facts) for silo, facts in _facts(item).items()]
    failed = item.stage == Stage.FAILED
    lanes, extent = draw(tracks, started=item.started_at, now=now, closed=item.finished_at, failed=failed)
    seconds = ((item.finished_at or now) - item.started_at).total_seconds()
    bytes_up = max(item.bytes_up, sum(lane.bytes_up for lane in lanes))
    checks = check_report(item, hospitals)
    return RoundView(item, lanes, extent, seconds, len(item.members or ()), bytes_up, checks, _masking(item))


def _masking(item: Round) -> str:
    """With how many others each hospital masks, in words; nothing where nothing is summed."""
    if item.purpose == Purpose.INITIAL:
        return ""
    content = manifest_content(item.manifest)
    if not content.sparse:
        return "each hospital with every other"
    n = len(content.participants)
    others, h = n - 1, promised(n).h
    # It draws h, and each of the rest draws it with chance h/others.
    near = round(h + (others - h) * h / others)
    return f"each hospital with about {near} of {others} others, drawn anew in each round"


def _facts(item: Round) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {
        name: {"entered": {}, "sent": {}, "fault": None, "refusal": None} for name in sorted(item.announced)
    }

    def of(name: str) -> dict[str, Any]:
        return facts.setdefault(name, {"entered": {}, "sent": {}, "fault": None, "refusal": None})

    for stage in item.silo_stages.select_related("silo"):
        of(stage.silo.name)["entered"][stage.stage] = stage.entered_at
    for message in item.messages.select_related("silo").defer("envelope"):
        of(message.silo.name)["sent"][message.kind] = message.received_at
        if message.kind == "refusal":
            of(message.silo.name)["refusal"] = _refusal_words(message.envelope)
    chunks = item.chunks.values("silo__name").annotate(
        first=Min("received_at"), last=Max("received_at"), size=Sum("size"), number=Count("pk")
    )
    for row in chunks:
        of(row["silo__name"]).update(first_chunk=row["first"], last_chunk=row["last"], bytes_up=row["size"])
    for seat in Seat.objects.filter(round=item).select_related("silo"):
        of(seat.silo.name)["seen_at"] = seat.seen_at
    for fault in item.faults:
        if fault.get("silo"):
            of(fault["silo"])["fault"] = fault.get("sentence") or fault.get("code")
    return facts


def _track(item: Round, silo: str, hospital: str, facts: dict[str, Any]) -> Track:
    return Track(
        silo=silo,
        hospital=hospital,
        in_roster=None if item.roster is None else silo in item.roster,
        member=None if item.members is None else silo in item.members,
        **facts,
    )


def _refusal_words(envelope: Mapping[str, Any]) -> str:
    reasons = json.loads(base64.b64decode(envelope["payload"])).get("reasons", [])
    return " ".join(each.get("sentence", each.get("code", "")) for each in reasons) or "no reason was given"


@dataclass(frozen=True)
class Results:
    """A study's quality. `points`: one a model that was scored; `final`: the last result; `shared`: silo -> own AUC; `left`:
    numbers of the models that a roll-back left behind."""

    points: list[Point]
    final: RoundResult | None
    bounds: tuple[float, float] | None
    shared: dict[str, float | None]
    withheld: list[str]
    hospitals: dict[str, str]
    left: frozenset[int]


def results_of(study: Study) -> Results:
    """What the securely summed evaluations say, model by model, and what hospitals share of their own."""
    found = list(
        RoundResult.objects.filter(round__study=study, round__stage="finished")
        .select_related("round")
        .order_by("round__number", "round__attempt")
    )
    metrics: dict[int, dict[str, float | None]] = {}
    for metric in SiloMetric.objects.filter(round__study=study).select_related("silo"):
        value = None if metric.auc_micro is None else metric.auc_micro / 1e6
        metrics.setdefault(metric.round_id, {})[metric.silo.name] = value
    by_model = {each.model_number: each for each in found if each.auc_mean is not None}
    points = [
        Point(
            number,
            each.auc_mean,
            each.auc_std,
            each.silos_with_auc,
            each.auc_pooled,
            {name: value for name, value in metrics.get(each.round_id, {}).items() if value is not None},
        )
        for number, each in sorted(by_model.items())
    ]
    final = found[-1] if found else None
    manifest = study.manifest
    hospitals = {each.silo: each.organisation for each in manifest_content(manifest).participants} if manifest else {}
    shared = metrics.get(final.round_id, {}) if final else {}
    took_part = (final.round.members or final.round.announced) if final else []
    return Results(
        points=points,
        final=final,
        bounds=interval(final.auc_mean, final.auc_std, final.silos_with_auc) if final else None,
        shared=dict(sorted(shared.items())),
        withheld=sorted(set(took_part) - set(shared)),
        hospitals=hospitals,
        left=left_behind(study),
    )


def models_of(study: Study) -> QuerySet[GlobalModel]:
    """The models that the study made, newest first."""
    return GlobalModel.objects.filter(study=study).select_related("round").order_by("-number")


def bytes_of(study: Study) -> int:
    """Bytes of masked updates that reached the portal in this study."""
    return Round.objects.filter(study=study).aggregate(total=Sum("bytes_up"))["total"] or 0


def rounds_trained(study: Study) -> int:
    """Finished training rounds."""
    return Round.objects.filter(study=study, purpose=Purpose.TRAIN, stage="finished").count()
