"""What each hospital has decided on a manifest, from the approvals that came and the predictions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from governance.models import Approval, Manifest, MatchPrediction
from organisations.models import Silo
from protocol.manifest import parse_manifest


class Decision(StrEnum):
    """A hospital's standing decision. DENIED: its policy will say DENY, so it counts as decided. OTHER_KEY: it approved, and
    its silo has another key now than this version names, so it takes no part; a version with the new key is decided anew.
    """

    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    REVOKED = "revoked"
    DENIED = "denied"
    OTHER_KEY = "key changed"


@dataclass(frozen=True)
class HospitalDecision:
    """One participant's row on the study's page.

    match: PERMIT, REVIEW or DENY as predicted, None before a prediction. reasons: of the match. approval: the newest
    statement that counts, None where there is none. reason: of a rejection or revocation, in the steward's words.
    """

    silo: Silo
    weight: int
    decision: Decision
    match: str | None
    reasons: list[dict[str, Any]]
    approval: Approval | None
    reason: str
    at: datetime | None


def decisions_of(manifest: Manifest) -> list[HospitalDecision]:
    """One row a participant, in the manifest's order."""
    parsed = parse_manifest(manifest.data)
    silos = {
        silo.name: silo
        for silo in Silo.objects.filter(name__in=[item.silo for item in parsed.participants]).select_related(
            "organisation"
        )
    }
    predictions = {item.silo_id: item for item in manifest.predictions.all()}
    newest: dict[Any, Approval] = {}
    for approval in manifest.approvals.filter(complete=True).order_by("received_at"):
        newest[approval.silo_id] = approval
    named = parsed.public_keys()
    return [
        _row(
            silos[item.silo],
            item.weight,
            predictions.get(silos[item.silo].pk),
            newest.get(silos[item.silo].pk),
            named[item.silo],
        )
        for item in parsed.participants
    ]


def decision_of(manifest: Manifest, silo: Silo) -> HospitalDecision | None:
    """The row of one silo, None where it takes no part."""
    return next((row for row in decisions_of(manifest) if row.silo.pk == silo.pk), None)


def _row(
    silo: Silo, weight: int, prediction: MatchPrediction | None, approval: Approval | None, named: bytes
) -> HospitalDecision:
    if approval is not None:
        decision = {"approve": Decision.APPROVED, "reject": Decision.REJECTED, "revoke": Decision.REVOKED}[
            approval.decision
        ]
        if decision == Decision.APPROVED and silo.public != named:
            decision = Decision.OTHER_KEY
    elif prediction is not None and prediction.policy_id is not None and prediction.decision == "DENY":
        decision = Decision.DENIED
    else:
        decision = Decision.WAITING
    return HospitalDecision(
        silo=silo,
        weight=weight,
        decision=decision,
        match=prediction.decision if prediction else None,
        reasons=prediction.reasons if prediction else [],
        approval=approval,
        reason=approval.reason if approval else "",
        at=approval.received_at if approval else None,
    )
