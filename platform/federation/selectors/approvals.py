"""Which silos may be asked for a manifest: active, and their hospital's newest complete decision is to approve."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from evidence.services import NotPublished, proof_for
from governance.models import Approval, Manifest
from organisations.models import SiloState
from protocol.canonical import b64
from protocol.signing import keyid


def approved_silos(manifest: Manifest, participants: Mapping[str, bytes]) -> dict[str, Any]:
    """name -> primary key of every silo that approves this manifest now and still has the key that stands in it.

    The portal's view only: each silo checks its own approval again before every round. `participants`: silo -> public
    key (32 bytes), from the manifest.
    """
    return {
        name: pk for name, (pk, key) in _approving(manifest, participants).items() if key == keyid(participants[name])
    }


def silos_rekeyed(manifest: Manifest, participants: Mapping[str, bytes]) -> list[str]:
    """Silos that approve this manifest and have another key now than stands in it."""
    found = _approving(manifest, participants)
    return sorted(name for name, (_, key) in found.items() if key != keyid(participants[name]))


def _approving(manifest: Manifest, participants: Mapping[str, bytes]) -> dict[str, tuple[Any, str]]:
    """name -> (primary key, keyid) of every active silo whose newest complete decision is to approve."""
    newest: dict[str, tuple[Any, str, str, str]] = {}
    rows = (
        Approval.objects.filter(manifest=manifest, complete=True)
        .order_by("received_at", "pk")
        .values_list("silo__name", "silo_id", "silo__state", "silo__keyid", "decision")
    )
    for name, *facts in rows:
        newest[name] = tuple(facts)  # type: ignore[assignment]
    return {
        name: (pk, key)
        for name, (pk, state, key, decision) in newest.items()
        if state == SiloState.ACTIVE and decision == "approve" and name in participants
    }


_proofs: dict[Any, tuple[float, tuple[str, str]]] = {}
PROOF_SECONDS = 60.0


def approval_proof(manifest: Any, silo: str) -> tuple[str, str] | None:
    """(record in base64, proof text) that this silo's newest approval of the manifest stands in the published log.

    None where it is not published yet: the silo then asks again. Kept for a minute: a proof in a checkpoint that is a
    minute old proves the same. `manifest`: primary key.
    """
    approvals = Approval.objects.filter(manifest_id=manifest, silo__name=silo, complete=True, decision="approve")
    newest = approvals.order_by("-received_at").values_list("pk", flat=True).first()
    if newest is None:
        return None
    now = time.monotonic()
    kept = _proofs.get(newest)
    if kept is not None and kept[0] > now - PROOF_SECONDS:
        return kept[1]
    try:
        record, proof = proof_for(approvals.select_related("entry").get(pk=newest).entry)
    except NotPublished:
        return None
    while len(_proofs) >= 4096:
        _proofs.pop(next(iter(_proofs)), None)
    _proofs[newest] = (now, (b64(record), proof))
    return _proofs[newest][1]
