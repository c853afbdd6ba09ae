"""What every step of a silo's sparse round needs, beside what it shares with the dense one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from protocol.messages import Message
from protocol.secure_aggregation import sets
from protocol.secure_aggregation.attempt import Attempt
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.sparse.parameters import SparseParameters
from protocol.secure_aggregation.sparse.trees import Claim, Leaf
from protocol.signing import Envelope

M = TypeVar("M", bound=Message)


def open_signed(parameters: SparseParameters, kind: type[M], envelope: Envelope, roster: str | None) -> M:
    """One message of this attempt and, where one is given, of this roster. Raises: as `sets.open_signed`."""
    message = sets.open_signed(parameters, kind, envelope, None)
    if message.roster != roster:
        raise ProtocolViolation("OTHER_ROSTER", f"{kind.STAGE} of {message.silo} belongs to another roster")
    return message


class SparseAttempt(Attempt):
    """One silo in one sparse attempt; see `silo.SparseRound`."""

    parameters: SparseParameters

    def _read_set(self, claim: Claim, leaves: Iterable[Leaf], neighbours: Iterable[str], what: str) -> dict[str, str]:
        """The entries of this silo's neighbours (and of others, such as known partners) in a set, each proved.

        1. the set is large enough, as stated, and not larger than the study   2. no silo twice   3. every entry is proved
        4. every neighbour's entry is there, and this silo's own   5. this silo is in the set

        Returns: silo -> value of those present.
        Raises: ProtocolViolation (BAD_CLAIM, SET_TOO_SMALL, TWICE, BAD_PROOF, TOO_FEW_NEIGHBOURS, LEFT_OUT).
        """
        # 1
        if claim.size > len(self.parameters.members):
            raise ProtocolViolation(
                "BAD_CLAIM",
                f"the {what} is said to have more silos than the {len(self.parameters.members)} of the study",
            )
        if claim.size < self.parameters.least_set:
            raise ProtocolViolation(
                "SET_TOO_SMALL", f"the {what} has {claim.size} silos, at least {self.parameters.least_set} are needed"
            )
        # 2
        entries = list(leaves)
        found = {leaf.silo: leaf for leaf in entries}
        if len(found) != len(entries):
            raise ProtocolViolation("TWICE", f"a silo stands twice among the entries of the {what}")
        # 3
        for leaf in entries:
            leaf.check(self.parameters, claim.root)
        # 4
        missing = ({self.silo} | set(neighbours)) - found.keys()
        if missing:
            raise ProtocolViolation("TOO_FEW_NEIGHBOURS", f"the {what} does not say whether {min(missing)} is in it")
        # 5
        if found[self.silo].value is None:
            raise ProtocolViolation("LEFT_OUT", f"the {what} does not name {self.silo}")
        return {silo: leaf.value for silo, leaf in found.items() if leaf.value is not None}

    def _check_row(self, present: Iterable[str], row: Iterable[str], what: str) -> None:
        """At least t of the silos that this silo drew are there. Raises: ProtocolViolation (TOO_FEW_NEIGHBOURS)."""
        there, t = len(set(row) & set(present)), self.parameters.neighbourhood.t
        if there < t:
            raise ProtocolViolation(
                "TOO_FEW_NEIGHBOURS", f"{there} of the silos that {self.silo} drew are in the {what}, {t} are needed"
            )

    def _root(self, call: str) -> str:
        """The root of the roster that was accepted."""
        root: str = self._records.need("roster", call)["root"]
        return root

    def _neighbours(self, call: str) -> Mapping[str, Any]:
        """The record of the neighbours: "row" (drawn by this silo), "drew" (who drew this silo), .."""
        return self._records.need("neighbours", call)
