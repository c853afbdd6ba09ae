"""The coordinator's side of a sparse round: checks what silos send, fixes the sets, and hands each silo its part.

It takes signed envelopes one by one and keeps what it needs of them, no boxes and no chunks; fed with the same stored
envelopes again it is the same coordinator. What it could do wrong each silo checks again for its own neighbourhood.

    take_keys().. close_roster()   take_row().. close_graph()   take_bundles()..
    take_ready().. close_ready()   take_update().. close_list()   take_list()..   take_unmask().. recover()

Every method raises `ProtocolViolation` for what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from protocol.messages import Message
from protocol.secure_aggregation import sealing
from protocol.secure_aggregation.coordinator import Removal
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.sealing import SealingError
from protocol.secure_aggregation.sparse import graph, messages
from protocol.secure_aggregation.sparse.attempt import open_signed
from protocol.secure_aggregation.sparse.boxes import Parcel
from protocol.secure_aggregation.sparse.parameters import SparseParameters
from protocol.secure_aggregation.sparse.recovery import Recovery
from protocol.secure_aggregation.sparse.reveal import SUMMED
from protocol.secure_aggregation.sparse.set_up import Neighbour
from protocol.secure_aggregation.sparse.trees import Claim, Leaf, Tree
from protocol.signing import Envelope

M = TypeVar("M", bound=Message)


class SparseCoordinator:
    """One attempt of one round."""

    def __init__(self, parameters: SparseParameters) -> None:
        self.parameters = parameters
        self._trees: dict[str, Tree] = {}
        self._rows: dict[str, tuple[str, ...]] = {}
        self._drew: dict[str, set[str]] = {}
        self._keys: dict[str, tuple[messages.SparseKeys, Envelope]] = {}
        self._opened: dict[str, Envelope] = {}
        self._hashes: dict[str, Mapping[str, tuple[str, ...]]] = {}
        self._ready: dict[str, messages.SparseReady] = {}
        self._ready_digests: dict[str, str] = {}
        self._updates: dict[str, Envelope] = {}
        self._lists: dict[str, Envelope] = {}
        self._unmask: dict[str, messages.SparseUnmask] = {}

    # --- 1, 2. keys and roster ---------------------------------------------------------------------------------------

    def take_keys(self, envelope: Envelope) -> str:
        """A signed, usable round key. Returns: the silo."""
        message = self._open(messages.SparseKeys, envelope, before="roster")
        try:
            sealing.check_public(message.hpke_public)
        except SealingError as error:
            raise ProtocolViolation("BAD_KEY", f"the round key of {message.silo}: {error}") from error
        self._keys[message.silo] = (message, envelope)
        return message.silo

    def close_roster(self) -> Claim:
        """The roster of all keys that came."""
        least = max(self.parameters.min_roster, self.parameters.least_set)
        if len(self._keys) < least:
            raise ProtocolViolation(
                "ROSTER_TOO_SMALL", f"the roster has {len(self._keys)} silos, at least {least} are needed"
            )
        return self._close("roster", {silo: envelope.digest for silo, (_, envelope) in self._keys.items()})

    def leaf(self, what: str, silo: str) -> Leaf:
        """A silo's own entry in a set that was closed: "roster", "ready" or "list"."""
        return self._tree(what).leaf(silo)

    # --- 2, 3. rows and bundles --------------------------------------------------------------------------------------

    def take_row(self, envelope: Envelope) -> str:
        """The opened nonce of one silo. Returns: the silo."""
        message = self._open(messages.SparseRow, envelope, before="graph", within="roster")
        keys, _ = self._keys[message.silo]
        if sealing.binding("graph", message.nonce, ctx=self.parameters.ctx, silo=message.silo) != keys.graph:
            raise ProtocolViolation("BAD_NONCE", f"the nonce of {message.silo} is not the one it committed to")
        self._opened[message.silo] = envelope
        self._rows[message.silo] = graph.row(self.parameters, self._root, message.silo, message.nonce)
        return message.silo

    def close_graph(self) -> None:
        """No row after this: from here on everybody's neighbours are fixed."""
        self._drew = {silo: set() for silo in self.parameters.members}
        for silo, row in self._rows.items():
            for other in row:
                self._drew[other].add(silo)
        self._close("graph", {silo: envelope.digest for silo, envelope in self._opened.items()})

    def neighbours_for(self, silo: str) -> list[Neighbour]:
        """What `accept_neighbours` of this silo needs."""
        roster, near = self._tree("roster"), sorted({*self._rows[silo], *self._drew[silo]})
        return [
            Neighbour(
                roster.leaf(other),
                self._keys[other][1] if other in self._keys else None,
                self._opened[other] if other in self._drew[silo] else None,
            )
            for other in near
        ]

    def take_bundles(self, envelope: Envelope) -> dict[str, Parcel]:
        """One box for each neighbour that is present, hashes for those of the sender's row.

        Returns: {receiver: parcel}, to be delivered; the boxes are not kept.
        """
        message = self._open(messages.SparseBundles, envelope, before="ready", within="graph")
        row = set(self._rows[message.silo]) & self._keys.keys()
        if set(message.boxes) != row | self._drew[message.silo] or set(message.hashes) != row:
            raise ProtocolViolation("BAD_MESSAGE", f"bundles of {message.silo}: not one box for each neighbour")
        self._hashes[message.silo] = message.hashes
        return {silo: Parcel(box, message.hashes.get(silo)) for silo, box in message.boxes.items()}

    # --- 4. the set R ------------------------------------------------------------------------------------------------

    def take_ready(self, envelope: Envelope) -> str:
        """Who is ready, and whose boxes it could open. Returns: the silo."""
        message = self._open(messages.SparseReady, envelope, before="ready", within="graph")
        if message.silo not in self._hashes or not set(message.senders) <= self._near(message.silo):
            raise ProtocolViolation("NOT_NEIGHBOUR", f"ready of {message.silo} names silos that sent it nothing")
        if len(message.list_box) != sealing.list_box_bytes(len(message.senders)):
            raise ProtocolViolation("BAD_MESSAGE", f"ready of {message.silo}: the list does not fit its senders")
        self._ready[message.silo] = message
        self._ready_digests[message.silo] = envelope.digest
        return message.silo

    def close_ready(self) -> dict[str, tuple[str, ...]]:
        """Fix R: all who are ready, but not two neighbours of whom one could not open the other's bundle, and nobody
        of whose row fewer than t are left.

        Returns: silo that was left out -> those with whom it has no pair seed; empty where its row was too small.
        """
        left_out: dict[str, tuple[str, ...]] = {}
        inside = set(self._ready)
        apart = {silo: set(self._apart(silo, inside)) for silo in inside}
        apart = {silo: others | {other for other in inside if silo in apart[other]} for silo, others in apart.items()}
        while inside:
            worst = min(inside, key=lambda silo: (-len(apart[silo]), silo))
            if apart[worst]:
                left_out[worst] = tuple(sorted(apart[worst]))
                inside.discard(worst)
                for other in apart.pop(worst):
                    apart[other].discard(worst)
                continue
            alone = self._alone(inside)
            if not alone:
                break
            left_out |= dict.fromkeys(alone, ())
            inside -= alone
        self._close("ready", {silo: self._ready_digests[silo] for silo in inside})
        return left_out

    def _apart(self, silo: str, inside: set[str]) -> set[str]:
        return (self._near(silo) & inside) - set(self._ready[silo].senders)

    def _alone(self, inside: set[str]) -> set[str]:
        """Silos that would refuse the set, because too few of their row are in it."""
        t = self.parameters.neighbourhood.t
        return {silo for silo in inside if len(inside.intersection(self._rows[silo])) < t}

    def leaves_for(self, what: str, silo: str, known: Iterable[str] = ()) -> list[Leaf]:
        """What `accept_ready` ("ready") and `sign_list` ("list") of this silo need; `known`: partners to prove too."""
        tree = self._tree(what)
        near = set(self._rows[silo]) & self._keys.keys() | self._drew[silo] | {silo} | set(known)
        return [tree.leaf(other) for other in sorted(near)]

    def claim(self, what: str) -> Claim:
        """Root and size of a set that was closed."""
        return self._tree(what).claim

    # --- 5, 6. updates and the list ----------------------------------------------------------------------------------

    def take_update(self, envelope: Envelope) -> str:
        """The last message of an upload; the caller compares its `chunks` with those that came. Returns: the silo."""
        message = self._open(messages.SparseUpdate, envelope, before="list", within="ready")
        if message.ready_set != self.claim("ready").root:
            raise ProtocolViolation("OTHER_SET", f"the update of {message.silo} wears the masks of another ready set")
        if len(message.chunks) != self.parameters.chunk_count:
            raise ProtocolViolation(
                "BAD_MESSAGE",
                f"the update of {message.silo} has {len(message.chunks)} chunks, not {self.parameters.chunk_count}",
            )
        self._updates[message.silo] = envelope
        return message.silo

    def close_list(self) -> Claim:
        """Fix the list: all whose update is complete, but nobody of whose row fewer than t are left."""
        inside = set(self._updates)
        while alone := self._alone(inside):
            inside -= alone
        return self._close("list", dict.fromkeys(inside, SUMMED))

    def updates_for(self, silo: str) -> list[Envelope]:
        """The updates that `sign_list` of this silo needs."""
        members = self._tree("list").values
        return [self._updates[other] for other in sorted(self._drew[silo]) if other in members]

    def take_list(self, envelope: Envelope) -> str:
        """A signature on the list. Returns: the silo."""
        message = self._open(messages.SparseList, envelope, within="list")
        ready, claim = self.claim("ready"), self.claim("list")
        said = (Claim(message.ready_set, message.ready_size), Claim(message.members, message.size))
        if said != (ready, claim):
            raise ProtocolViolation("TWO_LISTS", f"{message.silo} signed another list")
        self._lists[message.silo] = envelope
        return message.silo

    def lists_for(self, silo: str) -> list[Envelope]:
        """The signatures that `unmask` of this silo needs, as far as they came."""
        return [self._lists[other] for other in self._rows[silo] if other in self._lists]

    # --- 7. the sum --------------------------------------------------------------------------------------------------

    def take_unmask(self, envelope: Envelope) -> str:
        """Shares for exactly the list. Returns: the silo."""
        message = self._open(messages.SparseUnmask, envelope, within="list")
        owners = self._drew[message.silo] & self._tree("ready").values.keys()
        summed = owners & self._tree("list").values.keys()
        if (set(message.self_shares), set(message.list_shares)) != (summed, owners - summed):
            raise ProtocolViolation("OTHER_SET", f"the shares of {message.silo} are not those of the signed list")
        self._unmask[message.silo] = message
        return message.silo

    def recover(self) -> Removal:
        """Rebuild b of the list's members and the pair seeds of those of R that fell out.

        Raises:
            NotEnoughShares: fewer than t shares of a secret fit; wait for more `unmask` messages.
            ProtocolViolation: BAD_DEALER or LIST_UNREADABLE names a silo whose shares or list are wrong.
        """
        recovery = Recovery(self.parameters, self._root, self._rows, self._hashes, self._ready, self._unmask)
        return recovery.removal(set(self._tree("list").values), set(self._tree("ready").values))

    # --- what all steps share ----------------------------------------------------------------------------------------

    @property
    def _root(self) -> str:
        return self.claim("roster").root

    def _near(self, silo: str) -> set[str]:
        """The neighbours that sent this silo a box."""
        return {*self._rows[silo], *self._drew[silo]} & self._hashes.keys()

    def _open(self, kind: type[M], envelope: Envelope, *, before: str = "", within: str = "") -> M:
        message = open_signed(self.parameters, kind, envelope, self._root if within else None)
        if before in self._trees:
            raise ProtocolViolation(
                "OUT_OF_STAGE", f"{kind.STAGE} of {message.silo} comes after the {before} was fixed"
            )
        if within and message.silo not in self._tree(within).values:
            raise ProtocolViolation("OUTSIDE_PARENT", f"{message.silo} is not in the {within}")
        return message

    def _close(self, what: str, values: Mapping[str, str]) -> Claim:
        if what in self._trees:
            raise ProtocolViolation("OUT_OF_STAGE", f"the {what} was fixed before")
        tree = Tree(self.parameters, values)
        if len(values) < self.parameters.least_set:
            raise ProtocolViolation(
                "SET_TOO_SMALL", f"the {what} has {len(values)} silos, at least {self.parameters.least_set} are needed"
            )
        self._trees[what] = tree
        return tree.claim

    def _tree(self, what: str) -> Tree:
        tree = self._trees.get(what)
        if tree is None:
            raise ProtocolViolation("OUT_OF_STAGE", f"the {what} is not fixed yet")
        return tree
