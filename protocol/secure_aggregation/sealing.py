"""What is sealed in a round: bundles to peers (HPKE), the list of pair seeds (AEAD), and the hashes that bind secrets.

HPKE (RFC 9180) runs with ML-KEM-768 and X25519 together, so what is recorded today stays closed unless both fall.
A box says inside which two silos it is for, and its info holds ctx and roster, so it opens nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from protocol import canonical
from protocol.secure_aggregation.parameters import PROTOCOL
from protocol.secure_aggregation.prg import SEED_BYTES, derive

PUBLIC_BYTES: Final = 1184 + 32
PRIVATE_BYTES: Final = 64 + 32
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
# The list key is derived for one list only, so a fixed nonce is used once.
_LIST_NONCE: Final = bytes(12)


class SealingError(ValueError):
    """A key, box or list that cannot be used. Says nothing about its content."""


class Bundle(NamedTuple):
    """What silo i gives silo j: shares of b_i and K_i and i's half of the pair seed, 32 bytes each. Its repr shows none."""

    self_share: bytes
    list_share: bytes
    half: bytes

    def __repr__(self) -> str:
        return "Bundle(..)"


def generate_private() -> bytes:
    """A fresh HPKE private key: the ML-KEM seed (64 bytes), then the X25519 key (32 bytes)."""
    return MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """The public key (1,216 bytes) of a private one."""
    mlkem, x25519 = _split_private(private)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def check_public(public: bytes) -> None:
    """Seal to it once, which also finds X25519 points that give no secret. Raises: SealingError where it fails."""
    _encrypt(b"", public, b"")


def seal_bundle(bundle: Bundle, *, public: bytes, ctx: bytes, roster: str, sender: int, receiver: int) -> bytes:
    """The box from roster index `sender` to `receiver`; a second call gives another box (HPKE draws a key).

    Raises:
        SealingError: the public key cannot be used.
    """
    plain = bytes((sender + 1, receiver + 1)) + bundle.self_share + bundle.list_share + bundle.half
    return _encrypt(plain, public, _bundle_info(ctx, roster))


def open_bundle(box: bytes, *, private: bytes, ctx: bytes, roster: str, sender: int, receiver: int) -> Bundle:
    """What is in a box.

    Raises:
        SealingError: it was not sealed for this silo, attempt and roster, or says other silos inside.
    """
    mlkem, x25519 = _split_private(private)
    try:
        plain = _SUITE.decrypt(box, MLKEM768X25519PrivateKey(mlkem, x25519), _bundle_info(ctx, roster))
    except (InvalidTag, ValueError):
        raise SealingError("the box cannot be opened") from None
    if len(plain) != 2 + 3 * SEED_BYTES or not hmac.compare_digest(plain[:2], bytes((sender + 1, receiver + 1))):
        raise SealingError("the box is for other silos or of another form")
    return Bundle(plain[2:34], plain[34:66], plain[66:98])


def pair_seed(low: bytes, high: bytes, ctx: bytes) -> bytes:
    """s_ij from both halves, that of the lower roster index first; each half alone leaves it unknown."""
    return derive(low + high, "pair seed", ctx, SEED_BYTES)


def seal_list(seeds: bytes, *, key: bytes, ctx: bytes, roster: str, silo: str) -> bytes:
    """Encrypt the pair seeds (32 bytes a roster index, zeros where there is none) under a key from K."""
    return AESGCM(derive(key, "list", ctx, 16)).encrypt(_LIST_NONCE, seeds, _list_data(ctx, roster, silo))


def open_list(box: bytes, *, key: bytes, ctx: bytes, roster: str, silo: str) -> bytes:
    """The pair seeds of `seal_list`. Raises: SealingError."""
    try:
        return AESGCM(derive(key, "list", ctx, 16)).decrypt(_LIST_NONCE, box, _list_data(ctx, roster, silo))
    except InvalidTag:
        raise SealingError(f"the list of {silo} cannot be opened with its key") from None


def binding(what: str, secret: bytes, *, ctx: bytes, silo: str) -> str:
    """Digest that binds a silo to a secret of 32 random bytes; `what` is "self", "list", "nonce 1" or "nonce 2"."""
    head = canonical.encode({"protocol": PROTOCOL, "what": what, "ctx": ctx.hex(), "silo": silo})
    return "sha256:" + hashlib.sha256(head + b"\n" + secret).hexdigest()


def fits(what: str, secret: bytes, signed: str, *, ctx: bytes, silo: str) -> bool:
    """Whether this is the secret to which `silo` bound itself. Takes as long for a near guess as for a far one."""
    return hmac.compare_digest(binding(what, secret, ctx=ctx, silo=silo), signed)


def list_box_bytes(silos: int) -> int:
    """Length of the sealed list in a roster of that many silos."""
    return silos * SEED_BYTES + 16


def _encrypt(plain: bytes, public: bytes, info: bytes) -> bytes:
    key = _load_public(public)
    try:
        return _SUITE.encrypt(plain, key, info)
    except ValueError:
        raise SealingError("the HPKE public key gives no shared secret") from None


def _bundle_info(ctx: bytes, roster: str) -> bytes:
    return f"{PROTOCOL} bundle\n".encode() + ctx + roster.encode()


def _list_data(ctx: bytes, roster: str, silo: str) -> bytes:
    return f"{PROTOCOL} list\n{silo}\n{roster}\n".encode() + ctx


def _split_private(private: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    if len(private) != PRIVATE_BYTES:
        raise SealingError(f"an HPKE private key has {PRIVATE_BYTES} bytes, not {len(private)}")
    return MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])


def _load_public(public: bytes) -> MLKEM768X25519PublicKey:
    if len(public) != PUBLIC_BYTES:
        raise SealingError(f"an HPKE public key has {PUBLIC_BYTES} bytes, not {len(public)}")
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(public[:1184])
    except ValueError:
        raise SealingError("the ML-KEM half of an HPKE public key is malformed") from None
    return MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(public[1184:]))
