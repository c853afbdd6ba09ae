"""Second nonces in a sparse round: committed to in the leaves of R, so that everybody can check all of them.

A leaf's value in R is a digest over the silo's signed `ready` and its commitment. From the opened nonces (and the values
of those who opened none) a silo makes the whole tree again, and compares its root with the one under whose masks it sent
its update. So each nonce was fixed before any update was, whoever chose it, and no set of them can be picked afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from protocol import canonical
from protocol.secure_aggregation import sealing
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.sparse.parameters import SparseParameters
from protocol.secure_aggregation.sparse.trees import Claim, Tree


class Opened(NamedTuple):
    """One opened nonce (32 bytes), which its repr does not show, and the digest of the `ready` message beside it."""

    ready: str
    nonce: bytes

    def __repr__(self) -> str:
        return f"Opened({self.ready})"


@dataclass(frozen=True)
class OpenedNonces:
    """All of R: who opened its nonce, and the value in R of each silo that did not."""

    nonces: Mapping[str, Opened]
    others: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "nonces": {silo: [each.ready, canonical.b64(each.nonce)] for silo, each in self.nonces.items()},
            "others": dict(self.others),
        }

    @property
    def digest(self) -> str:
        """Names exactly these nonces."""
        opened = [[silo, canonical.b64(self.nonces[silo].nonce)] for silo in sorted(self.nonces)]
        return canonical.digest(canonical.encode(opened))

    def check(self, parameters: SparseParameters, ready: Claim) -> None:
        """They are those that the silos of this very R committed to. Raises: ProtocolViolation (BAD_NONCE)."""
        values = dict(self.others)
        for silo, each in self.nonces.items():
            commitment = sealing.binding("nonce 2", each.nonce, ctx=parameters.ctx, silo=silo)
            values[silo] = ready_value(each.ready, commitment)
        apart = not self.nonces.keys() & self.others.keys() and values.keys() <= parameters.positions.keys()
        if not apart or Tree(parameters, values).claim != ready:
            raise ProtocolViolation("BAD_NONCE", "the opened nonces are not those of the ready set of this attempt")


def ready_value(ready: str, commitment: str) -> str:
    """The value of a silo's leaf in R: from the digest of its `ready` and its commitment to its second nonce."""
    return canonical.digest(canonical.encode({"ready": ready, "nonce": commitment}))
