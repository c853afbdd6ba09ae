"""What the portal says when it announces a round: read strictly, believed by nobody until the gate has checked it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.canonical import CanonicalError, is_digest, unb64
from protocol.secure_aggregation.parameters import RoundParameters
from protocol.signing import Envelope, SignatureError
from silo_node.errors import Refused

PURPOSES: Final = ("initial", "train", "evaluate")
_STUDY: Final = re.compile(r"st-[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True)
class Origin:
    """The attempt in which a model was made: by which manifest, and of which model (None for the first)."""

    manifest: str
    number: int
    attempt: int
    model: str | None


@dataclass(frozen=True)
class Announcement:
    """One announced attempt.

    id: `{study}.{number}.{attempt}`, as in addresses. manifest: digest. model: digest of the model that goes in, None in
    the round that makes the first. purpose: initial, train or evaluate. record: bytes of the log's record of this
    hospital's approval; proof: its `.tlog-proof`. states: signed digests of the model; origin: the attempt whose context
    they name, None where there is no model or the portal does not say. raw: as received, to keep.
    """

    id: str
    study: str
    manifest: str
    number: int
    attempt: int
    model: str | None
    purpose: str
    record: bytes = field(repr=False)
    proof: str = field(repr=False)
    states: tuple[Envelope, ...] = field(repr=False)
    origin: Origin | None
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Announcement:
        """Read an assignment of kind `announce`. Raises: Refused (BAD_ANNOUNCEMENT) naming the field."""
        number = _whole(value, "number")
        attempt = _whole(value, "attempt")
        study, manifest, model, purpose = (value.get(name) for name in ("study", "manifest", "model", "purpose"))
        if not isinstance(study, str) or not _STUDY.fullmatch(study):
            raise _bad("study")
        if value.get("round") != f"{study}.{number}.{attempt}":
            raise _bad("round")
        if not is_digest(manifest):
            raise _bad("manifest")
        if purpose not in PURPOSES:
            raise _bad("purpose")
        if (purpose == "initial") != (model is None) or not (model is None or is_digest(model)):
            raise _bad("model")
        if (purpose == "initial") != (number == 0):
            raise _bad("number")
        try:
            record = unb64(value.get("record"))
            states = tuple(Envelope.from_dict(item) for item in value.get("states") or ())
        except (CanonicalError, SignatureError, TypeError):
            raise _bad("record or states") from None
        proof = value.get("proof")
        if not isinstance(proof, str):
            raise _bad("proof")
        return cls(
            id=f"{study}.{number}.{attempt}",
            study=study,
            manifest=str(manifest),
            number=number,
            attempt=attempt,
            model=model,
            purpose=str(purpose),
            record=record,
            proof=proof,
            states=states,
            origin=_origin(value.get("origin")),
            raw=dict(value),
        )


def context(study: str, manifest: str, number: int, attempt: int, model: str | None) -> str:
    """ctx of an attempt, 64 hex digits; no more is needed for it than these. Raises: ValueError."""
    facts = RoundParameters(
        study=study,
        manifest=manifest,
        round=number,
        attempt=attempt,
        model=model,
        participants={},
        min_roster=3,
        min_participants=2,
        words=0,
        tail=1,
    )
    return facts.ctx.hex()


def _origin(value: object) -> Origin | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _bad("origin")
    manifest, model = value.get("manifest"), value.get("model")
    if not is_digest(manifest) or not (model is None or is_digest(model)):
        raise _bad("origin")
    return Origin(str(manifest), _whole(value, "number"), _whole(value, "attempt"), model)


def _whole(value: Mapping[str, Any], name: str) -> int:
    found = value.get(name)
    if type(found) is not int or not 0 <= found < 2**31:
        raise _bad(name)
    return found


def _bad(name: str) -> Refused:
    return Refused(
        "BAD_ANNOUNCEMENT", f"The announcement's {name} is not what it must be; the portal has to correct it."
    )
