"""A study's life as people drive it: draft, submit, start, pause, resume, withdraw; and its end.

Re-exported by `services`. What the hospitals and the admin decide is in `reviews` and `approvals`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from django.utils import timezone

from evidence.services import acting
from governance import signals
from governance.activation import activate
from governance.drafts import build_manifest
from governance.models import Manifest, Study, StudyState
from governance.predictions import predict
from governance.states import EDITABLE, locked, move
from organisations.models import Organisation, User
from portal import events
from portal.actors import SYSTEM, Actor, Subject
from portal.problems import Refused
from protocol import canonical
from protocol.manifest import ManifestError, freeze, parse_manifest


def study_draft(
    *, actor: Actor, owner: User, organisation: Organisation, title: str, draft: Mapping[str, Any]
) -> Study:
    """Start a study. Nothing is checked yet but the title: a draft may be incomplete."""
    study = Study(title=title.strip(), owner=owner, organisation=organisation, draft=dict(draft))
    with acting(type="study.drafted", actor=actor, subject=Subject("study", study.pk)) as act:
        _check_title(study.title)
        if str(owner.pk) != actor.id:
            raise Refused("NOT_OWNER", "A study belongs to the person who drafts it.", status=403)
        study.save(force_insert=True)
        act.record(data={"change": "created", "org": organisation.slug})
    return study


def study_edit(*, actor: Actor, study: Study, title: str, draft: Mapping[str, Any]) -> Study:
    """Change the draft. What was submitted stays as it was until the study is submitted again, as a new version."""
    with acting(type="study.drafted", actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        _check_owner(study, actor)
        _check_title(title.strip())
        if study.state not in EDITABLE:
            raise Refused("OUT_OF_STAGE", "A study that has begun can't be edited; draft a new one.")
        study.draft = {"title": title.strip(), **draft}
        if study.manifest is None:
            study.title = title.strip()
        # A study that was submitted keeps the title of its newest version until it is submitted again: otherwise a study
        # could be approved under one title and shown under another.
        study.save(update_fields=["title", "draft"])
        act.record(data={"change": "edited"})
    return study


def study_submit(*, actor: Actor, study: Study) -> Manifest:
    """Freeze the draft into a manifest, the exact version that everybody decides on, and predict each hospital's match.

    Refused: not the owner; a study that has begun; participants that are not active; a manifest that does not fit its
    schema (MANIFEST, with the fields); dates in the past; nothing changed since the last version; a first model that was not
    uploaded for this study.
    """
    with acting(type="study.submitted", actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        _check_owner(study, actor)
        if study.state not in EDITABLE:
            raise Refused("OUT_OF_STAGE", "A study that has begun can't be submitted again; draft a new one.")
        try:
            body = freeze(build_manifest(study=study, draft=study.draft))
            parsed = parse_manifest(body)
        except ManifestError as error:
            raise Refused("MANIFEST", str(error), status=422) from error
        if dt.date.fromisoformat(parsed.dates.end) < timezone.now().date():
            raise Refused("DATES", "The study's last day has passed; choose a later one.", status=422)
        digest = canonical.digest(body)
        if Manifest.objects.filter(digest=digest).exists():
            raise Refused("UNCHANGED", "Nothing has changed since the version that was submitted before.")
        number = Manifest.objects.filter(study=study).count() + 1
        manifest = Manifest.objects.create(study=study, digest=digest, body=body, number=number)
        signals.manifest_frozen.send(sender=Study, study=study, manifest=manifest)
        move(study, StudyState.SUBMITTED)
        Study.objects.filter(pk=study.pk).update(title=parsed.title)
        act.record(
            subject=Subject("study", study.pk, digest),
            refs={"manifest": digest},
            data={"number": number, "participants": [item.silo for item in parsed.participants]},
        )
        predict(manifest)
        events.publish(*(item.silo for item in parsed.participants), study=study.pk)
    return manifest


def study_start(*, actor: Actor, study: Study) -> Study:
    """Start without waiting for the hospitals that have not decided. Refused: fewer than min_roster approve."""
    with acting(type="study.activated", actor=actor, subject=Subject("study", study.pk)):
        study = locked(study)
        if actor.role != "admin":
            _check_owner(study, actor)
        activate(study=study, actor=actor)
    return study


def study_pause(*, actor: Actor, study: Study, reason: str, code: str = "PERSON") -> Study:
    """No further round until somebody resumes the study. `reason`: a sentence, shown to everybody who may see the study."""
    with acting(type="study.paused", actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        _check_may_steer(study, actor)
        _check_reason(reason)
        move(study, StudyState.PAUSED)
        study.paused_reason = {"code": code, "sentence": reason.strip(), "by": _paused_by(actor)}
        study.save(update_fields=["paused_reason"])
        act.record(reasons=(code,), private={"reason": reason.strip()})
        _halted(study)
    return study


def study_resume(*, actor: Actor, study: Study) -> Study:
    """Go on where the study was paused. What an admin paused, only an admin resumes."""
    with acting(type="study.resumed", actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        _check_may_steer(study, actor)
        if study.state != StudyState.PAUSED:
            raise Refused("OUT_OF_STAGE", "Only a paused study can be resumed.")
        if study.paused_by_admin and actor.role != "admin":
            raise Refused(
                "PAUSED_BY_ADMIN",
                "An admin of the network paused this study, so only an admin can resume it. Ask the network's admin; the "
                "reason for the pause stands on the study's page.",
                status=403,
            )
        move(study, StudyState.RUNNING)
        act.record()
        signals.study_resumed.send(sender=Study, study=study)
        _tell(study)
    return study


def study_withdraw(*, actor: Actor, study: Study, reason: str) -> Study:
    """The owner (or the admin) ends the study for good."""
    with acting(type="study.withdrawn", actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        _check_may_steer(study, actor)
        _check_reason(reason)
        move(study, StudyState.WITHDRAWN)
        act.record(private={"reason": reason.strip()})
        _halted(study)
    return study


def study_complete(*, study: Study, actor: Actor = SYSTEM, refs: Mapping[str, str] | None = None) -> Study:
    """The last round is over."""
    with acting(type="study.completed", actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        move(study, StudyState.COMPLETED)
        act.record(refs=refs)
        _tell(study)
    return study


def study_running(*, study: Study) -> Study:
    """The first round was announced; its own entry (round.started) records it."""
    study = locked(study)
    if study.state == StudyState.ACTIVE:
        move(study, StudyState.RUNNING)
        events.publish(study=study.pk)
    return study


def study_stop(*, actor: Actor = SYSTEM, study: Study, reason: str, code: str = "STOPPED") -> Study:
    """End a study that can't go on (a rule or an admin ends it)."""
    with acting(type="study.stopped", actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        if actor != SYSTEM and actor.role != "admin":
            raise Refused("ROLE", "Only the network's admin stops somebody else's study.")
        _check_reason(reason)
        move(study, StudyState.STOPPED)
        act.record(reasons=(code,), private={"reason": reason.strip()})
        _halted(study)
    return study


def study_expire(*, study: Study, today: dt.date | None = None) -> bool:
    """End a study whose last day has passed; True where it was one. The silos check the date themselves as well."""
    manifest = study.manifest
    if manifest is None or dt.date.fromisoformat(parse_manifest(manifest.data).dates.end) >= (
        today or timezone.now().date()
    ):
        return False
    with acting(type="study.expired", actor=SYSTEM, subject=Subject("study", study.pk, manifest.digest)) as act:
        study = locked(study)
        move(study, StudyState.EXPIRED)
        act.record()
        _halted(study)
    return True


def _halted(study: Study) -> None:
    signals.study_halted.send(sender=Study, study=study)
    _tell(study)


def _tell(study: Study) -> None:
    manifest = study.manifest
    names = [item.silo for item in parse_manifest(manifest.data).participants] if manifest else []
    events.publish(*names, study=study.pk)


def _check_owner(study: Study, actor: Actor) -> None:
    if actor.id != str(study.owner_id):
        raise Refused("NOT_OWNER", "Only the study's owner may do this.", status=403)


def _check_may_steer(study: Study, actor: Actor) -> None:
    if actor != SYSTEM and actor.role != "admin":
        _check_owner(study, actor)


def _paused_by(actor: Actor) -> str:
    """Who paused: "portal", "admin" (also where the admin owns the study) or "owner"."""
    if actor == SYSTEM:
        return "portal"
    return "admin" if actor.role == "admin" else "owner"


def _check_title(title: str) -> None:
    if not title or len(title) > 200:
        raise Refused("TITLE", "The study needs a title of at most 200 characters.", status=422)


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > 2000:
        raise Refused(
            "REASON", "Give a reason of at most 2,000 characters; everybody who takes part will ask.", status=422
        )
