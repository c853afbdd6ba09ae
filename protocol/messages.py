"""Every message of a round, one frozen class each; bytes in attributes are base64 in the payload.

A message is signed with a DSSE type of its own, `application/vnd.consilium.round.<stage>+json`, over canonical JSON:

    {"schema": "consilium/round/<stage>/1", "ctx": <64 hex>, "silo": .., "roster": <digest or null>, + its content}

`ctx` stands for study, manifest, round, attempt and model (secure_aggregation/parameters.py), so a message of another
round never verifies as one of this. `parse` is strict: no key more, none less, and each value has exactly one spelling.
Reading raises `MessageError`; a signature that does not fit raises `protocol.signing.SignatureError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self, TypeVar

from protocol import canonical
from protocol.canonical import CanonicalError
from protocol.message_fields import (
    CTX,
    DIGEST,
    MAX_PAYLOAD,
    REASONS,
    SILO,
    SILOS,
    TABLE,
    TIME,
    WORD,
    Codec,
    MessageError,
    Reason,
    TableRow,
    by_silo_field,
    bytes_field,
    integer_field,
    list_field,
    optional_field,
)
from protocol.signing import Envelope, SigningKey, keyid, sign_envelope, verify_envelope

__all__ = [
    "KINDS",
    "Bundles",
    "Check",
    "Heartbeat",
    "Keys",
    "ListSignature",
    "Message",
    "MessageError",
    "Metrics",
    "Nonce",
    "Ready",
    "Reason",
    "Refusal",
    "SecondList",
    "Sketch",
    "State",
    "TableRow",
    "Unmask",
    "Update",
    "open_message",
    "seal",
]


def _named(codec: Codec, *, shown: bool = True) -> Any:
    """A dataclass field with its codec. shown: whether a repr may hold it, which a log may hold."""
    return field(metadata={"codec": codec}, repr=shown)


M = TypeVar("M", bound="Message")


@dataclass(frozen=True, kw_only=True)
class Message:
    """What all messages share.

    ctx: 64 lower hex digits of the attempt's context.
    silo: who says it.
    roster: digest of the roster, None before there is one.
    """

    STAGE: ClassVar[str]
    ROSTER: ClassVar[bool | None] = True
    """Whether the message names a roster: always, never, or (None) where there is one."""

    ctx: str = _named(CTX)
    silo: str = _named(SILO)
    roster: str | None = _named(optional_field(DIGEST))

    @classmethod
    def payload_type(cls) -> str:
        """The DSSE payload type of this message."""
        return f"application/vnd.consilium.round.{cls.STAGE}+json"

    def to_payload(self) -> bytes:
        """Canonical bytes. Raises: MessageError where `parse` would refuse them."""
        content = {item.name: item.metadata["codec"].write(getattr(self, item.name)) for item in fields(self)}
        try:
            payload = canonical.encode({"schema": f"consilium/round/{self.STAGE}/1", **content})
        except CanonicalError as error:
            raise MessageError(f"{self.STAGE}: {error}") from None
        self.parse(payload)
        return payload

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Read canonical bytes. Raises: MessageError naming the field; nothing else."""
        if len(payload) > MAX_PAYLOAD:
            raise MessageError(f"{cls.STAGE}: {len(payload)} bytes, at most {MAX_PAYLOAD} are read")
        try:
            value = canonical.decode(payload)
        except CanonicalError as error:
            raise MessageError(f"{cls.STAGE}: {error}") from None
        codecs = {item.name: item.metadata["codec"] for item in fields(cls)}
        if not isinstance(value, dict) or value.keys() != codecs.keys() | {"schema"}:
            raise MessageError(f"{cls.STAGE}: must be an object with exactly schema, {', '.join(codecs)}")
        if value["schema"] != f"consilium/round/{cls.STAGE}/1":
            raise MessageError(f"{cls.STAGE}.schema: must be consilium/round/{cls.STAGE}/1")
        if cls.ROSTER is not None and (value["roster"] is not None) != cls.ROSTER:
            raise MessageError(f"{cls.STAGE}.roster: must {'not ' if cls.ROSTER else ''}be null")
        content = {}
        for name, codec in codecs.items():
            try:
                content[name] = codec.read(value[name])
            except MessageError as error:
                raise MessageError(f"{cls.STAGE}.{name}: {error}") from None
        return cls(**content)


@dataclass(frozen=True, kw_only=True)
class Keys(Message):
    """1. A fresh HPKE public key for this attempt: ML-KEM-768 (1,184 bytes), then X25519 (32 bytes)."""

    STAGE = "keys"
    ROSTER = False
    hpke_public: bytes = _named(bytes_field(1216))


@dataclass(frozen=True, kw_only=True)
class Bundles(Message):
    """2. To each other silo of the roster one sealed box with shares and half of the pair seed."""

    STAGE = "bundles"
    boxes: Mapping[str, bytes] = _named(by_silo_field(bytes_field(most=4096)))


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """3. The sealed list of pair seeds and what binds the secrets.

    list_digest, list_box: digest of the box, and the box (AEAD under a key from K).
    self_hash, list_hash: hashes of b and K.   nonces: commitments to two nonces.
    senders: the other silos whose bundles could be opened, sorted.
    """

    STAGE = "ready"
    list_digest: str = _named(DIGEST)
    list_box: bytes = _named(bytes_field(most=32 * 255 + 64))
    self_hash: str = _named(DIGEST)
    list_hash: str = _named(DIGEST)
    nonces: tuple[str, ...] = _named(list_field(DIGEST, 2, 2))
    senders: tuple[str, ...] = _named(SILOS)


@dataclass(frozen=True, kw_only=True)
class Update(Message):
    """4. The last message of an upload: the set R whose masks it wears and the digest of each chunk."""

    STAGE = "update"
    ready_set: str = _named(DIGEST)
    members: tuple[str, ...] = _named(SILOS)
    chunks: tuple[str, ...] = _named(list_field(DIGEST, 1, 1 << 16))


@dataclass(frozen=True, kw_only=True)
class ListSignature(Message):
    """5. The list L1 of those whose update is complete, bound to R and all chunk digests; opens the first nonce."""

    STAGE = "list"
    members: tuple[str, ...] = _named(SILOS)
    ready_set: str = _named(DIGEST)
    updates: str = _named(DIGEST)
    nonce: bytes = _named(bytes_field(32), shown=False)


@dataclass(frozen=True, kw_only=True)
class Sketch(Message):
    """6. The silo's sketch: 256 linear sums of its update's words, under a seed that nobody knew before the uploads.

    first_list: digest of L1.   nonces: digest of the signed lists whose first nonces make the seed.
    sums: 256 signed 64-bit integers, little-endian.
    """

    STAGE = "sketch"
    first_list: str = _named(DIGEST)
    nonces: str = _named(DIGEST)
    sums: bytes = _named(bytes_field(256 * 8))


@dataclass(frozen=True, kw_only=True)
class SecondList(Message):
    """6. The list L2: whom of L1 the manifest's rule leaves in the sum, after all sketches.

    first_list: digest of L1.   sketches: digest of all signed sketches that the rule was given.
    """

    STAGE = "second"
    members: tuple[str, ...] = _named(SILOS)
    first_list: str = _named(DIGEST)
    sketches: str = _named(DIGEST)


@dataclass(frozen=True, kw_only=True)
class Unmask(Message):
    """7. Shares (32 bytes each): of b for the members of the list, of K for the rest of R. Never both for one silo."""

    STAGE = "unmask"
    self_shares: Mapping[str, bytes] = _named(by_silo_field(bytes_field(32)), shown=False)
    list_shares: Mapping[str, bytes] = _named(by_silo_field(bytes_field(32)), shown=False)


@dataclass(frozen=True, kw_only=True)
class Nonce(Message):
    """8. Opens the second nonce, once the portal is bound to a sum. sum: digest of the published sum's bytes."""

    STAGE = "nonce"
    sum: str = _named(DIGEST)
    nonce: bytes = _named(bytes_field(32), shown=False)


@dataclass(frozen=True, kw_only=True)
class Check(Message):
    """8. The silo's check word on what it sent itself.

    sum: as in `Nonce`.   nonces: digest of the signed nonces that make the coefficients.
    word: a number below 2^61 - 1, 8 bytes, big-endian.
    """

    STAGE = "check"
    sum: str = _named(DIGEST)
    nonces: str = _named(DIGEST)
    word: bytes = _named(bytes_field(8))


@dataclass(frozen=True, kw_only=True)
class State(Message):
    """9. The digest of the model state that the silo computed itself; with the table where it is the first model."""

    STAGE = "state"
    ROSTER = None
    state: str = _named(DIGEST)
    table: tuple[TableRow, ...] | None = _named(optional_field(TABLE))


@dataclass(frozen=True, kw_only=True)
class Refusal(Message):
    """The silo does not take part, and why. Sentences name no patient."""

    STAGE = "refusal"
    ROSTER = None
    reasons: tuple[Reason, ...] = _named(REASONS)


@dataclass(frozen=True, kw_only=True)
class Metrics(Message):
    """What a silo's policy lets it tell about itself: the model's AUC on its own test patients in millionths, or None."""

    STAGE = "metrics"
    ROSTER = None
    auc_micro: int | None = _named(optional_field(integer_field(0, 1_000_000)))


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Message):
    """The silo lives. stage: what it is doing, for example "training"; at: RFC 3339 time in UTC, ending in Z."""

    STAGE = "heartbeat"
    ROSTER = None
    stage: str = _named(WORD)
    at: str = _named(TIME)


KINDS: Final[Mapping[str, type[Message]]] = MappingProxyType(
    {
        kind.STAGE: kind
        for kind in (
            *(Keys, Bundles, Ready, Update, ListSignature, Sketch, SecondList, Unmask, Nonce, Check, State),
            *(Refusal, Metrics, Heartbeat),
        )
    }
)
"""Stage -> class, in the order of a round."""


def seal(message: Message, key: SigningKey) -> Envelope:
    """Sign a message. Raises: MessageError where it must not be sent."""
    return sign_envelope(message.payload_type(), message.to_payload(), key)


def open_message(kind: type[M], envelope: Envelope, public: bytes) -> M:
    """The message of an envelope that `public` (32 bytes) signed as this kind.

    Raises: SignatureError (type, key, signature), MessageError (content).
    """
    verify_envelope(envelope, payload_type=kind.payload_type(), keys={keyid(public): public})
    return kind.parse(envelope.payload)
