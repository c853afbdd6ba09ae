"""Ed25519 keys: make, store, sign, verify, and the errors of everything that is signed.

    SignatureError
    ├── MalformedEnvelope   not a DSSE envelope as written here
    ├── KeyFileError        a key file that cannot be written or read
    ├── UnknownKey          signed by nobody we know
    ├── ClockSkew           made too long ago or in the future; the message names both times
    └── BadSignature        the bytes are not what was signed

A key's name everywhere is its `keyid`, SHA-256 of the 32 public bytes in hex. Two people compare it as a `fingerprint`.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocol.pkcs8 import encrypt

PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

# The y coordinates of Ed25519's eight points of small order, in every encoding below 2^255 (the sign bit is masked
# off). Under such a "key" one signature fits many messages, so its holder could deny which of two lists was signed.
# OpenSSL accepts them; we do not. A test derives the list again from the curve equation.
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


class SignatureError(Exception):
    """Something signed did not verify; nothing of it may be used."""


class MalformedEnvelope(SignatureError):
    """Not a DSSE envelope in the one form that we write."""


class KeyFileError(SignatureError):
    """A private key file that cannot be written or read."""


class UnknownKey(SignatureError):
    """Signed with a key that the verifier does not know."""


class ClockSkew(SignatureError):
    """Made too far from now; the message names both times."""


class BadSignature(SignatureError):
    """The signature is missing, not in our form, or not over these bytes."""


def keyid(public: bytes) -> str:
    """SHA-256 of the 32 public bytes, 64 lower hex digits."""
    return hashlib.sha256(_sized_public(public)).hexdigest()


def fingerprint(public: bytes) -> str:
    """The keyid in sixteen groups of four, for two people to read to each other."""
    text = keyid(public)
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature (RFC 8032).

    Parameters: public: 32 bytes. signature: 64 bytes. message: the exact bytes that were signed.
    Raises: BadSignature for anything but a valid signature, wrong lengths and keys of small order included.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignature(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    try:
        _loaded(_sized_public(public)).verify(signature, message)
    except InvalidSignature:
        raise BadSignature("the signature does not fit the message and this key") from None


class SigningKey:
    """A private Ed25519 key. Its repr shows the keyid only; the seed never leaves but by `save`."""

    __slots__ = ("_private", "keyid", "public")

    public: bytes
    """32 raw bytes."""
    keyid: str
    """SHA-256 of `public`, 64 hex digits."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.keyid = keyid(self.public)

    def __repr__(self) -> str:
        return f"SigningKey({self.keyid})"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the operating system's random numbers."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, seed: bytes) -> SigningKey:
        """The key of a 32 byte seed. Raises: ValueError for another length."""
        if len(seed) != 32:
            raise ValueError(f"an Ed25519 seed has 32 bytes, not {len(seed)}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, message: bytes) -> bytes:
        """64 bytes over the exact `message`."""
        return self._private.sign(message)

    def save(self, path: str | os.PathLike[str], passphrase: bytes | None = None) -> None:
        """Write the key as PKCS8 PEM, mode 0600, synced to disk, encrypted where `passphrase` is not None.

        Raises: KeyFileError where the file exists (a key is never overwritten) or can't be written, or where the
        passphrase is empty.
        """
        if passphrase is None:
            pem = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        elif passphrase:
            pem = encrypt(self._private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), passphrase)
        else:
            raise KeyFileError("the passphrase is empty; give one, or None for a key without")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(pem)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                Path(path).unlink()  # half a key would be in the way of the next try
                raise
        except FileExistsError:
            raise KeyFileError(f"{path} exists; a key is never overwritten, move the file away first") from None
        except OSError as error:
            raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: bytes | None = None) -> SigningKey:
        """Read what `save` wrote.

        Raises: KeyFileError for a missing file, a wrong, missing or needless passphrase, or a key that is not Ed25519.
        """
        try:
            pem = Path(path).read_bytes()
        except OSError as error:
            raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
        try:
            private = load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # The library's words differ from version to version, and say nothing more.
            given = "the passphrase is wrong" if passphrase is not None else "it needs a passphrase"
            raise KeyFileError(f"{path} cannot be opened: {given}, or it is no PKCS8 PEM key") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(f"{path} holds another kind of key, Ed25519 is needed")
        return cls(private)


def _sized_public(public: bytes) -> bytes:
    if len(public) != PUBLIC_BYTES:
        raise BadSignature(f"an Ed25519 public key has {PUBLIC_BYTES} bytes, not {len(public)}")
    return bytes(public)


@lru_cache(maxsize=256)
def _loaded(public: bytes) -> Ed25519PublicKey:
    if public[:31] + bytes([public[31] & 0x7F]) in _SMALL_ORDER:
        raise BadSignature("the public key is a point of small order, which no honest key is")
    return Ed25519PublicKey.from_public_bytes(public)
