"""A steward's statement about one exact study: its fields, how it is signed, and how it is opened.

A DSSE envelope of type APPROVAL_TYPE over canonical JSON. Whether statements together permit a study: approval.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from protocol.canonical import CanonicalError, b64, decode, encode, unb64
from protocol.data_use.document import KeyId, Time, parse_time
from protocol.manifest_fields import Digest, Part, Slug
from protocol.signing import Envelope, SignatureError, SigningKey, UnknownKey, sign_envelope, verify_envelope
from protocol.trust import STEWARD, ApprovalError, Trust

APPROVAL_TYPE: Final = "application/vnd.consilium.approval+json"
SCHEMA: Final = "consilium/approval/1"
MAX_BYTES: Final = 65_536

MEANINGS: Final = {
    "approve": "I decide for this hospital that this exact study may use its data, within these limits and dates.",
    "reject": "I decide for this hospital that this study may not use its data.",
    "revoke": "I take back this hospital's approval of this study: from the next round on it may not use its data.",
}
"""What a signature means, inside what is signed."""


def _nonce(text: str) -> str:
    try:
        size = len(unb64(text))
    except CanonicalError as error:
        raise ValueError(f"must be base64 ({error})") from None
    if size != 16:
        raise ValueError("must be 16 bytes in base64")
    return text


class ApprovalLimits(Part):
    """What a steward allows at most: privacy loss in millionths, rounds; and the fewest patients that must take "
    "part."""

    epsilon_micro: int = Field(ge=0)
    max_rounds: int = Field(ge=1)
    min_cohort: int = Field(ge=1)


class Signer(Part):
    """Who signs: name and role as in trust.json, and the key."""

    name: str = Field(min_length=1, max_length=200)
    role: Literal["steward"]
    keyid: KeyId


class Statement(Part):
    """What a steward signs."""

    schema_: Literal["consilium/approval/1"] = Field(alias="schema")
    decision: Literal["approve", "reject", "revoke"]
    meaning: str = Field(min_length=1, max_length=1000)
    reason: str = Field(max_length=4000)
    silo: Slug
    study: str = Field(min_length=1, max_length=70)
    manifest: Digest
    policy: Digest
    match: Digest
    limits: ApprovalLimits
    not_before: Time
    not_after: Time
    nonce: Annotated[str, AfterValidator(_nonce)]
    signer: Signer
    time: Time

    @model_validator(mode="after")
    def _check_window(self) -> Statement:
        if parse_time(self.not_after) <= parse_time(self.not_before):
            raise ValueError("not_after: must be later than not_before")
        return self


def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC with Z, whole seconds. Raises ValueError for a time without a zone."""
    return aware(moment).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def draft_statement(
    signer: str,
    trust: Trust,
    *,
    decision: Literal["approve", "reject", "revoke"],
    reason: str,
    silo: str,
    study: str,
    manifest: str,
    policy: str,
    match: str,
    limits: ApprovalLimits,
    not_before: datetime,
    not_after: datetime,
    now: datetime,
    after: Iterable[Statement] = (),
) -> bytes:
    """The canonical bytes of a decision, to be signed with the key `signer`. Name and role come from trust.json.

    Parameters: signer: keyid. manifest, policy, match: digests. after: statements that this one answers: it is dated
    after all of them, so that a revocation ends them even where a clock was wrong.
    Raises: ApprovalError(APPROVAL_SIGNATURE) where trust.json does not know the key; ApprovalError(APPROVAL_FORM).
    """
    known = trust.keys.get(signer)
    if known is None:
        raise ApprovalError("APPROVAL_SIGNATURE", "This key does not stand in the hospital's trust.json.")
    moment = max([aware(now), *(parse_time(other.time) + timedelta(seconds=1) for other in after)])
    payload = encode(
        {
            "schema": SCHEMA,
            "decision": decision,
            "meaning": MEANINGS[decision],
            "reason": reason,
            "silo": silo,
            "study": study,
            "manifest": manifest,
            "policy": policy,
            "match": match,
            "limits": limits.model_dump(),
            "not_before": utc_text(not_before),
            "not_after": utc_text(not_after),
            "nonce": b64(os.urandom(16)),
            "signer": {"name": known.person, "role": known.role, "keyid": signer},
            "time": utc_text(moment),
        }
    )
    parse_statement(payload)
    return payload


def sign_statement(key: SigningKey, trust: Trust, **fields: Any) -> Envelope:
    """A decision signed with a steward's key. Parameters and errors: those of `draft_statement`."""
    return sign_envelope(APPROVAL_TYPE, draft_statement(key.keyid, trust, **fields), key)


def parse_statement(payload: bytes) -> Statement:
    """The statement in a payload whose signature was verified before. Raises ApprovalError(APPROVAL_FORM)."""
    if len(payload) > MAX_BYTES:
        raise ApprovalError("APPROVAL_FORM", f"A statement is {MAX_BYTES} bytes at most, this one has {len(payload)}.")
    try:
        decode(payload)
        return Statement.model_validate_json(payload)
    except CanonicalError as error:
        raise ApprovalError("APPROVAL_FORM", f"The statement is not canonical JSON: {error}.") from None
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(step) for step in problem['loc']) or 'statement'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise ApprovalError(
            "APPROVAL_FORM", f"The statement does not fit {SCHEMA}: {'; '.join(problems[:5])}."
        ) from None


def open_statement(envelope: Envelope, *, trust: Trust) -> Statement:
    """The statement in an envelope.

    Verification:
      1. A key of the hospital's trust.json signed these bytes as an approval.
      2. They are a statement.
      3. It names that key, and the name and role that trust.json gives it.
    Raises: ApprovalError, APPROVAL_SIGNATURE or APPROVAL_FORM. Whether the key is still valid is for the caller to ask.
    """
    # 1
    try:
        signers = verify_envelope(
            envelope, payload_type=APPROVAL_TYPE, keys=trust.publics(STEWARD, on_portal_page=True)
        )
    except UnknownKey as error:
        raise ApprovalError(
            "APPROVAL_SIGNATURE", "The statement is not signed with a key of the hospital's trust.json."
        ) from error
    except SignatureError as error:
        raise ApprovalError("APPROVAL_SIGNATURE", f"The statement's signature is not valid: {error}.") from error
    # 2
    statement = parse_statement(envelope.payload)
    # 3
    key = trust.keys.get(statement.signer.keyid)
    if key is None or statement.signer.keyid not in signers:
        raise ApprovalError("APPROVAL_SIGNATURE", "The statement names another key than the one that signed it.")
    if (statement.signer.name, statement.signer.role) != (key.person, key.role):
        raise ApprovalError("APPROVAL_SIGNATURE", "The statement names another person than the key's in trust.json.")
    return statement


def aware(moment: datetime) -> datetime:
    """`moment` itself. Raises ValueError where it has no time zone."""
    if moment.tzinfo is None:
        raise ValueError("a time must have a time zone")
    return moment
