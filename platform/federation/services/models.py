"""Files of global models: kept under their digest, read in blocks, never held whole in memory."""

from __future__ import annotations

import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from django.db.models import Q

from federation import conf
from federation.models import GlobalModel, Round
from federation.services.errors import Refused, not_yours
from federation.services.importing import state_blocks
from federation.storage import AtomicFile, model_path
from organisations.models import Silo
from protocol.canonical import is_digest
from protocol.model_state import Front, ModelState, read_front

PIECE = 4 << 20
"""Bytes of one piece of a model on the wire."""


@lru_cache(maxsize=8)
def front_of(digest: str) -> Front:
    """The front of a model that is stored under its digest, so that it never changes. Raises StateError, OSError."""
    return read_front(model_path(digest))


def model_keep(*, item: Round, digest: str, length: int, states: list[dict[str, Any]]) -> GlobalModel:
    """The row of a model whose file is stored: the next number of its study, with the t signatures on its digest."""
    newest = (
        GlobalModel.objects.filter(study=item.study_id).order_by("-number").values_list("number", flat=True).first()
    )
    path = model_path(digest)
    return GlobalModel.objects.create(
        study_id=item.study_id,
        digest=digest,
        number=0 if newest is None else newest + 1,
        round=item,
        length=length,
        size=path.stat().st_size,
        path=path.name,
        states=states,
    )


def model_upload(*, file: BinaryIO) -> str:
    """Store a pretrained model, a raw state or safetensors, as a raw state; returns the digest that a manifest names.

    Raises StateError for bytes that are neither, StorageFull.
    """
    staging = conf.model_folder() / f".upload-{secrets.token_hex(8)}"
    try:
        with AtomicFile(staging) as incoming:
            for block in state_blocks(file):
                incoming.write(block)
            incoming.keep()
        ModelState.load(staging)
        staging.replace(model_path(incoming.digest))
    finally:
        staging.unlink(missing_ok=True)
    return incoming.digest


def model_for(*, digest: str, silo: Silo) -> tuple[Path, int]:
    """The file of a model and its size, for a silo that was asked to take part in a round which it went into or came of.

    A hospital that has left a study gets none of the models that came after, though their digests are public.
    Raises Refused (NOT_YOUR_STUDY).
    """
    digest = digest if digest.startswith("sha256:") else f"sha256:{digest}"
    if not is_digest(digest):
        raise Refused("BAD_MESSAGE", "A model is named by its digest: 64 hex digits, with or without 'sha256:' before.")
    known = Round.objects.filter(
        Q(model_digest=digest) | Q(next_model_digest=digest), seats__silo=silo
    ).exists() or _pretrained_for(digest, silo)
    path = model_path(digest)
    if not known or not path.exists():
        raise not_yours("This model")
    return path, path.stat().st_size


def _pretrained_for(digest: str, silo: Silo) -> bool:
    from federation.services.facts import facts_of
    from federation.services.pretrained import pretrained_path

    rounds = Round.objects.filter(seats__silo=silo, newest=True).values_list("study", "manifest_digest")
    return any(
        facts_of(manifest).pretrained == digest and pretrained_path(study=study, digest=digest)
        for study, manifest in rounds
    )
