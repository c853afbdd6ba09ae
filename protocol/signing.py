"""DSSE envelopes, and the front door to what is signed: keys.py, passkeys.py and http_signatures.py are re-exported here.

A signature never covers bare bytes: an envelope's payload type is signed with it (DSSE's PAE), requests and answers
carry a tag, notes and cosignatures start with their own text. So no signature of one use can be taken for another's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.canonical import CanonicalError, b64, digest, unb64
from protocol.http_signatures import (
    VerifiedRequest,
    content_digest,
    sign_answer,
    sign_request,
    verify_answer,
    verify_request,
)
from protocol.keys import (
    BadSignature,
    ClockSkew,
    KeyFileError,
    MalformedEnvelope,
    SignatureError,
    SigningKey,
    UnknownKey,
    fingerprint,
    keyid,
    verify,
)
from protocol.passkeys import MAX_AUTHENTICATOR_DATA, MAX_CLIENT_DATA, Assertion, Passkey

__all__ = [
    "Assertion",
    "BadSignature",
    "ClockSkew",
    "Envelope",
    "KeyFileError",
    "MalformedEnvelope",
    "Passkey",
    "SignatureError",
    "SigningKey",
    "UnknownKey",
    "VerifiedRequest",
    "content_digest",
    "fingerprint",
    "keyid",
    "pae",
    "sign_answer",
    "sign_envelope",
    "sign_request",
    "verify",
    "verify_answer",
    "verify_envelope",
    "verify_request",
]

MAX_SIGNATURES: Final = 64
_KEYID = re.compile(r"[0-9a-f]{64}")
_ASSERTION: Final = ("authenticator_data", "client_data")
_PAYLOAD_TYPE = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True)
class Envelope:
    """A DSSE envelope: bytes, what they are, and who signed both.

    payload_type: a media type, printable ASCII; signed together with the payload.
    payload: the exact bytes that were signed; parse them only after `verify_envelope`, and never write them anew.
    signatures: (keyid, raw signature) pairs, each keyid once.
    assertions: for each signature by a passkey (keyid, what the browser and the authenticator said).
    """

    payload_type: str
    payload: bytes = field(repr=False)
    signatures: tuple[tuple[str, bytes], ...]
    assertions: tuple[tuple[str, Assertion], ...] = ()

    @property
    def digest(self) -> str:
        """`sha256:..` of the payload, signatures not included."""
        return digest(self.payload)

    def as_dict(self) -> dict[str, Any]:
        """As JSON: {"payloadType", "payload", "signatures": [{"keyid", "sig"}]}, bytes in standard base64.

        A passkey's signature has also "authenticator_data" and "client_data".
        """
        said = dict(self.assertions)
        return {
            "payloadType": self.payload_type,
            "payload": b64(self.payload),
            "signatures": [
                {"keyid": name, "sig": b64(signature)}
                | (
                    {
                        "authenticator_data": b64(said[name].authenticator_data),
                        "client_data": b64(said[name].client_data),
                    }
                    if name in said
                    else {}
                )
                for name, signature in self.signatures
            ],
        }

    @classmethod
    def from_dict(cls, value: object) -> Envelope:
        """Read what `as_dict` writes: no other key, 1 to MAX_SIGNATURES signatures, no keyid twice.

        Raises: MalformedEnvelope naming the field. Nothing is verified here.
        """
        fields = _fields(value, {"payloadType", "payload", "signatures"}, "envelope")
        payload_type, items = fields["payloadType"], fields["signatures"]
        if not isinstance(payload_type, str) or _PAYLOAD_TYPE.fullmatch(payload_type) is None:
            raise MalformedEnvelope("envelope.payloadType: must be 1 to 200 printable ASCII characters without spaces")
        if not isinstance(items, list) or not 1 <= len(items) <= MAX_SIGNATURES:
            raise MalformedEnvelope(f"envelope.signatures: must be a list of 1 to {MAX_SIGNATURES} signatures")
        signatures, assertions = [], []
        for index, item in enumerate(items):
            where = f"envelope.signatures[{index}]"
            by_passkey = isinstance(item, dict) and "client_data" in item
            one = _fields(item, {"keyid", "sig", *(_ASSERTION if by_passkey else ())}, where)
            name = one["keyid"]
            if not isinstance(name, str) or _KEYID.fullmatch(name) is None:
                raise MalformedEnvelope(f"{where}.keyid: must be 64 lower hex digits")
            signatures.append((name, _bytes(one["sig"], f"{where}.sig")))
            if by_passkey:
                assertions.append((name, _assertion(one, where)))
        if len({name for name, _ in signatures}) != len(signatures):
            raise MalformedEnvelope("envelope.signatures: a keyid stands twice")
        return cls(payload_type, _bytes(fields["payload"], "envelope.payload"), tuple(signatures), tuple(assertions))

    def joined(self, other: Envelope) -> Envelope:
        """The same bytes with the signatures of both. Raises: MalformedEnvelope where the bytes differ or a key signed
        both."""
        if (other.payload_type, other.payload) != (self.payload_type, self.payload):
            raise MalformedEnvelope("the two envelopes hold different things")
        if {name for name, _ in self.signatures} & {name for name, _ in other.signatures}:
            raise MalformedEnvelope("this key has signed the envelope already")
        return Envelope(
            self.payload_type,
            self.payload,
            self.signatures + other.signatures,
            self.assertions + other.assertions,
        )


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: "DSSEv1" len(type) type len(payload) payload, one space between, in bytes."""
    name = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, key: SigningKey) -> Envelope:
    """`payload` in an envelope with one signature, of `key`.

    Raises: MalformedEnvelope for a payload type that `Envelope.from_dict` would refuse.
    """
    if _PAYLOAD_TYPE.fullmatch(payload_type) is None:
        raise MalformedEnvelope("payload type: must be 1 to 200 printable ASCII characters without spaces")
    return Envelope(payload_type, payload, ((key.keyid, key.sign(pae(payload_type, payload))),))


def verify_envelope(
    envelope: Envelope, *, payload_type: str, keys: Mapping[str, bytes | Passkey], threshold: int = 1
) -> frozenset[str]:
    """Who of `keys` signed this envelope as `payload_type`.

    Verification:
      1. The threshold is at least one: no condition is no verification.
      2. The envelope is of the type that the caller expects.
      3. Each signature by a key of `keys` is over exactly this type and payload, by a passkey with what it asserts and
      by another key without; others are passed over.
      4. At least `threshold` distinct keys signed.

    Parameters: keys: keyid -> 32 public bytes, or a passkey. Returns: the distinct keyids that verified.
    Raises: BadSignature where a known key's signature fails, UnknownKey where too few known keys signed, SignatureError
    for another type; ValueError for a threshold below one or a key filed under another's id (the caller's mistakes).
    """
    # 1
    if threshold < 1:
        raise ValueError(f"a threshold of {threshold} verifies nothing")
    # 2
    if envelope.payload_type != payload_type:
        raise SignatureError(f"the envelope is of type {envelope.payload_type}, expected {payload_type}")
    # 3
    message = pae(envelope.payload_type, envelope.payload)
    assertions = dict(envelope.assertions)
    verified = set()
    for name, signature in envelope.signatures:
        key = keys.get(name)
        if key is None:
            continue
        if (key.keyid if isinstance(key, Passkey) else keyid(key)) != name:
            raise ValueError(f"the key filed under {name} is another key")
        try:
            _verify_one(key, signature, assertions.get(name), message)
        except BadSignature as error:
            raise BadSignature(f"signature by {name}: {error}") from None
        verified.add(name)
    # 4
    if len(verified) < threshold:
        raise UnknownKey(f"{len(verified)} of {threshold} needed signatures are by keys that are known here")
    return frozenset(verified)


def _verify_one(key: bytes | Passkey, signature: bytes, assertion: Assertion | None, message: bytes) -> None:
    if isinstance(key, Passkey):
        if assertion is None:
            raise BadSignature("a passkey's signature comes with authenticator_data and client_data")
        key.verify(signature, assertion, message)
        return
    if assertion is not None:
        raise BadSignature("this key is no passkey, so authenticator_data and client_data do not belong here")
    verify(key, signature, message)


def _assertion(fields: dict[str, Any], where: str) -> Assertion:
    found = Assertion(*(_bytes(fields[name], f"{where}.{name}") for name in _ASSERTION))
    if len(found.authenticator_data) > MAX_AUTHENTICATOR_DATA or len(found.client_data) > MAX_CLIENT_DATA:
        raise MalformedEnvelope(
            f"{where}: at most {MAX_AUTHENTICATOR_DATA} bytes of authenticator_data and {MAX_CLIENT_DATA} of client_data"
        )
    return found


def _fields(value: object, names: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise MalformedEnvelope(f"{where}: must be an object with exactly {', '.join(sorted(names))}")
    return value


def _bytes(text: object, where: str) -> bytes:
    try:
        return unb64(text)
    except CanonicalError as error:
        raise MalformedEnvelope(f"{where}: {error}") from None
