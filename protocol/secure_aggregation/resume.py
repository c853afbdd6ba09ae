"""A steward's signed resume after a silo paused a study: it says which lists it looked at, so it counts once.

What the steward is told before signing: each further list for the same model state gives a portal that plays false one
more chance to learn the difference of two sums, which is the update of a hospital that is in one of them only. So does
training again from an older model, which gives nearly the same updates again: going `back` to one is signed in the same way.
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
from protocol.signing import Envelope, Passkey, SignatureError, SigningKey, sign_envelope, verify_envelope

PAYLOAD_TYPE: Final = "application/vnd.consilium.resume+json"
SCHEMA: Final = "consilium/resume/2"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELDS: Final = {"schema", "silo", "study", "model", "lists", "unmasked", "back", "reason"}
_BACK: Final = {"round", "attempt", "returns"}


@dataclass(frozen=True, kw_only=True)
class Resume:
    """What a steward signs. `lists`, `unmasked`: `StudyLedger.counts` when the steward looked.

    `back`: `StudyLedger.front` then, where the study goes back from there to `model`, which is older; else None.
    """

    silo: str
    study: str
    model: str
    lists: int
    unmasked: int
    back: Mapping[str, int] | None = None
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
                "back": None if self.back is None else dict(self.back),
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
            _check_whole(name, value[name])
        if value["back"] is not None:
            if not isinstance(value["back"], dict) or value["back"].keys() != _BACK:
                raise ProtocolViolation("BAD_RESUME", f"resume.back: must be null, or {', '.join(sorted(_BACK))}")
            for name, number in value["back"].items():
                _check_whole(f"back.{name}", number)
        if not isinstance(value["reason"], str) or not value["reason"].strip():
            raise ProtocolViolation("BAD_RESUME", "resume.reason: must say why")
        del value["schema"]
        return cls(**value)


def sign_resume(statement: Resume, key: SigningKey) -> Envelope:
    """A steward's signature under a resume."""
    return sign_envelope(PAYLOAD_TYPE, statement.to_payload(), key)


def resume(
    journal: Journal,
    envelope: Envelope,
    *,
    silo: str,
    study: str,
    stewards: Mapping[str, bytes | Passkey],
    threshold: int = 1,
) -> Resume:
    """Let a paused study go on.

    1. `threshold` stewards' signatures   2. for this silo and study   3. of the lists as they are now, and of the newest
    model where it goes back from that, so that one statement resumes once   4. into the journal; a crash between the two
    rows leaves the study where it was, and the statement is taken up again

    Parameters:
        stewards: keyid -> public key (32 bytes) or passkey of the stewards whom this hospital trusts now.

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
    counts, back = ledger.counts(statement.model), statement.back
    used = ledger.resumed_at(statement.model) == counts if back is None else ledger.front() != back
    if counts != {"lists": statement.lists, "unmasked": statement.unmasked} or used:
        raise ProtocolViolation(
            "STALE_RESUME",
            f"resume: it was signed over {statement.lists} lists, of which {statement.unmasked} were unmasked; "
            f"now there are {counts['lists']} and {counts['unmasked']}, or they were resumed already"
            + ("" if back is None else ", or the study has gone on or back since"),
        )
    # 4
    ledger.resume(statement.model, envelope.digest)
    if back is not None:
        ledger.go_back(statement.model, envelope.digest)
    return statement


def _check_whole(name: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise ProtocolViolation("BAD_RESUME", f"resume.{name}: must be a whole number of at least 0")
