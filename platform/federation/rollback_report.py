"""What a person needs to decide whether a study goes back to an earlier model. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Q, QuerySet

from federation.check_report import check_report
from federation.models import Purpose, Rollback, Round, RoundResult, SiloMetric, Stage
from federation.selectors.branches import model_newest
from federation.services.facts import facts_of
from federation.services.rollback import cannot_go_back
from governance.models import Study
from governance.pages_selectors import manifest_content

AGAINST = -0.2
"""A sketch whose cosine with the others lies below this is named; the honest hospital with one class only had -0.3."""


@dataclass(frozen=True)
class Own:
    """A hospital that shares its own AUC: of the best model and of the one that got worse; None where it was not scored."""

    hospital: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Between:
    """One round after the best model was made, up to the one that made the worse model. odd: sentences."""

    round: Round
    odd: list[str]


@dataclass(frozen=True)
class RollbackReport:
    """A proposal with its grounds.

    Fields: before, after: how many hospitals the two means are over; only_before, only_after: hospitals that were in one
    of the two sums only. alone: by how much one hospital's AUC alone would have had to fall. rounds: those whose models
    going back throws away, as far as they are made. trained, most: rounds of training done, and allowed. newest: the last
    score, of a model made later, None where there is none. refusal: why going back is not possible any more, or "".
    """

    proposal: Rollback
    before: int
    after: int
    only_before: list[str]
    only_after: list[str]
    alone: float
    own: list[Own]
    rounds: list[Between]
    trained: int
    most: int
    newest: RoundResult | None
    refusal: str


def rollbacks_of(study: Study | str, *, round: Round | None = None) -> QuerySet[Rollback]:
    """A study's proposals, newest first; of one round: those that it led to."""
    rows = Rollback.objects.filter(study=study) if round is None else Rollback.objects.filter(round=round)
    return rows.select_related("model", "back_to", "round", "first_round", "again", "decided_by", "entry").order_by(
        "-pk"
    )


def rollback_report(proposal: Rollback) -> RollbackReport:
    """Everything that the page of a proposal says."""
    study, manifest = proposal.study, proposal.round.manifest
    hospitals = {each.silo: each.organisation for each in manifest_content(manifest).participants}
    scored = RoundResult.objects.filter(round__study=study, round__stage=Stage.FINISHED).select_related("round")
    best = scored.filter(model_number=proposal.back_to.number, round__pk__lt=proposal.round_id).order_by("-round__pk")[
        0
    ]
    worse = proposal.round.result
    first, then = set(best.round.members or ()), set(proposal.round.members or ())
    later = scored.filter(round__pk__gt=proposal.round_id, auc_mean__isnull=False).order_by("-round__pk").first()
    newest = model_newest(study)
    return RollbackReport(
        proposal=proposal,
        before=best.silos_with_auc,
        after=worse.silos_with_auc,
        only_before=_names(first - then, hospitals),
        only_after=_names(then - first, hospitals),
        alone=min(proposal.drop * worse.silos_with_auc, 1.0),
        own=_own(best.round, proposal.round, hospitals),
        rounds=[Between(item, _odd(item, hospitals)) for item in _between(proposal)],
        trained=newest.number if newest else 0,
        most=facts_of(manifest.digest).max_rounds,
        newest=later,
        refusal=cannot_go_back(study),
    )


def _names(silos: set[str], hospitals: Mapping[str, str]) -> list[str]:
    return [hospitals.get(silo, silo) for silo in sorted(silos)]


def _own(best: Round, worse: Round, hospitals: Mapping[str, str]) -> list[Own]:
    shared: dict[str, dict[Any, float | None]] = {}
    for each in SiloMetric.objects.filter(round__in=(best, worse)).select_related("silo"):
        shared.setdefault(each.silo.name, {})[each.round_id] = None if each.auc_micro is None else each.auc_micro / 1e6
    return [
        Own(hospitals.get(silo, silo), values.get(best.pk), values.get(worse.pk))
        for silo, values in sorted(shared.items())
    ]


def _between(proposal: Rollback) -> list[Round]:
    """The attempts at rounds after the one that made the best model, up to the one that made the worse model."""
    start = Q(pk__gt=proposal.back_to.round_id or 0)
    end = Q(pk__lte=proposal.model.round_id or proposal.round_id)
    rounds = Round.objects.filter(start, end, study=proposal.study).exclude(purpose=Purpose.INITIAL)
    return list(rounds.select_related("manifest", "result").order_by("pk"))


def _odd(item: Round, hospitals: Mapping[str, str]) -> list[str]:
    """What a person should know of one round; empty where nothing stood out."""
    if item.stage == Stage.FAILED:
        return [f"It failed: {(item.failure or {}).get('sentence', 'no reason is stored')}"]
    found, checks = [], check_report(item, hospitals)
    for row in checks.rows if checks else ():
        if not row.kept:
            found.append(f"{row.hospital} was left out. {row.reason}")
        elif row.cosine is not None and row.cosine < AGAINST:
            found.append(
                f"{row.hospital}'s update pointed against the others' (cosine {row.cosine:.2f}): an attacker's does, and one "
                "of a hospital with other patients does too."
            )
    if item.verified is False:
        found.append("The sum stands unverified: a check word never came.")
    named = {row.hospital for row in checks.rows if not row.kept} if checks else set()
    away = [name for name in _names(set(item.announced) - set(item.members or ()), hospitals) if name not in named]
    if away:
        found.append(f"Not in the sum: {', '.join(away)}.")
    return found
