"""One silo key follows another: the old key says so, and the new one signs too, which proves that the silo holds it.

Canonical JSON, DSSE type ROTATION_TYPE, with both signatures:

    {"schema": "consilium/key-rotation/1", "silo": name, "before": base64, "after": base64, "time": "2026-11-25T08:00:00Z"}

No number is needed against a replay: whoever keeps the chain lets a key be followed once and never lets it return.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from protocol import canonical
from protocol.canonical import CanonicalError, b64, unb64
from protocol.signing import Envelope, SignatureError, SigningKey, keyid, sign_envelope, verify_envelope

ROTATION_TYPE: Final = "application/vnd.consilium.key-rotation+json"
_SCHEMA: Final = "consilium/key-rotation/1"
_FIELDS: Final = {"schema", "silo", "before", "after", "time"}
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_\-]{0,58}[a-z0-9])?")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class RotationError(ValueError):
    """Bytes that are no rotation, or one that both keys did not sign."""


@dataclass(frozen=True)
class KeyRotation:
    """silo: its name. before, after: Ed25519, 32 bytes each. time: UTC, whole seconds."""

    silo: str
    before: bytes
    after: bytes
    time: str

    def encode(self) -> bytes:
        """The canonical bytes."""
        return canonical.encode(
            {
                "schema": _SCHEMA,
                "silo": self.silo,
                "before": b64(self.before),
                "after": b64(self.after),
                "time": self.time,
            }
        )


def sign_rotation(rotation: KeyRotation, *, old: SigningKey, new: SigningKey) -> Envelope:
    """The statement with both signatures. Raises: RotationError where it would not be read again."""
    envelope = sign_envelope(ROTATION_TYPE, rotation.encode(), old)
    if new.keyid != old.keyid:
        envelope = envelope.joined(sign_envelope(ROTATION_TYPE, rotation.encode(), new))
    verify_rotation(envelope)
    return envelope


def verify_rotation(envelope: Envelope) -> KeyRotation:
    """What both keys signed. Whether `before` is the silo's key is for the caller. Raises: RotationError."""
    rotation = parse_rotation(envelope.payload)
    keys = {keyid(key): key for key in (rotation.before, rotation.after)}
    try:
        verify_envelope(envelope, payload_type=ROTATION_TYPE, keys=keys, threshold=2)
    except SignatureError as error:
        raise RotationError(f"both keys must sign: {error}") from error
    return rotation


def parse_rotation(payload: bytes) -> KeyRotation:
    """Raises: RotationError naming the field."""
    try:
        value = canonical.decode(payload)
    except CanonicalError as error:
        raise RotationError(str(error)) from error
    if not isinstance(value, dict) or set(value) != _FIELDS or value["schema"] != _SCHEMA:
        raise RotationError(f"must be {_SCHEMA} with exactly {', '.join(sorted(_FIELDS))}")
    if not isinstance(value["silo"], str) or not _NAME.fullmatch(value["silo"]):
        raise RotationError("silo: must be a silo's name")
    before, after = _key(value, "before"), _key(value, "after")
    if before == after:
        raise RotationError("after: must be another key than before")
    if not isinstance(value["time"], str) or not _TIME.fullmatch(value["time"]):
        raise RotationError("time: must be like 2026-11-25T08:00:00Z")
    try:
        datetime.fromisoformat(value["time"])
    except ValueError as error:
        raise RotationError("time: there is no such time") from error
    return KeyRotation(value["silo"], before, after, value["time"])


def _key(value: dict[str, object], name: str) -> bytes:
    try:
        key = unb64(value[name])
    except ValueError as error:
        raise RotationError(f"{name}: must be base64") from error
    if len(key) != 32:
        raise RotationError(f"{name}: must be an Ed25519 key of 32 bytes")
    return key
