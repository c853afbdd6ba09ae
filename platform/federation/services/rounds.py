"""Announce a round, end it well or badly, and decide what comes next. Each runs inside its caller's transaction.

After a failure: before anybody was asked to sign a list, the same round is announced again with the next attempt;
after, the silos have spent (study, round), so the next round is announced on the same model. Three failures in a row
pause the study. What comes next is derived from the rows alone (`round_next`), so it is the same after a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Sum

from evidence.services import record
from federation import conf, storage
from federation.models import (
    ChunkReceipt,
    GlobalModel,
    Parcel,
    Purpose,
    Round,
    RoundMessage,
    Seat,
    Stage,
    StudyRun,
    round_key,
)
from federation.selectors.approvals import approved_silos, silos_rekeyed
from federation.selectors.branches import model_newest, model_next
from federation.services import books, rollback, stages, stopping
from federation.services.facts import Facts, facts_of
from federation.services.mail import Mail
from federation.services.models import model_keep
from federation.services.reasons import hospital
from federation.services.sketches import left_out
from governance import services
from governance.models import Manifest, Study, StudyState
from portal.actors import SYSTEM, Subject
from protocol.participation import draw


class Next(NamedTuple):
    """The round to announce."""

    purpose: Purpose
    number: int
    attempt: int
    model: GlobalModel | None


def round_next(study: Study, last: Round | None, facts: Facts) -> Next | None:
    """What follows the last round of a study; None where the study is complete.

    A model that is good enough, or enough rounds, lead to one round that only evaluates.
    """
    if last is None:
        return Next(Purpose.INITIAL, 0, 1, None)
    if last.stage == Stage.FAILED and last.purpose == Purpose.INITIAL:
        return Next(Purpose.INITIAL, 0, last.attempt + 1, None)
    model, newest = model_next(study), model_newest(study)
    if last.stage == Stage.FAILED:
        spent = last.members is not None
        return Next(Purpose(last.purpose), last.number + spent, 1 if spent else last.attempt + 1, model)
    if last.purpose == Purpose.EVALUATE:
        return None
    cause = stopping.stop_cause(study=study, trained=newest.number if newest else 0, facts=facts)
    if cause:
        StudyRun.objects.filter(study=study).update(stop_cause=cause)
    return Next(Purpose.EVALUATE if cause else Purpose.TRAIN, last.number + 1, 1, model)


def study_continue(study_id: str, *, last: Round | None, now: datetime) -> Round | None:
    """Between rounds: announce the next one, complete the study, or pause it where no round can be held.

    Returns the round that was announced, or None. A study that is paused or over is left as it is.
    """
    study = Study.objects.select_for_update().defer("draft").get(pk=study_id)
    if study.state not in (StudyState.ACTIVE, StudyState.RUNNING):
        return None
    run, _ = StudyRun.objects.get_or_create(study=study)
    if last is not None:
        manifest = Manifest(pk=last.manifest_id, digest=last.manifest_digest)
    else:
        manifest = Manifest.objects.filter(study=study).order_by("-number").defer("body")[0]
    facts = facts_of(manifest.digest)
    if run.failures_in_row >= conf.failures_allowed():
        why = ((last.failure if last else None) or {}).get("sentence", "")
        sentence = f"{run.failures_in_row} rounds in a row failed. The last one: {why}"
        services.study_pause(actor=SYSTEM, study=study, code="ROUNDS_FAILED", reason=sentence[:2000])
        return None
    if last is not None and (sentence := rollback.waits_for_hospitals(study, last)):
        services.study_pause(actor=SYSTEM, study=study, code="ROLLBACK_WAITS", reason=sentence[:2000])
        return None
    coming = round_next(study, last, facts)
    if coming is None:
        refs = {"model": last.model_digest} if last and last.model_digest else None
        services.study_complete(study=study, refs=refs)
        return None
    silos = approved_silos(manifest, facts.participants)
    if len(silos) < facts.manifest.least_roster:
        sentence = (
            f"{len(silos)} hospitals approve this version of the study and have an active silo; "
            f"a round needs {facts.manifest.least_roster}."
        )
        changed = silos_rekeyed(manifest, facts.participants)
        if changed:
            names = ", ".join(hospital(name, facts) for name in changed)
            sentence += (
                f" The silo's key was changed since this version was approved, so no round can ask for it: {names}. A new "
                "study, which may start from the last model, names the new key."
            )
        code = "KEY_ROTATED" if changed else "APPROVALS_MISSING"
        services.study_pause(actor=SYSTEM, study=study, code=code, reason=sentence[:2000])
        return None
    if study.state == StudyState.ACTIVE:
        services.study_running(study=study)
    return round_announce(study=study, manifest=manifest, coming=coming, silos=silos, facts=facts, now=now)


def round_announce(
    *, study: Study, manifest: Manifest, coming: Next, silos: Mapping[str, Any], facts: Facts, now: datetime
) -> Round:
    """Write the round and its seats, and wake the silos. `silos`: name -> primary key of those that may be asked."""
    names = sorted(silos)
    if coming.purpose == Purpose.TRAIN and coming.model is not None:
        names = list(draw(silos, count=facts.drawn, model=coming.model.digest, round_number=coming.number))
    item = Round(
        study=study,
        manifest_id=manifest.pk,
        manifest_digest=manifest.digest,
        key=round_key(study.pk, coming.number, coming.attempt),
        number=coming.number,
        attempt=coming.attempt,
        purpose=coming.purpose,
        stage=stages.first_stage(coming.purpose),
        model_digest=coming.model.digest if coming.model else None,
        model_length=coming.model.length if coming.model and coming.purpose == Purpose.TRAIN else 0,
        announced=names,
        started_at=now,
        stage_at=now,
        deadline_at=now,
    )
    item.deadline_at = stages.deadline(item, Stage(item.stage), facts, now)
    Round.objects.filter(study=study, newest=True).update(newest=False)
    item.save(force_insert=True)
    Seat.objects.bulk_create(Seat(round=item, silo_id=silos[name]) for name in names)
    rollback.rollback_begin(item)
    refs = {"manifest": manifest.digest}
    if item.model_digest:
        refs["model"] = item.model_digest
    record(
        type="round.started",
        actor=SYSTEM,
        subject=Subject("round", item.key, manifest.digest),
        refs=refs,
        data={"number": item.number, "attempt": item.attempt, "purpose": str(item.purpose), "silos": names},
    )
    stages.tell(item, names)
    return item


def round_finish(
    item: Round,
    *,
    mail: Mail,
    facts: Facts,
    now: datetime,
    signers: Collection[str] = (),
    length: int | None = None,
    **fields: Any,
) -> bool:
    """End a round well: keep the model that `signers` signed, forget the pieces, announce what comes next.

    `length`: of the next model where it is not that of the model that came in. `fields`: further columns. False where
    another process was first.
    """
    size = _received(item)
    digest = item.next_model_digest
    changes = {"bytes_up": size, "next_model_digest": digest, **fields}
    if not stages.round_move(item, to=Stage.FINISHED, facts=facts, wake=item.announced, now=now, **changes):
        return False
    StudyRun.objects.filter(study=item.study_id, failures_in_row__gt=0).update(failures_in_row=0)
    if digest is not None:
        states = mail.values("state", sorted(signers))
        model_keep(item=item, digest=digest, length=item.model_length if length is None else length, states=states)
    names = {"model": item.model_digest, "sum": item.sum_digest, "next": digest}
    record(
        type="round.finished",
        actor=SYSTEM,
        subject=Subject("round", item.key, item.manifest_digest),
        refs=_refs(item) | {name: value for name, value in names.items() if value},
        data={
            "purpose": str(item.purpose),
            "members": item.members or [],
            "signers": sorted(signers),
            "bytes": size,
            "verified": item.verified,
            "left_out": left_out(item.sketches),
        },
    )
    rollback.rollback_judge(item, facts=facts)
    study_continue(item.study_id, last=item, now=now)
    forget_chunks(item, also_sum=item.purpose != Purpose.TRAIN)
    return True


def round_fail(item: Round, *, code: str, sentence: str, facts: Facts, now: datetime, **fields: Any) -> bool:
    """End a round badly, with a reason for people; another attempt or round follows, or the study is paused.

    `fields`: further columns. False where another process ended it first.
    """
    stage = item.stage
    changes = {"failure": {"code": code, "sentence": sentence, "stage": stage}, "bytes_up": _received(item), **fields}
    if not stages.round_move(item, to=Stage.FAILED, facts=facts, wake=item.announced, now=now, **changes):
        return False
    run, _ = StudyRun.objects.get_or_create(study_id=item.study_id)
    StudyRun.objects.filter(pk=run.pk).update(failures_in_row=run.failures_in_row + 1)
    record(
        type="round.failed",
        actor=SYSTEM,
        subject=Subject("round", item.key, item.manifest_digest),
        outcome="failure",
        reasons=(code,),
        refs=_refs(item),
        data={"stage": str(stage), "purpose": str(item.purpose), "left_out": left_out(item.sketches)},
        private={"sentence": sentence},
    )
    study_continue(item.study_id, last=item, now=now)
    forget_chunks(item, also_sum=True)
    return True


def _refs(item: Round) -> dict[str, str]:
    """What the entry of a round's end names in any case: the manifest, and the digest of all sketches."""
    sketches = {"sketches": item.sketches["digest"]} if item.sketches else {}
    return {"manifest": item.manifest_digest, **sketches}


def _received(item: Round) -> int:
    return ChunkReceipt.objects.filter(round=item).aggregate(total=Sum("size"))["total"] or 0


def forget_chunks(item: Round, *, also_sum: bool) -> None:
    """Remove the sealed boxes of a round that is over; on commit, last, its masked updates and the sum of the one before it.

    Of the signed `bundles` the digests stay, not the boxes: with 200 silos they are some sixty megabytes a round, and nobody
    has a use for them but who hopes to open them one day.
    The sum of a finished round stays until the next one of its study is over: a slow silo may still be fetching it.
    """
    key, announced = item.key, list(item.announced)
    Parcel.objects.filter(round=item).delete()
    RoundMessage.objects.filter(round=item, kind="bundles").update(envelope={})
    before = Round.objects.filter(study=item.study_id, pk__lt=item.pk).order_by("-pk").values_list("key", flat=True)[:1]
    older = list(before)

    def forget() -> None:
        books.book_forget(key)
        for old in older:
            storage.forget_round(old)
        (conf.model_folder() / f".next-{key}").unlink(missing_ok=True)
        if also_sum:
            storage.forget_round(key)
        else:
            storage.forget_parts(key, announced)

    transaction.on_commit(forget, robust=True)
