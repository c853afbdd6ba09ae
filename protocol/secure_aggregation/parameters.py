"""What all parties of one round attempt agree on before the first message, and the layout of an update in chunks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Final, Literal, NamedTuple

from protocol import canonical
from protocol.keys import keyid
from protocol.secure_aggregation.words import TAIL_BITS, WORD_BITS, packed_bytes

PROTOCOL: Final = "consilium-secagg/1"
CHUNK_WORDS: Final = 1 << 20
"""Body words in a full chunk: 4 MiB of 32-bit words, 1.5 MiB of 12-bit words."""
MAX_ROSTER: Final = 255
"""Shares are points x = index + 1 of GF(2^8) without 0."""
_STUDY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SILO_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Kind = Literal["body", "tail"]


class Segment(NamedTuple):
    """A run of body words in one fixed-point scale: a word is the weight's change * silo's weight * 2^fraction_bits."""

    words: int
    fraction_bits: int


@dataclass(frozen=True)
class SketchTerms:
    """What the sketch check needs to know from the manifest.

    Attributes:
        weights: silo -> its fixed weight in the mean.
        clip_norm: the L2 bound of one silo's update.
        segments: the scales of the body's words, in order; together they cover the body.
    """

    weights: Mapping[str, int] = field(hash=False)
    clip_norm: float
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))


def threshold(n: int) -> int:
    """Shares that rebuild a secret of n silos: floor(2n/3) + 1. Every silo computes it itself."""
    if n < 1:
        raise ValueError(f"a roster has at least one silo, not {n}")
    return 2 * n // 3 + 1


def colluders(n: int, min_participants: int) -> int:
    """How many of n silos may work together with the portal and still learn only the sum (c in the approval page)."""
    return max(0, min(2 * threshold(n) - n - 1, min_participants - 2))


@dataclass(frozen=True)
class RoundParameters:
    """One attempt of one round, as the approved manifest and the verified announcement say. Immutable.

    Attributes:
        study: the study's id.
        manifest: digest of the approved manifest, "sha256:<64 hex>".
        round, attempt: from 0; both only grow.
        model: digest of the model state that is trained or scored, "sha256:<64 hex>"; None only in the round that
            makes the first model, where silos sign a state and nothing is summed.
        participants: silo -> its Ed25519 public key (32 bytes) from the manifest; at most 255.
        min_roster: smallest roster, at least 3.
        min_participants: smallest set that may be summed, at least 2.
        words: d, the number of body words; 0 in a round that only evaluates.
        tail: the number of 64-bit tail words.
        word_bits: of a body word: 32, 24, 16 or 12 (see words.py).
        sketch: what the sketch check needs, where the manifest asks for it and weights are summed; None without it.
        unverified: whether the manifest lets a sum stand where a member's check word never comes.

    Raises:
        ValueError: a field is out of its range; the text names it.
    """

    study: str
    manifest: str
    round: int
    attempt: int
    model: str | None
    participants: Mapping[str, bytes] = field(hash=False)
    min_roster: int
    min_participants: int
    words: int
    tail: int
    word_bits: int = 32
    sketch: SketchTerms | None = None
    unverified: bool = False

    MOST_SILOS: ClassVar[int] = MAX_ROSTER

    def __post_init__(self) -> None:
        if not _STUDY.fullmatch(self.study):
            raise ValueError("study must be 1 to 64 letters, digits, '-' or '_'")
        for name in ("manifest", "model"):
            value = getattr(self, name)
            if not (canonical.is_digest(value) or (name == "model" and value is None)):
                raise ValueError(f"{name} is not a digest 'sha256:<64 hex>'")
        for name, least in (
            ("round", 0),
            ("attempt", 0),
            ("min_roster", 3),
            ("min_participants", 2),
            ("words", 0),
            ("tail", 0),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if type(self.word_bits) is not int or self.word_bits not in WORD_BITS:
            raise ValueError(f"word_bits must be 32, 24, 16 or 12, not {self.word_bits!r}")
        if self.words + self.tail == 0:
            raise ValueError("words and tail are both 0: there would be nothing to sum")
        if len(self.participants) > self.MOST_SILOS:
            raise ValueError(f"participants: {len(self.participants)} silos; at most {self.MOST_SILOS}")
        for silo, public in self.participants.items():
            if not SILO_NAME.fullmatch(silo):
                raise ValueError(f"participants: {silo!r} is not a silo name")
            if len(public) != 32:
                raise ValueError(f"participants: the key of {silo} has {len(public)} bytes, not 32")
        if len(set(self.participants.values())) != len(self.participants):
            raise ValueError("participants: two silos have the same key")
        self._check_sketch()
        object.__setattr__(self, "participants", MappingProxyType(dict(self.participants)))

    def _check_sketch(self) -> None:
        if self.sketch is None:
            return
        if sum(segment.words for segment in self.sketch.segments) != self.words:
            raise ValueError("sketch: the segments do not cover the body's words")
        if self.sketch.weights.keys() != self.participants.keys():
            raise ValueError("sketch: weights must name exactly the participants")

    @cached_property
    def signers(self) -> Mapping[str, str]:
        """keyid -> silo."""
        return MappingProxyType({keyid(public): silo for silo, public in self.participants.items()})

    @cached_property
    def ctx(self) -> bytes:
        """32 bytes that go into every derivation and every signature of this attempt."""
        return self.attempt_ctx

    @cached_property
    def attempt_ctx(self) -> bytes:
        """32 bytes that name the attempt, whichever protocol it speaks: in the messages that are read without knowing how
        the round was masked, such as the signed states of a model."""
        facts = {
            "protocol": PROTOCOL,
            "study": self.study,
            "manifest": self.manifest,
            "round": self.round,
            "attempt": self.attempt,
            "model": self.model,
        }
        return hashlib.sha256(canonical.encode(facts)).digest()

    @staticmethod
    def threshold(n: int) -> int:
        """Shares that rebuild a secret of a roster of n silos: floor(2n/3) + 1."""
        return threshold(n)

    def smallest_set(self, n: int) -> int:
        """Smallest set that may be masked (R) or summed (L) with a roster of n silos: max(t, min_participants)."""
        return max(threshold(n), self.min_participants)

    @property
    def chunk_count(self) -> int:
        """Chunks of an update: the body in pieces of 1,048,576 words, then one chunk with the whole tail, if any."""
        return -(-self.words // CHUNK_WORDS) + (1 if self.tail else 0)

    def chunk_range(self, k: int) -> tuple[Kind, int, int]:
        """Chunk k as (kind, start, stop) in words of the body or of the tail.

        Raises:
            IndexError: there is no chunk k.
        """
        if not 0 <= k < self.chunk_count:
            raise IndexError(f"chunk {k} does not exist: the update has chunks 0 to {self.chunk_count - 1}")
        start = k * CHUNK_WORDS
        if start >= self.words:
            return "tail", 0, self.tail
        return "body", start, min(start + CHUNK_WORDS, self.words)

    def bits(self, k: int) -> int:
        """Bits of a word of chunk k: word_bits, or 64 in the tail."""
        return self.word_bits if self.chunk_range(k)[0] == "body" else TAIL_BITS

    def chunk_bytes(self, k: int) -> int:
        """Length of chunk k in bytes, packed: of an update and of the published sum."""
        _, start, stop = self.chunk_range(k)
        return packed_bytes(stop - start, self.bits(k))
