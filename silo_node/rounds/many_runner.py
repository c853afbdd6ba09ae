"""One round at this silo where there are many: it masks with its neighbours, and hears of nobody else.

    announced            as ever: training starts at once, our key and a hidden nonce leave
    roster, neighbours   -> the roster's root is accepted, our row is opened, boxes go to the neighbours
    bundles, ready       -> whose boxes could be opened; R by its root and our neighbours' entries
    list, unmask         -> signed and revealed once, as t of our own row signed it
    sum, check, state    -> the named members make the signed root; nonces, check words and the next model as ever

What is the same in every round (training, quantising, upload, the sum, the next state) is RoundRunner's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from protocol.keys import keyid
from protocol.secure_aggregation.parameters import threshold
from protocol.secure_aggregation.silo import SiloRound
from protocol.secure_aggregation.sparse import Claim, Leaf, SparseRound, wire
from silo_node.rounds.round_runner import RoundRunner, other_protocol

MOST_ENTRIES: Final = 64
"""Entries that the portal gives at once."""


class ManyRunner(RoundRunner):
    """Drives `SparseRound` for one attempt; else as its parent."""

    MACHINE: ClassVar[type[SiloRound | SparseRound]] = SparseRound

    def on_roster(self, body: Mapping[str, Any]) -> None:
        """The roster, by its root: open the nonce that draws our row."""
        claim, leaf = wire.read_claim(body.get("claim")), wire.read_leaf(body.get("leaf"))
        self._post("row", self._machine().accept_roster(claim, leaf))

    def on_neighbours(self, body: Mapping[str, Any]) -> None:
        """Whom we drew and who drew us: seal a box to each."""
        neighbours = wire.read_neighbours(body.get("neighbours"))
        self._given = {
            "keys": {item.leaf.silo: item.keys.digest for item in neighbours if item.keys is not None},
            "rows": {item.leaf.silo: item.row.digest for item in neighbours if item.row is not None},
        }
        self._post("bundles", self._machine().accept_neighbours(neighbours))

    def on_bundles(self, body: Mapping[str, Any]) -> None:
        """The neighbours' boxes: open them and say whose could be opened."""
        self._post("ready", self._machine().accept_bundles(wire.read_parcels(body.get("parcels"))))

    def on_ready(self, body: Mapping[str, Any]) -> None:
        """The set R, by its root: from here the masks are fixed."""
        self._machine().accept_ready(*self._set(body, "ready"))
        self._ready = True
        self._upload()

    def on_list(self, body: Mapping[str, Any]) -> None:
        """The list, by its root: sign it; spends (study, round)."""
        self.stage = "list"
        [updates] = self._read(body, "updates")
        self._post("list", self._machine().sign_list(*self._set(body, "list"), updates))

    def on_sketch(self, body: Mapping[str, Any]) -> None:
        """There is no sketch among many. Raises: ProtocolViolation."""
        raise other_protocol("sketch")

    def on_second(self, body: Mapping[str, Any]) -> None:
        """There is no second list among many. Raises: ProtocolViolation."""
        raise other_protocol("second")

    def on_unmask(self, body: Mapping[str, Any]) -> None:
        """What t of our own row signed: reveal shares of those who drew us."""
        self.stage = "unmask"
        self._post("unmask", self._machine().unmask(*self._read(body, "lists")))

    def on_sum(self, body: Mapping[str, Any]) -> None:
        """The portal is bound to a sum over the very list that we signed, or take now as t of our row signed it."""
        self.stage = "sum"
        machine, missed = self._machine(), body.get("missed")
        if isinstance(missed, Mapping):
            machine.accept_list(*self._set(missed, "list"), *self._read(missed, "lists"))
        named = body.get("sum")
        members = machine.agree(wire.read_names(named.get("members") if isinstance(named, Mapping) else None))
        self._post("nonce", self._sum.open_nonce(machine, body, members))
        self._sum.fetch()

    def on_check(self, body: Mapping[str, Any]) -> None:
        """The opened nonces of all: send our check word."""
        self.stage = "check"
        self._export("check", self._machine().send_check(wire.read_opened(body.get("opened"))))

    def _signers_needed(self) -> int:
        """t of all participants: how many must sign the model that is made here."""
        return threshold(len(self.parameters.participants))

    def _set(self, body: Mapping[str, Any], what: str) -> tuple[Claim, list[Leaf]]:
        """A set as it is stated, our neighbours' entries, and those of known partners where the policy asks for more."""
        claim, leaves = wire.read_claim(body.get("claim")), wire.read_leaves(body.get("leaves"))
        return claim, [*leaves, *self._known(what, leaves)]

    def _known(self, what: str, leaves: Iterable[Leaf]) -> list[Leaf]:
        """Entries of further partners whose keys this hospital compared, as many as its policy needs there."""
        given = {leaf.silo: leaf.value is not None for leaf in leaves}
        publics, mine = self.parameters.participants, self._node.config.name
        known = [name for name in sorted(publics) if keyid(publics[name]) in self.permission.known_partners]
        missing = self.permission.min_known - sum(given.get(name, False) for name in known if name != mine)
        wanted = [name for name in known if name not in given]
        found: list[Leaf] = []
        while missing > 0 and wanted:
            asked, wanted = wanted[:MOST_ENTRIES], wanted[MOST_ENTRIES:]
            query = {"set": what, "silos": ",".join(asked)}
            address = f"/api/v1/rounds/{self.id}/entries"
            answer = self._node.egress.get(address, kind="entries", query=query, round_id=self.id).json()
            more = wire.read_leaves(answer.get("leaves") if isinstance(answer, Mapping) else None)
            found += more
            missing -= sum(leaf.value is not None for leaf in more)
        return found
