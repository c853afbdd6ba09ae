"""Passkeys (WebAuthn) as stewards' keys, verified offline: an assertion whose challenge is the SHA-256 of what is signed.

The public key is kept as it is needed, {alg, public}, so that nobody who verifies has to read CBOR. Its keyid is the
SHA-256 of the COSE key, whose bytes in CTAP2's canonical form follow from alg and public (`cose_key`).

WebAuthn signs no text that a person sees. What the person saw is as honest as the page that showed it: that is why the
page's origin is pinned with the key, and why a key that is used on a page of the portal is marked as such.

Source: W3C Web Authentication Level 3, sections 5.8.1 (client data), 6.1 (authenticator data), 7.2 (verification).
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from protocol.keys import PUBLIC_BYTES, BadSignature, verify

Algorithm = Literal["ES256", "EdDSA"]
POINT_BYTES: Final = 65
"""A point of P-256, not compressed: 04, x, y."""
MAX_CREDENTIAL_BYTES: Final = 1023
MAX_AUTHENTICATOR_DATA: Final = 1024
MAX_CLIENT_DATA: Final = 4096

_PRESENT, _VERIFIED, _ATTESTED, _EXTENDED = 0x01, 0x04, 0x40, 0x80
_HEAD = 37
_ORIGIN = re.compile(r"(https://[a-z0-9.-]+|http://localhost)(:[1-9][0-9]{0,4})?")
_RP_ID = re.compile(r"localhost|(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Assertion:
    """What comes with a passkey's signature.

    authenticator_data: hash of the relying party's name, flags, counter. client_data: the browser's JSON, exact bytes.
    """

    authenticator_data: bytes = field(repr=False)
    client_data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey's public half and where it may be used.

    public: for ES256 the 65 bytes of the point, for EdDSA 32 bytes. credential: its id, by which the browser finds it.
    rp_id: the name it is bound to. origin: the one page that counts, as the browser writes it.
    Raises: ValueError naming the field.
    """

    alg: Algorithm
    public: bytes
    credential: bytes
    rp_id: str
    origin: str

    def __post_init__(self) -> None:
        _check_public(self.alg, self.public)
        if not 1 <= len(self.credential) <= MAX_CREDENTIAL_BYTES:
            raise ValueError(f"credential: must be 1 to {MAX_CREDENTIAL_BYTES} bytes")
        if _RP_ID.fullmatch(self.rp_id) is None:
            raise ValueError("rp_id: must be a host's name in lower case, no address in numbers")
        if _ORIGIN.fullmatch(self.origin) is None:
            raise ValueError("origin: must be https://NAME, or http://localhost, with a port where it has one")
        host = urlsplit(self.origin).hostname or ""
        if host != self.rp_id and not host.endswith("." + self.rp_id):
            raise ValueError("origin: must be a page of rp_id")

    @property
    def keyid(self) -> str:
        """SHA-256 of the COSE key, 64 lower hex digits."""
        return hashlib.sha256(cose_key(self.alg, self.public)).hexdigest()

    def verify(self, signature: bytes, assertion: Assertion, message: bytes) -> None:
        """Check that this passkey signed exactly `message`, on its own page, with the person verified.

        Verification:
          1. The browser's note is of an assertion, over SHA-256 of `message`, made on the pinned origin, not in a frame
          of another page.
          2. The authenticator's note is for rp_id, and says that a person was there and was verified.
          3. The signature is over both.
        The counter is not looked at: passkeys that are synchronised have none, and no order of uses is promised.
        Raises: BadSignature.
        """
        # 1
        told = _client_data(assertion.client_data)
        if told.get("type") != "webauthn.get":
            raise BadSignature("the browser's note is not of a signature with a passkey")
        if told.get("challenge") != challenge_text(message):
            raise BadSignature("the passkey signed something else")
        if told.get("origin") != self.origin:
            raise BadSignature("the passkey was used on another page than the pinned one")
        if told.get("crossOrigin", False) is not False or "topOrigin" in told:
            raise BadSignature("the passkey was used inside another page")
        # 2
        data = assertion.authenticator_data
        if not _HEAD <= len(data) <= MAX_AUTHENTICATOR_DATA:
            raise BadSignature(f"authenticator data have {_HEAD} to {MAX_AUTHENTICATOR_DATA} bytes, not {len(data)}")
        flags = data[32]
        if len(data) > _HEAD and not flags & (_ATTESTED | _EXTENDED):
            raise BadSignature("authenticator data are longer than their flags say")
        if data[:32] != hashlib.sha256(self.rp_id.encode()).digest():
            raise BadSignature("the passkey was used for another name than the pinned one")
        if not flags & _PRESENT or not flags & _VERIFIED:
            raise BadSignature("the passkey was used without verifying the person (PIN, finger or face)")
        # 3
        signed = data + hashlib.sha256(assertion.client_data).digest()
        if self.alg == "EdDSA":
            verify(self.public, signature, signed)
            return
        try:
            _point(self.public).verify(signature, signed, ECDSA(SHA256()))
        except InvalidSignature:
            raise BadSignature("the signature does not fit the message and this passkey") from None


def challenge(message: bytes) -> bytes:
    """What the page gives the browser to sign for `message` (DSSE's PAE): its SHA-256, 32 bytes."""
    return hashlib.sha256(message).digest()


def challenge_text(message: bytes) -> str:
    """`challenge` as the browser writes it: base64url without padding, 43 characters."""
    return urlsafe_b64encode(challenge(message)).rstrip(b"=").decode()


def cose_key(alg: Algorithm, public: bytes) -> bytes:
    """The COSE key (RFC 9053) in CTAP2's canonical CBOR. Raises: ValueError for a public key of another form."""
    _check_public(alg, public)
    if alg == "EdDSA":
        # {1: 1 (OKP), 3: -8 (EdDSA), -1: 6 (Ed25519), -2: x}
        return bytes.fromhex("a4010103272006215820") + public
    # {1: 2 (EC2), 3: -7 (ES256), -1: 1 (P-256), -2: x, -3: y}
    return bytes.fromhex("a5010203262001215820") + public[1:33] + bytes.fromhex("225820") + public[33:]


def _check_public(alg: str, public: bytes) -> None:
    if alg == "ES256":
        if len(public) != POINT_BYTES or public[0] != 4:
            raise ValueError(f"public: an ES256 key is a point in {POINT_BYTES} bytes that begin with 04")
        _point(public)
    elif alg == "EdDSA":
        if len(public) != PUBLIC_BYTES:
            raise ValueError(f"public: an EdDSA key has {PUBLIC_BYTES} bytes")
    else:
        raise ValueError("alg: must be ES256 or EdDSA")


def _point(public: bytes) -> EllipticCurvePublicKey:
    try:
        return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), public)
    except ValueError:
        raise ValueError("public: is no point of the curve P-256") from None


def _client_data(data: bytes) -> dict[str, Any]:
    """The browser's JSON object. Raises: BadSignature, also where a name stands twice: two readers must read the same."""
    if len(data) > MAX_CLIENT_DATA:
        raise BadSignature(f"client data have {MAX_CLIENT_DATA} bytes at most")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise BadSignature("client data are not JSON in which each name stands once") from None
    if not isinstance(value, dict):
        raise BadSignature("client data are not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice")
    return value
