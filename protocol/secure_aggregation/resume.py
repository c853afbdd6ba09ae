"""A steward's signed resume after a silo paused a study: it says which lists it looked at, so it counts once.

What the steward is told before signing: each further list for the same model state gives a portal that plays false one
more chance to learn the difference of two sums, which is the update of a hospital that is in one of them only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from protocol import canonical
from protocol.canonical import CanonicalError
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import Journal, StudyLedger
from protocol.signing import Envelope, SignatureError, SigningKey, sign_envelope, verify_envelope

PAYLOAD_TYPE: Final = "application/vnd.consilium.resume+json"
SCHEMA: Final = "consilium/resume/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELDS: Final = {"schema", "silo", "study", "model", "lists", "unmasked", "reason"}


@dataclass(frozen=True, kw_only=True)
class Resume:
    """What a steward signs. `lists`, `unmasked`: `StudyLedger.counts` when the steward looked."""

    silo: str
    study: str
    model: str
    lists: int
    unmasked: int
    reason: str

    def to_payload(self) -> bytes:
        """Canonical bytes."""
        return canonical.encode(
            {
                "schema": SCHEMA,
                "silo": self.silo,
                "study": self.study,
                "model": self.model,
                "lists": self.lists,
                "unmasked": self.unmasked,
                "reason": self.reason,
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> Resume:
        """Read canonical bytes. Raises: ProtocolViolation (BAD_RESUME)."""
        try:
            value = canonical.decode(payload)
        except CanonicalError as error:
            raise ProtocolViolation("BAD_RESUME", f"resume: {error}") from error
        if not isinstance(value, dict) or value.keys() != _FIELDS or value["schema"] != SCHEMA:
            raise ProtocolViolation(
                "BAD_RESUME", f"resume: must be an object with exactly {', '.join(sorted(_FIELDS))}"
            )
        for name in ("silo", "study"):
            if not isinstance(value[name], str) or not _NAME.fullmatch(value[name]):
                raise ProtocolViolation("BAD_RESUME", f"resume.{name}: must be a name")
        if not canonical.is_digest(value["model"]):
            raise ProtocolViolation("BAD_RESUME", "resume.model: must be a digest, sha256:<64 hex digits>")
        for name in ("lists", "unmasked"):
            if type(value[name]) is not int or value[name] < 0:
                raise ProtocolViolation("BAD_RESUME", f"resume.{name}: must be a whole number of at least 0")
        if not isinstance(value["reason"], str) or not value["reason"].strip():
            raise ProtocolViolation("BAD_RESUME", "resume.reason: must say why")
        del value["schema"]
        return cls(**value)


def sign_resume(statement: Resume, key: SigningKey) -> Envelope:
    """A steward's signature under a resume."""
    return sign_envelope(PAYLOAD_TYPE, statement.to_payload(), key)


def resume(
    journal: Journal, envelope: Envelope, *, silo: str, study: str, stewards: Mapping[str, bytes], threshold: int = 1
) -> Resume:
    """Let a paused study go on.

    1. `threshold` stewards' signatures   2. for this silo and study   3. of the lists as they are now, so that one
    statement resumes once   4. into the journal

    Parameters:
        stewards: keyid -> public key (32 bytes) of the stewards whom this hospital trusts now.

    Raises:
        ProtocolViolation: BAD_RESUME, STALE_RESUME.
    """
    # 1
    try:
        verify_envelope(envelope, payload_type=PAYLOAD_TYPE, keys=stewards, threshold=threshold)
    except SignatureError as error:
        raise ProtocolViolation("BAD_RESUME", f"resume: {error}") from error
    statement = Resume.parse(envelope.payload)
    # 2
    if (statement.silo, statement.study) != (silo, study):
        raise ProtocolViolation("BAD_RESUME", "resume: it is for another silo or study")
    # 3
    ledger = StudyLedger(journal, study)
    counts = ledger.counts(statement.model)
    if (
        counts != {"lists": statement.lists, "unmasked": statement.unmasked}
        or ledger.resumed_at(statement.model) == counts
    ):
        raise ProtocolViolation(
            "STALE_RESUME",
            f"resume: it was signed over {statement.lists} lists, of which {statement.unmasked} were unmasked; "
            f"now there are {counts['lists']} and {counts['unmasked']}, or they were resumed already",
        )
    # 4
    ledger.resume(statement.model, envelope.digest)
    return statement
