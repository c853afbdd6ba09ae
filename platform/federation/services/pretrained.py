"""The model with which a study starts, where it is not drawn from a seed: uploaded by the owner, named in the draft's plan.

The portal knows no network, so it checks only that the file is a model. Whether its tensors are the network's, every
silo checks before it signs the first model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from federation.models import GlobalModel, UploadedModel
from federation.services.errors import Refused
from federation.services.facts import read_facts
from federation.services.models import model_upload
from federation.storage import StorageFull, model_path
from governance.models import Manifest, Study
from governance.services import study_edit
from governance.states import EDITABLE
from portal.actors import Actor
from protocol.model_state import StateError, read_front, words


def pretrained_set(*, actor: Actor, study: Study, file: BinaryIO) -> UploadedModel:
    """Store a model's file and let the draft start from it.

    Refused: not the owner, a study that has begun, a draft without a plan, a file that is no model (MODEL), a full disk.
    """
    study = _editable(study, actor)
    try:
        digest = model_upload(file=file)
    except StateError as error:
        raise Refused("MODEL", f"This file can't be taken: {error}.", status=422) from error
    except StorageFull as error:
        raise Refused("DISK_FULL", "The portal's disk is full; its operator has to make room.") from error
    path = model_path(digest)
    table = read_front(path).table
    facts = {"size": path.stat().st_size, "tensors": len(table), "length": words(table)}
    uploaded, _ = UploadedModel.objects.update_or_create(study=study, digest=digest, defaults=facts)
    _start_from(study, actor, {"kind": "pretrained", "model": digest})
    _forget_unused(study, kept=digest)
    return uploaded


def pretrained_clear(*, actor: Actor, study: Study, seed: int) -> None:
    """Let the draft start from random numbers again. Refused: as above."""
    study = _editable(study, actor)
    _start_from(study, actor, {"kind": "seed", "seed": seed})
    _forget_unused(study, kept="")


def pretrained_path(*, study: str, digest: str) -> Path | None:
    """The file of a model that was uploaded for this study; None for any other."""
    path = model_path(digest)
    known = UploadedModel.objects.filter(study=study, digest=digest).exists()
    return path if known and path.exists() else None


def pretrained_check(*, study: Study, manifest: Manifest) -> None:
    """Refuse a version that starts from a model which was not uploaded for its study."""
    digest = read_facts(manifest.data).pretrained
    if digest is not None and pretrained_path(study=study.pk, digest=digest) is None:
        raise Refused(
            "MODEL",
            "The model that the draft starts from is not stored for this study. Upload it on the page of the first model, "
            "or start from a seed.",
            status=422,
        )


def _editable(study: Study, actor: Actor) -> Study:
    """The study as it is now; what `study_edit` refuses, refused before a file is read."""
    study = Study.objects.get(pk=study.pk)
    if actor.id != str(study.owner_id):
        raise Refused("NOT_OWNER", "Only the study's owner may do this.", status=403)
    if study.state not in EDITABLE:
        raise Refused("OUT_OF_STAGE", "A study that has begun can't be edited; draft a new one.")
    if not isinstance(study.draft.get("plan"), Mapping):
        raise Refused("PLAN", "The draft has no plan yet; fill it in first.", status=422)
    return study


def _start_from(study: Study, actor: Actor, initial: dict[str, Any]) -> None:
    draft = Study.objects.get(pk=study.pk).draft
    draft = {**draft, "plan": {**draft["plan"], "initial": initial}}
    study_edit(actor=actor, study=study, title=str(draft.get("title") or study.title), draft=draft)


def _forget_unused(study: Study, *, kept: str) -> None:
    """Remove what was uploaded for this study, is not its start any more and stands in none of its versions."""
    used = {read_facts(each.data).pretrained for each in study.manifests.all()} | {kept}
    for row in UploadedModel.objects.filter(study=study).exclude(digest__in=used - {None}):
        row.delete()
        elsewhere = UploadedModel.objects.filter(digest=row.digest), GlobalModel.objects.filter(digest=row.digest)
        if not any(rows.exists() for rows in elsewhere):
            model_path(row.digest).unlink(missing_ok=True)
