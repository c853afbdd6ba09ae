"""An authenticator and its browser in a few lines: makes passkeys, and answers as WebAuthn's JSON forms say.

Every part of an answer can be made wrong, to see it refused.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.canonical import b64
from protocol.passkeys import Algorithm, Assertion, Passkey, cose_key
from protocol.signing import Envelope, pae

PRESENT, VERIFIED, ATTESTED = 1, 4, 64


def web64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unweb64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class SoftwarePasskey:
    """One passkey, its private half from a number."""

    def __init__(
        self,
        number: int = 7,
        alg: Algorithm = "ES256",
        origin: str = "https://silo.example",
        rp_id: str = "silo.example",
    ) -> None:
        self.origin, self.rp_id, self.alg = origin, rp_id, alg
        self.credential = b"credential-%d" % number
        if alg == "ES256":
            self._point = derive_private_key(number, SECP256R1())
            self.public = self._point.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        else:
            self._edwards = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
            self.public = self._edwards.public_key().public_bytes_raw()

    @property
    def passkey(self) -> Passkey:
        return Passkey(self.alg, self.public, self.credential, self.rp_id, self.origin)

    def entry(self, person: str, **changes: Any) -> dict[str, Any]:
        """As it stands in trust.json."""
        return {
            "kind": "passkey",
            "alg": self.alg,
            "public": b64(self.public),
            "credential": b64(self.credential),
            "rp_id": self.rp_id,
            "origin": self.origin,
            "page": "silo",
            "role": "steward",
            "person": person,
            "not_after": "2028-01-01T00:00:00Z",
            **changes,
        }

    def client_data(self, over: str, **changes: Any) -> bytes:
        told = {"type": "webauthn.get", "challenge": over, "origin": self.origin, "crossOrigin": False, **changes}
        return json.dumps(told, separators=(",", ":")).encode()

    def authenticator_data(
        self, *, flags: int = PRESENT | VERIFIED, rp_id: str | None = None, more: bytes = b""
    ) -> bytes:
        return sha256((rp_id or self.rp_id).encode()).digest() + bytes([flags]) + bytes(4) + more

    def sign(self, authenticator_data: bytes, client_data: bytes) -> bytes:
        signed = authenticator_data + sha256(client_data).digest()
        return self._point.sign(signed, ECDSA(SHA256())) if self.alg == "ES256" else self._edwards.sign(signed)

    def envelope(self, payload_type: str, payload: bytes, **client: Any) -> Envelope:
        """The payload signed."""
        told = self.client_data(web64(sha256(pae(payload_type, payload)).digest()), **client)
        data = self.authenticator_data()
        return Envelope(
            payload_type,
            payload,
            ((self.passkey.keyid, self.sign(data, told)),),
            ((self.passkey.keyid, Assertion(data, told)),),
        )

    def create(
        self, options: dict[str, Any], *, flags: int = PRESENT | VERIFIED | ATTESTED, **client: Any
    ) -> dict[str, Any]:
        """What `navigator.credentials.create` gives."""
        told = self.client_data(options["challenge"], **{"type": "webauthn.create", **client})
        credential = bytes(16) + len(self.credential).to_bytes(2, "big") + self.credential
        data = self.authenticator_data(flags=flags, more=credential + cose_key(self.alg, self.public))
        attestation = (
            bytes.fromhex("a363666d74646e6f6e656761747453746d74a06861757468446174615900") + bytes([len(data)]) + data
        )  # {"fmt": "none", "attStmt": {}, "authData": data}
        assert len(data) < 256
        response = {"clientDataJSON": web64(told), "attestationObject": web64(attestation)}
        return {
            "id": web64(self.credential),
            "rawId": web64(self.credential),
            "type": "public-key",
            "response": response,
        }

    def get(self, options: dict[str, Any], *, flags: int = PRESENT | VERIFIED, **client: Any) -> dict[str, Any]:
        """What `navigator.credentials.get` gives."""
        told, data = self.client_data(options["challenge"], **client), self.authenticator_data(flags=flags)
        response = {
            "clientDataJSON": web64(told),
            "authenticatorData": web64(data),
            "signature": web64(self.sign(data, told)),
        }
        return {
            "id": web64(self.credential),
            "rawId": web64(self.credential),
            "type": "public-key",
            "response": response,
        }
