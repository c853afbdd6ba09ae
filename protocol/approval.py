"""A steward's decision about one exact study, signed with a key that the portal never holds.

Each decision is a DSSE envelope of type APPROVAL_TYPE over a canonical JSON statement. k of n means k envelopes by
distinct people, with equal digests; the strictest limits hold; one revocation suffices. The silo checks all of it again
before every round, from the bytes that it holds.

A revocation or rejection ends every approval of that manifest dated up to its own time, whoever signed it; only
approvals signed later count again. It is valid even when its key is over by now: to stop is always allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from protocol.data_use.document import parse_time
from protocol.signing import Envelope, UnknownKey
from protocol.statement import (
    APPROVAL_TYPE,
    MEANINGS,
    ApprovalLimits,
    Signer,
    Statement,
    aware,
    draft_statement,
    open_statement,
    parse_statement,
    sign_statement,
    utc_text,
)
from protocol.trust import (
    STEWARD,
    TRUST_TYPE,
    ApprovalError,
    Trust,
    TrustedKey,
    TrustError,
    add_signature,
    first_trust,
    freeze_trust,
    open_trust,
)

__all__ = [
    "APPROVAL_TYPE",
    "MEANINGS",
    "ON_PORTAL_PAGE",
    "TRUST_TYPE",
    "ApprovalError",
    "ApprovalLimits",
    "Approved",
    "Signer",
    "Statement",
    "Trust",
    "TrustError",
    "TrustedKey",
    "add_signature",
    "check_approvals",
    "draft_statement",
    "first_trust",
    "freeze_trust",
    "open_statement",
    "open_trust",
    "parse_statement",
    "sign_statement",
    "utc_text",
]

ON_PORTAL_PAGE: Final = "decided on the portal's page"
"""Said wherever a decision is shown that was signed with a passkey on a page which the portal serves."""
CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far in the future a statement's own time may lie."""


@dataclass(frozen=True)
class Approved:
    """What the approvals together allow: the strictest limits, the time they share, and the digests that make it so.

    people: who approved. on_portal_page: those of them whose approval counts only as ON_PORTAL_PAGE says.
    """

    limits: ApprovalLimits
    not_before: datetime
    not_after: datetime
    digests: tuple[str, ...]
    people: tuple[str, ...]
    on_portal_page: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Held:
    statement: Statement
    digest: str
    key: TrustedKey


def check_approvals(
    envelopes: Sequence[Envelope],
    *,
    trust: Trust,
    silo: str,
    study: str,
    manifest: str,
    policy: str,
    match: str,
    now: datetime,
) -> Approved:
    """What the hospital's stewards allow for this study, now.

    Verification; each step names the first thing that is missing:
      1. There are statements at all.
      2. Each verifies with trust.json (open_statement); a damaged one refuses all, one by a key that left trust.json is
         passed over.
      3. They are addressed to this silo and study.
      4. They are about the manifest in hand.
      5. No revocation or rejection ended them.
      6. They were given for the policy in force and for what that policy says today.
      7. They are valid now, and not dated in the future.
      8. Their keys are valid now.
      9. As many distinct people signed as trust.json asks for.
     10. The strictest limits and the shortest time hold.

    Parameters: manifest, policy, match: digests of what the caller verified itself. now: with a time zone.
    Raises: ApprovalError with one of the codes APPROVAL_MISSING, _SIGNATURE, _FORM, _OTHER_SILO, _OTHER_MANIFEST,
    _REVOKED, _REJECTED, _OTHER_POLICY, _NOT_YET, _EXPIRED, _THRESHOLD.
    """
    aware(now)
    # 1
    if not envelopes:
        raise ApprovalError("APPROVAL_MISSING", "No steward of this hospital has decided about this study yet.")
    # 2
    held = _verified(envelopes, trust)
    # 3
    held = _keep(
        [item for item in held if (item.statement.silo, item.statement.study) == (silo, study)],
        "APPROVAL_OTHER_SILO",
        "The decisions at hand are for another hospital's silo or another study.",
    )
    # 4
    held = _keep(
        [item for item in held if item.statement.manifest == manifest],
        "APPROVAL_OTHER_MANIFEST",
        "The study was changed after it was approved: this is another version, which a steward must approve anew.",
    )
    # 5
    held = _not_ended(held)
    # 6
    held = _keep(
        [item for item in held if item.statement.policy == policy],
        "APPROVAL_OTHER_POLICY",
        "The hospital's policy has changed since the approval: a steward must approve the study under the new one.",
    )
    held = _keep(
        [item for item in held if item.statement.match == match],
        "APPROVAL_OTHER_POLICY",
        "The hospital's policy says something else to this study than when it was approved: a steward must look again.",
    )
    # 7
    held = _in_time(held, now)
    # 8
    held = _keep(
        [item for item in held if now < item.key.not_after],
        "APPROVAL_SIGNATURE",
        "The key that approved the study is no longer valid: approve again with one that is, or extend it in "
        "trust.json.",
    )
    # 9
    people = {item.key.person for item in held}
    needed = trust.roles[STEWARD]
    if len(people) < needed:
        raise ApprovalError(
            "APPROVAL_THRESHOLD",
            f"{len(people)} of the {needed} people whom this hospital asks for have approved the study.",
        )
    # 10
    limits = [item.statement.limits for item in held]
    return Approved(
        limits=ApprovalLimits(
            epsilon_micro=min(limit.epsilon_micro for limit in limits),
            max_rounds=min(limit.max_rounds for limit in limits),
            min_cohort=max(limit.min_cohort for limit in limits),
        ),
        not_before=max(parse_time(item.statement.not_before) for item in held),
        not_after=min([parse_time(item.statement.not_after) for item in held] + [item.key.not_after for item in held]),
        digests=tuple(sorted({item.digest for item in held})),
        people=tuple(sorted(people)),
        on_portal_page=tuple(sorted(people - {item.key.person for item in held if not item.key.on_portal_page})),
    )


def _verified(envelopes: Sequence[Envelope], trust: Trust) -> list[_Held]:
    held = []
    stranger: ApprovalError | None = None
    for envelope in envelopes:
        try:
            statement = open_statement(envelope, trust=trust)
        except ApprovalError as error:
            if not isinstance(error.__cause__, UnknownKey):
                raise
            stranger = error
            continue
        held.append(_Held(statement, envelope.digest, trust.keys[statement.signer.keyid]))
    if not held and stranger is not None:
        raise stranger
    return held


def _keep(held: list[_Held], code: str, sentence: str) -> list[_Held]:
    if not held:
        raise ApprovalError(code, sentence)
    return held


def _not_ended(held: list[_Held]) -> list[_Held]:
    ends = [item.statement for item in held if item.statement.decision != "approve"]
    approvals = [item for item in held if item.statement.decision == "approve"]
    if not ends:
        return approvals
    last = max(ends, key=lambda statement: (parse_time(statement.time), statement.decision == "revoke"))
    day = last.time[:10]
    if last.decision == "revoke":
        code, sentence = "APPROVAL_REVOKED", f"A steward of this hospital has taken back the approval on {day}."
    else:
        code, sentence = "APPROVAL_REJECTED", f"A steward of this hospital has rejected this study on {day}."
    return _keep(
        [item for item in approvals if parse_time(item.statement.time) > parse_time(last.time)], code, sentence
    )


def _in_time(held: list[_Held], now: datetime) -> list[_Held]:
    begun = _keep(
        [
            item
            for item in held
            if parse_time(item.statement.not_before) <= now and parse_time(item.statement.time) <= now + CLOCK_SKEW
        ],
        "APPROVAL_NOT_YET",
        f"The approval is valid from {min(item.statement.not_before for item in held)} on, or dated in the future; it "
        f"is now {utc_text(now)}.",
    )
    return _keep(
        [item for item in begun if now < parse_time(item.statement.not_after)],
        "APPROVAL_EXPIRED",
        f"The approval was valid until {max(item.statement.not_after for item in begun)}; it is now {utc_text(now)}. A "
        "steward can approve again.",
    )
