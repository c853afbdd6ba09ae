"""What one neighbour seals to another: half of their pair seed, and, to those of its own row, its shares of b and K."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

from protocol import canonical
from protocol.secure_aggregation import sealing
from protocol.secure_aggregation.sealing import SealingError
from protocol.secure_aggregation.sparse.parameters import PROTOCOL

SECRET_BYTES = 32


@dataclass(frozen=True, repr=False)
class Content:
    """half: of the pair seed. self_share, list_share: of b and K, or None to a silo that holds none. 32 bytes each."""

    half: bytes
    self_share: bytes | None = None
    list_share: bytes | None = None


@dataclass(frozen=True)
class Parcel:
    """A box as the portal hands it on, with the hashes of both shares that its sender signed beside it, if any."""

    box: bytes
    hashes: tuple[str, ...] | None

    def as_dict(self) -> dict[str, object]:
        """As JSON."""
        return {"box": canonical.b64(self.box), "hashes": None if self.hashes is None else list(self.hashes)}


def seal(content: Content, *, public: bytes, ctx: bytes, roster: str, sender: str, receiver: str) -> bytes:
    """A box from one silo to another; opens in this attempt, roster and direction only. Raises: SealingError."""
    plain = content.half + (content.self_share or b"") + (content.list_share or b"")
    return sealing.encrypt(plain, public, _info(ctx, roster, sender, receiver))


def open_parcel(
    parcel: Parcel,
    *,
    private: MLKEM768X25519PrivateKey,
    ctx: bytes,
    roster: str,
    sender: str,
    receiver: str,
    holder: bool,
) -> Content:
    """What is in a parcel.

    Parameters:
        holder: whether the receiver is in the sender's row, so that there must be shares, and they fit the hashes.

    Raises:
        SealingError: it was not sealed by and for these silos, or is of another form, or a share does not fit.
    """
    plain = sealing.decrypt(parcel.box, private, _info(ctx, roster, sender, receiver))
    if len(plain) != (3 if holder else 1) * SECRET_BYTES or holder != (parcel.hashes is not None):
        raise SealingError("the box is of another form")
    if parcel.hashes is None:
        return Content(plain)
    content = Content(plain[:32], plain[32:64], plain[64:])
    found = share_hashes(plain[32:64], plain[64:], ctx=ctx, owner=sender, holder=receiver)
    if not hmac.compare_digest(canonical.encode(list(parcel.hashes)), canonical.encode(list(found))):
        raise SealingError("the shares are not those that their hashes name")
    return content


def share_hashes(self_share: bytes, list_share: bytes, *, ctx: bytes, owner: str, holder: str) -> tuple[str, str]:
    """The hashes of a share of b and of a share of K."""
    return (
        share_hash("self", self_share, ctx=ctx, owner=owner, holder=holder),
        share_hash("list", list_share, ctx=ctx, owner=owner, holder=holder),
    )


def share_fits(what: str, share: bytes, signed: str, *, ctx: bytes, owner: str, holder: str) -> bool:
    """Whether this is the share that `owner` signed. Takes as long for a near guess as for a far one."""
    return hmac.compare_digest(share_hash(what, share, ctx=ctx, owner=owner, holder=holder), signed)


def share_hash(what: str, share: bytes, *, ctx: bytes, owner: str, holder: str) -> str:
    """Digest that binds an owner to what it gave one holder; a share is 32 bytes that nobody can guess."""
    head = {"protocol": PROTOCOL, "what": f"{what} share", "ctx": ctx.hex(), "silo": owner, "holder": holder}
    return "sha256:" + hashlib.sha256(canonical.encode(head) + b"\n" + share).hexdigest()


def _info(ctx: bytes, roster: str, sender: str, receiver: str) -> bytes:
    return f"{PROTOCOL} box\n{sender}\n{receiver}\n{roster}\n".encode() + ctx
