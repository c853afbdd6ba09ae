"""What all parties of one sparse attempt agree on: the dense round's parameters, and the bounds of a neighbourhood."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, Final

from protocol import canonical
from protocol.many_silos import COLLUDING, FAILURE_BITS, LOST, MOST_SILOS, PRIVACY_BITS
from protocol.secure_aggregation.parameters import RoundParameters
from protocol.secure_aggregation.sparse.bounds import Neighbourhood, neighbours

PROTOCOL: Final = "consilium-secagg-sparse/1"


def promised(n: int) -> Neighbourhood:
    """The neighbourhood of every study of n silos: what many_silos.py promises. Raises: ValueError where there is none."""
    return neighbours(n, colluding=COLLUDING, lost=LOST, privacy_bits=PRIVACY_BITS, failure_bits=FAILURE_BITS)


@dataclass(frozen=True)
class SparseParameters(RoundParameters):
    """One attempt of one round with many silos. Immutable.

    A silo's position is its place among the manifest's participants, sorted by name: nobody can stand in a set twice,
    and nobody chooses n. Who is absent in a round counts among the lost.

    Attributes:
        sparse_from: the manifest's aggregation.sparse_from; smaller studies use the dense protocol.
        colluding: the largest fraction of the participants that may work together with the portal.
        lost: the fraction that may be absent or fall out before the round fails more often than in one of
            2^failure_bits.
        privacy_bits, failure_bits: see bounds.py.

    Raises:
        ValueError: a field is out of its range, or no neighbourhood satisfies the bounds.
    """

    sparse_from: int = 64
    colluding: Fraction = COLLUDING
    lost: Fraction = LOST
    privacy_bits: int = PRIVACY_BITS
    failure_bits: int = FAILURE_BITS

    MOST_SILOS: ClassVar[int] = MOST_SILOS

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.participants) < max(3, self.sparse_from):
            raise ValueError(
                f"{len(self.participants)} participants are fewer than sparse_from: use the dense protocol"
            )
        for name in ("colluding", "lost"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a fraction from 0 to below 1")
        for name in ("privacy_bits", "failure_bits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        _ = self.neighbourhood

    @cached_property
    def neighbourhood(self) -> Neighbourhood:
        """h, t and their like; every silo computes them itself."""
        return neighbours(
            len(self.participants),
            colluding=self.colluding,
            lost=self.lost,
            privacy_bits=self.privacy_bits,
            failure_bits=self.failure_bits,
        )

    @cached_property
    def ctx(self) -> bytes:
        """32 bytes that go into every derivation and every signature of this attempt; differs from the dense one's."""
        facts = {
            "protocol": PROTOCOL,
            "study": self.study,
            "manifest": self.manifest,
            "round": self.round,
            "attempt": self.attempt,
            "model": self.model,
            "neighbours": self.neighbourhood.h,
            "threshold": self.neighbourhood.t,
        }
        return hashlib.sha256(canonical.encode(facts)).digest()

    @cached_property
    def members(self) -> tuple[str, ...]:
        """All participants, sorted by name; a silo's index here is its position."""
        return tuple(sorted(self.participants))

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """silo -> position."""
        return MappingProxyType({silo: position for position, silo in enumerate(self.members)})

    @property
    def least_set(self) -> int:
        """Smallest size of R and L1: max(floor(2n/3) + 1, min_participants)."""
        return self.smallest_set(len(self.participants))
