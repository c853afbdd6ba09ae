"""Steps 8 and 9 at this silo: the published sum is held against what all members sent, and only then used.

    sum     t signatures on the list that is summed, the portal's on the sum's facts -> our second nonce; then the sum itself
    check   the nonces of the members -> our check word
    state   all check words -> the sum is the true one, or this silo's part ends here; server step, the next state's digest

The facts lie in sum.json of the round's folder. The words lie beside it in a map; a process that did not fetch them itself
does not trust them and fetches them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.manifest import Manifest
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.parameters import CHUNK_WORDS, RoundParameters
from protocol.secure_aggregation.scales import Segments
from protocol.secure_aggregation.silo import SiloRound
from protocol.secure_aggregation.sparse import SparseRound
from protocol.secure_aggregation.words import Lanes, signed
from protocol.signing import Envelope
from silo_node.node import Node
from silo_node.rounds import published_sum
from silo_node.rounds.model_store import ModelStore
from silo_node.rounds.published_sum import Published
from silo_node.rounds.runs import Run

Machine = SiloRound | SparseRound


class SumCheck:
    """The sum of one attempt. Every method may be called again, and gives the same messages then.

    segments: the scales of its words. Methods raise what `SiloRound` and published_sum raise.
    """

    def __init__(
        self, node: Node, run: Run, parameters: RoundParameters, manifest: Manifest, segments: Segments
    ) -> None:
        self._segments = segments
        self._node, self._run, self._parameters, self._manifest = node, run, parameters, manifest
        self._published: Published | None = None
        self._shown: str | None = None

    def open_nonce(self, machine: Machine, body: Mapping[str, Any], members: Sequence[str]) -> Envelope:
        """Our second nonce, for a sum to whose bytes the portal is bound, over the `members` that the machine agreed to."""
        facts, self._shown = published_sum.check(self._node, self._parameters, self._manifest, body, members)
        envelope = machine.open_nonce(facts["digest"])
        # After the journal, which lets no second sum pass.
        self._run.write("sum", {"facts": facts, "envelope": self._shown})
        return envelope

    def fetch(self) -> Published:
        """The sum of the kept facts, fetched once by each process that needs it."""
        if self._published is None:
            self._published = published_sum.fetch(
                self._node, self._parameters, self._manifest, self._run, self._kept()["facts"], self._segments
            )
        return self._published

    def verify(self, machine: Machine, checks: Sequence[Envelope]) -> bool:
        """Whether the check words of all members say that the sum is true; see `SiloRound.verify_sum`."""
        published = self.fetch()
        return machine.verify_sum(checks, _signed(published.body, self._parameters.word_bits), published.tail)

    def make_next(self, models: ModelStore) -> str:
        """The digest of the next model, made from a sum that was verified."""
        if self._parameters.model is None:
            raise ProtocolViolation("NO_MODEL", "the round that makes the first model sums nothing")
        return models.make_next(
            self._parameters.model,
            self.fetch().body,
            self._manifest.fixed_point(),
            total_weight=self._kept()["facts"]["total_weight"],
            server_lr=self._manifest.plan.strategy.server_lr,
        )

    def proof(self) -> dict[str, str]:
        """Digests of what the portal signed about the sum, for the log: `first_sum` where it showed another one before."""
        kept = (self._run.read("sum") or {}).get("envelope")
        shown = self._shown or kept
        found = {"sum": shown, "first_sum": kept if kept != shown else None}
        return {name: digest for name, digest in found.items() if digest is not None}

    def close(self) -> None:
        """Let go of the sum's file: a deleted file keeps its room on the disk for as long as a map of it stands."""
        self._published = None

    def _kept(self) -> dict[str, Any]:
        kept: dict[str, Any] | None = self._run.read("sum")
        if kept is None:
            raise ProtocolViolation("OUT_OF_STAGE", "this silo has accepted no sum in this round")
        return kept


def _signed(body: Lanes, word_bits: int) -> Iterator[NDArray[np.int32]]:
    """The body in blocks of signed words; at 32 bits each is a view."""
    return (signed(body[low : low + CHUNK_WORDS], word_bits) for low in range(0, body.size, CHUNK_WORDS))
