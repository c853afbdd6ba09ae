"""A model got worse: going back is proposed, a person decides, and each hospital's steward decides for the hospital.

    rollback_judge     after a round: propose, or withdraw what a later model made good; never acts on the training
    rollback_decide    the network's admin dismisses it, or goes back: the next announced round starts from the earlier model
    rollback_begin     that round was announced

What is compared is the mean AUC over hospitals, each counting once, from the masked tails' sum alone: nobody sees whose
scores fell, and one hospital's false scores can make any fall. So a machine may only propose.
"""

from __future__ import annotations

import math

from django.utils import timezone

from evidence.services import acting, record
from federation.models import GlobalModel, Purpose, Rollback, Round, RoundResult, Stage
from federation.selectors.branches import gone_back, left_behind, model_newest
from federation.services.facts import Facts
from governance.models import Study, StudyState
from governance.states import locked
from organisations.models import User
from portal import events
from portal.actors import SYSTEM, Actor, Subject
from portal.problems import Refused

MICRO = 1_000_000
GOING_ON = (StudyState.ACTIVE, StudyState.RUNNING, StudyState.PAUSED)
DECISIONS = {"dismiss": Rollback.State.DISMISSED, "go-back": Rollback.State.ROLLED_BACK}


def rollback_judge(item: Round, *, facts: Facts) -> None:
    """After a finished round: hold the model that it scored against the best one before it. In the caller's transaction."""
    if facts.worse_by is None:
        return
    Study.objects.select_for_update().defer("draft").get(pk=item.study_id)  # nobody decides meanwhile
    result = RoundResult.objects.filter(round=item, auc_mean__isnull=False).first()
    gone = left_behind(item.study_id)
    if result is None or result.model_number in gone:
        return
    score, margin = _micro(result.auc_mean), _micro(facts.worse_by)
    waiting = Rollback.objects.filter(study=item.study_id, state=Rollback.State.OPEN).select_related("back_to").first()
    if waiting is not None:
        if score >= waiting.best_micro - margin and result.model_number > waiting.model.number:
            _withdraw(waiting, item, score)
        return
    best = _best_before(item.study_id, result.model_number, gone)
    if best is None or _micro(best.auc_mean) - score <= margin:
        return
    models = {each.number: each for each in GlobalModel.objects.filter(study=item.study_id)}
    back_to = models[best.model_number]
    if not _dismissed(item.study_id, back_to, _micro(best.auc_mean) - margin):
        _propose(item, result, best, model=models[result.model_number], back_to=back_to, margin=margin)


def rollback_decide(*, actor: Actor, person: User, proposal: Rollback, decision: str, reason: str) -> Rollback:
    """The network's admin dismisses a proposal or goes back to the model that it names.

    Parameters: decision: dismiss or go-back. reason: in the admin's words, kept outside the log's leaf.
    Refused: not an admin, one's own study, no reason; a proposal that somebody decided or that was withdrawn; going back
    where no round of training follows any more.
    """
    with acting(type="rollback.decided", actor=actor, subject=Subject("study", proposal.study_id)) as act:
        study = locked(proposal.study)
        if actor.role != "admin":
            raise Refused("ROLE", "Only the network's admin decides whether a study goes back.")
        if study.owner_id == person.pk or actor.id != str(person.pk):
            raise Refused("OWN_STUDY", "Nobody decides on their own study; another admin has to.")
        if decision not in DECISIONS:
            raise Refused("BAD_MESSAGE", "The decision must be dismiss or go-back.")
        if not reason.strip() or len(reason) > 2000:
            raise Refused("REASON", "Give a reason of at most 2,000 characters.", status=422)
        if decision == "go-back" and (why := cannot_go_back(study)):
            raise Refused("OUT_OF_STAGE", why)
        entry = act.record(
            refs={
                "model": proposal.model.digest,
                "back_to": proposal.back_to.digest,
                "proposed": str(proposal.entry_id),
            },
            data={"decision": decision, "model": proposal.model.number, "back_to": proposal.back_to.number},
            private={"reason": reason.strip()},
        )
        changes = {"decided_by": person, "decided_at": timezone.now(), "reason": reason.strip(), "entry": entry}
        _close(proposal, DECISIONS[decision], **changes)
    return proposal


def cannot_go_back(study: Study) -> str:
    """Why a study can't go back any more, in words; "" where it can."""
    if study.state not in GOING_ON:
        return "The study is over, so no round follows. The earlier model is on its results page."
    last = Round.objects.filter(study=study, newest=True).first()
    if last is not None and last.purpose == Purpose.EVALUATE:
        return (
            "Training is over: the one evaluation that each hospital allows has been announced for the last model. The "
            "earlier model is on the study's results page."
        )
    return ""


def rollback_begin(item: Round) -> None:
    """A round was announced: note it where it is the first from the model to which the study went back."""
    newest = model_newest(item.study_id)
    for each in gone_back(item.study_id):
        if each.first_round is None and newest is not None:
            Rollback.objects.filter(pk=each.pk).update(first_round=item, newest=newest.number)


def waits_for_hospitals(study: Study, last: Round) -> str:
    """Why a study that went back waits: too few hospitals took part in its last round. "" where it does not.

    Announcing again would only be refused again: a steward signs at the hospital, not in seconds.
    """
    if last.stage != Stage.FAILED or (last.failure or {}).get("code") != "ROSTER_TOO_SMALL":
        return ""
    back, newest = gone_back(study), model_newest(study)
    if not back or newest is None or back[-1].newest != newest.number or back[-1].first_round_id is None:
        return ""
    if last.pk < back[-1].first_round_id or _resumed_since(study, last):
        return ""
    return (
        f"The study goes back to model {back[-1].back_to.number}, and each hospital's steward has to agree to that at the "
        f"hospital's own node (silo resume). Resume the study once enough have. {(last.failure or {})['sentence']}"
    )


def _resumed_since(study: Study, last: Round) -> bool:
    """Whether a person resumed the study after this round had failed."""
    resumed = study.run.resumed_at if hasattr(study, "run") else None
    return resumed is not None and last.finished_at is not None and resumed >= last.finished_at


def _best_before(study: str, number: int, gone: frozenset[int]) -> RoundResult | None:
    """The newest result of the best model before `number`; of equal ones the later model, which throws away less."""
    rows = RoundResult.objects.filter(
        round__study=study, round__stage=Stage.FINISHED, auc_mean__isnull=False, model_number__lt=number
    ).order_by("round__number")
    scored = {row.model_number: row for row in rows if row.model_number not in gone}
    return max(scored.values(), key=lambda row: (_micro(row.auc_mean), row.model_number), default=None)


def _dismissed(study: str, back_to: GlobalModel, least: int) -> bool:
    """Whether a person dismissed going back to this model, and none was as good (`least`) since."""
    last = Rollback.objects.filter(study=study, back_to=back_to, state=Rollback.State.DISMISSED).order_by("-pk").first()
    if last is None:
        return False
    since = RoundResult.objects.filter(
        round__study=study, round__stage=Stage.FINISHED, auc_mean__isnull=False, model_number__gt=last.model.number
    )
    return all(_micro(score) < least for score in since.values_list("auc_mean", flat=True))


def _propose(
    item: Round, result: RoundResult, best: RoundResult, *, model: GlobalModel, back_to: GlobalModel, margin: int
) -> None:
    error = error_of_difference(best, result)
    scores = {"auc_micro": _micro(result.auc_mean), "best_micro": _micro(best.auc_mean)}
    scores["error_micro"] = None if error is None else _micro(error)
    entry = record(
        type="rollback.proposed",
        actor=SYSTEM,
        subject=Subject("study", item.study_id, item.manifest_digest),
        refs={"model": model.digest, "back_to": back_to.digest},
        data={**scores, "margin_micro": margin, "round": item.key, "model": model.number, "back_to": back_to.number},
    )
    Rollback.objects.create(study_id=item.study_id, model=model, back_to=back_to, round=item, entry=entry, **scores)
    events.publish(study=item.study_id)


def error_of_difference(one: RoundResult, other: RoundResult) -> float | None:
    """Standard error of the difference of two mean AUCs, from the spread over hospitals; None where a spread is withheld.

    As if both were over other hospitals. They are mostly the same, whose AUCs rise and fall together, so the true error
    is smaller; how much smaller the sums don't say.
    """
    if one.auc_std is None or other.auc_std is None or min(one.silos_with_auc, other.silos_with_auc) < 2:
        return None
    return math.sqrt(sum(each.auc_std**2 / (each.silos_with_auc - 1) for each in (one, other)))


def _withdraw(proposal: Rollback, item: Round, score: int) -> None:
    again = GlobalModel.objects.get(study=item.study_id, number=item.result.model_number)
    entry = record(
        type="rollback.withdrawn",
        actor=SYSTEM,
        subject=Subject("study", item.study_id, item.manifest_digest),
        refs={"model": proposal.model.digest, "again": again.digest, "proposed": str(proposal.entry_id)},
        data={"auc_micro": score, "best_micro": proposal.best_micro, "round": item.key, "again": again.number},
    )
    _close(proposal, Rollback.State.WITHDRAWN, again=again, entry=entry, decided_at=timezone.now())


def _close(proposal: Rollback, to: str, **changes: object) -> None:
    """Change the state by a conditional update, so that of two who decide at once one wins."""
    if not Rollback.objects.filter(pk=proposal.pk, state=Rollback.State.OPEN).update(state=to, **changes):
        raise Refused("OUT_OF_STAGE", "This proposal was decided or withdrawn a moment ago; look at it again.")
    proposal.refresh_from_db()
    events.publish(study=proposal.study_id)


def _micro(value: float | None) -> int:
    return round((value or 0.0) * MICRO)
