"""A set of silos as a Merkle tree (RFC 6962 hashing): one leaf a position of the manifest, present or not.

A silo reads only the leaves of its neighbours and its own; every leaf that it reads it proves against the one root that
it accepts. Two sets with the same content have the same root, in any round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from protocol import canonical
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.parameters import SILO_NAME
from protocol.secure_aggregation.sparse.parameters import SparseParameters
from protocol.transparency.tree import ProofError, inclusion_path, leaf_hash, node_hash, split, verify_inclusion


@dataclass(frozen=True)
class Claim:
    """A set, as the portal states it. root: "sha256:<64 hex>"; size: how many silos are present.

    Raises:
        ProtocolViolation: BAD_CLAIM for anything else.
    """

    root: str
    size: int

    def __post_init__(self) -> None:
        if not canonical.is_digest(self.root) or type(self.size) is not int:
            raise ProtocolViolation("BAD_CLAIM", "a set is stated by its root, sha256:<64 hex digits>, and its size")

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"root": self.root, "size": self.size}


@dataclass(frozen=True)
class Leaf:
    """One silo's entry and its proof.

    value: a digest or word where the silo is present, None where it is not.
    path: hashes of 32 bytes, from the leaf's sibling up.

    Raises:
        ProtocolViolation: BAD_PROOF for a name or value that stands in no set.
    """

    silo: str
    value: str | None
    path: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not SILO_NAME.fullmatch(self.silo) or not (self.value or "").isascii():
            raise ProtocolViolation("BAD_PROOF", "an entry of a set names no silo, or holds what is no value")

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"silo": self.silo, "value": self.value, "path": [canonical.b64(step) for step in self.path]}

    def check(self, parameters: SparseParameters, root: str) -> None:
        """Prove the leaf. Raises: ProtocolViolation (BAD_PROOF)."""
        position = parameters.positions.get(self.silo)
        if position is None:
            raise ProtocolViolation("BAD_PROOF", f"{self.silo} is not in the manifest")
        digest = bytes.fromhex(root.removeprefix("sha256:"))
        try:
            verify_inclusion(_leaf(self.silo, self.value), position, len(parameters.members), self.path, digest)
        except ProofError as error:
            raise ProtocolViolation("BAD_PROOF", f"the entry of {self.silo}: {error}") from error


class Tree:
    """A whole set, as only the coordinator holds it. values: of those present, silo -> value."""

    def __init__(self, parameters: SparseParameters, values: Mapping[str, str]) -> None:
        self._parameters = parameters
        self.values = dict(values)
        self._nodes: dict[tuple[int, int], bytes] = {}

    @cached_property
    def claim(self) -> Claim:
        """Root and size."""
        return Claim("sha256:" + self._node(0, len(self._parameters.members)).hex(), len(self.values))

    def leaf(self, silo: str) -> Leaf:
        """The entry of a silo, with its proof."""
        path = inclusion_path(self._node, self._parameters.positions[silo], len(self._parameters.members))
        return Leaf(silo, self.values.get(silo), tuple(path))

    def _node(self, start: int, end: int) -> bytes:
        found = self._nodes.get((start, end))
        if found is None:
            if end - start == 1:
                silo = self._parameters.members[start]
                found = _leaf(silo, self.values.get(silo))
            else:
                middle = start + split(end - start)
                found = node_hash(self._node(start, middle), self._node(middle, end))
            self._nodes[start, end] = found
        return found


def _leaf(silo: str, value: str | None) -> bytes:
    return leaf_hash(canonical.encode({"silo": silo, "value": value}))
