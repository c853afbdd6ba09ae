"""The coordinator's side of a sparse round: checks what silos send, fixes the sets, and hands each silo its part.

It takes signed envelopes one by one and keeps what it needs of them, no boxes and no chunks; fed with the same stored
envelopes again it is the same coordinator. What it could do wrong each silo checks again for its own neighbourhood.

    take_keys().. close_roster()   take_row().. close_graph()   take_bundles()..
    take_ready().. close_ready()   take_update().. close_list()   take_list()..   take_unmask().. recover()
    take_nonce().. close_nonces()  take_check().. check_sum()

`check_list`, `check_unmask`, `check_nonce` and `check_check` look at a message that comes too late to be taken. Every
method raises `ProtocolViolation` for what does not fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Check, Message, Nonce
from protocol.secure_aggregation import check_word, checks, sealing
from protocol.secure_aggregation.coordinator import Removal
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.sealing import SealingError
from protocol.secure_aggregation.sparse import graph, messages
from protocol.secure_aggregation.sparse.attempt import open_signed
from protocol.secure_aggregation.sparse.boxes import Parcel
from protocol.secure_aggregation.sparse.nonces import Opened, OpenedNonces, ready_value
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
        self._holders: Counter[str] = Counter()
        self._nonces: dict[str, bytes] = {}
        self._opened_nonces: OpenedNonces | None = None
        self._checks: dict[str, Check] = {}

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
        if not sealing.fits("graph", message.nonce, keys.graph, ctx=self.parameters.ctx, silo=message.silo):
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

    def take_bundles(self, envelope: Envelope) -> tuple[str, dict[str, Parcel]]:
        """One box for each neighbour that is present, hashes for those of the sender's row.

        Returns: the silo; {receiver: parcel}, to be delivered: the boxes are not kept.
        """
        message = self._open(messages.SparseBundles, envelope, before="ready", within="graph")
        row = set(self._rows[message.silo]) & self._keys.keys()
        if set(message.boxes) != row | self._drew[message.silo] or set(message.hashes) != row:
            raise ProtocolViolation("BAD_MESSAGE", f"bundles of {message.silo}: not one box for each neighbour")
        self._hashes[message.silo] = message.hashes
        parcels = {silo: Parcel(box, message.hashes.get(silo)) for silo, box in message.boxes.items()}
        return message.silo, parcels

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

    def choose_ready(self, who: Iterable[str] | None = None) -> tuple[set[str], dict[str, tuple[str, ...]]]:
        """R: all who are ready, but not two neighbours of whom one could not open the other's bundle, and nobody of whose
        row fewer than t are left. Nothing is fixed yet.

        Parameters: who: of those that are ready; None: all.

        Returns: R; and silo that was left out -> those with whom it has no pair seed, empty where its row was too small.
        """
        left_out: dict[str, tuple[str, ...]] = {}
        inside = set(self._ready if who is None else who)
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
        return inside, left_out

    def close_ready(self) -> dict[str, tuple[str, ...]]:
        """Fix R as `choose_ready` chooses it from all who are ready. Returns: who was left out, as there."""
        inside, left_out = self.choose_ready()
        self._close("ready", {silo: ready_value(self._ready_digests[silo], self._ready[silo].nonce) for silo in inside})
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

    def members(self, what: str) -> tuple[str, ...]:
        """Who is in a set that was closed: "roster", "graph", "ready" or "list"; sorted."""
        return tuple(sorted(self._tree(what).values))

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

    def choose_list(self, who: Iterable[str] | None = None) -> set[str]:
        """All whose update is complete, but nobody of whose row fewer than t are left. Nothing is fixed yet.

        Parameters: who: of those whose update is complete; None: all.
        """
        inside = set(self._updates if who is None else who)
        while alone := self._alone(inside):
            inside -= alone
        return inside

    def close_list(self) -> Claim:
        """Fix the list as `choose_list` chooses it from all whose update is complete."""
        return self._close("list", dict.fromkeys(self.choose_list(), SUMMED))

    def updates_for(self, silo: str) -> list[Envelope]:
        """The updates that `sign_list` of this silo needs."""
        members = self._tree("list").values
        return [self._updates[other] for other in sorted(self._drew[silo]) if other in members]

    def check_list(self, envelope: Envelope) -> str:
        """A signature on the list. Returns: the silo."""
        message = self._open(messages.SparseList, envelope, within="list")
        ready, claim = self.claim("ready"), self.claim("list")
        said = (Claim(message.ready_set, message.ready_size), Claim(message.members, message.size))
        if said != (ready, claim):
            raise ProtocolViolation("TWO_LISTS", f"{message.silo} signed another list")
        return message.silo

    def take_list(self, envelope: Envelope) -> str:
        """As `check_list`, and it counts."""
        silo = self.check_list(envelope)
        self._lists[silo] = envelope
        return silo

    def lists_for(self, silo: str) -> list[Envelope]:
        """The signatures that `unmask` of this silo needs, as far as they came."""
        return [self._lists[other] for other in self._rows[silo] if other in self._lists]

    def able(self, signers: Iterable[str] | None = None) -> set[str]:
        """Of those who signed the list those who may reveal, because t of their row signed it too.

        Parameters: signers: who signed, or may still do; None: who signed so far.
        """
        signed = set(self._lists if signers is None else signers)
        return signed - self._alone(signed)

    def can_unmask(self, able: set[str]) -> bool:
        """Whether every secret that is needed can be rebuilt from the shares of these silos."""
        t = self.parameters.neighbourhood.t
        return all(len(able.intersection(self._rows[silo])) >= t for silo in self._tree("ready").values)

    # --- 7. the sum --------------------------------------------------------------------------------------------------

    def check_unmask(self, envelope: Envelope) -> str:
        """Shares for exactly the list. Returns: the silo."""
        return self._open_unmask(envelope).silo

    def take_unmask(self, envelope: Envelope) -> str:
        """As `check_unmask`, and they are used."""
        message = self._open_unmask(envelope)
        if message.silo not in self._unmask:
            self._holders.update([*message.self_shares, *message.list_shares])
        self._unmask[message.silo] = message
        return message.silo

    def enough(self) -> bool:
        """Whether t shares of each secret came, right or wrong."""
        t = self.parameters.neighbourhood.t
        return all(self._holders[silo] >= t for silo in self._tree("ready").values)

    def _open_unmask(self, envelope: Envelope) -> messages.SparseUnmask:
        message = self._open(messages.SparseUnmask, envelope, within="list")
        owners = self._drew[message.silo] & self._tree("ready").values.keys()
        summed = owners & self._tree("list").values.keys()
        if (set(message.self_shares), set(message.list_shares)) != (summed, owners - summed):
            raise ProtocolViolation("OTHER_SET", f"the shares of {message.silo} are not those of the signed list")
        return message

    def recover(self) -> Removal:
        """Rebuild b of the list's members and the pair seeds of those of R that fell out.

        Raises:
            NotEnoughShares: fewer than t shares of a secret fit; wait for more `unmask` messages.
            ProtocolViolation: BAD_DEALER or LIST_UNREADABLE names a silo whose shares or list are wrong.
        """
        recovery = Recovery(self.parameters, self._root, self._rows, self._hashes, self._ready, self._unmask)
        return recovery.removal(set(self._tree("list").values), set(self._tree("ready").values))

    # --- 8. second nonces and check words ----------------------------------------------------------------------------

    def check_nonce(self, published: str, envelope: Envelope) -> str:
        """A second nonce, opened for the sum with this digest. Returns: the silo."""
        return self._open_nonce(published, envelope).silo

    def take_nonce(self, published: str, envelope: Envelope) -> str:
        """As `check_nonce`, and it counts."""
        message = self._open_nonce(published, envelope)
        if self._opened_nonces is not None:
            raise ProtocolViolation("OUT_OF_STAGE", f"nonce of {message.silo} comes after the nonces were fixed")
        self._nonces[message.silo] = message.nonce
        return message.silo

    def close_nonces(self) -> None:
        """Fix the nonces; those who opened none stand in them by their values in R."""
        ready = self._tree("ready").values
        self._opened_nonces = OpenedNonces(
            {silo: Opened(self._ready_digests[silo], nonce) for silo, nonce in sorted(self._nonces.items())},
            {silo: value for silo, value in ready.items() if silo not in self._nonces},
        )

    @property
    def opened_nonces(self) -> OpenedNonces:
        """What `send_check` of every silo needs."""
        if self._opened_nonces is None:
            raise ProtocolViolation("OUT_OF_STAGE", "the nonces are not fixed yet")
        return self._opened_nonces

    def check_check(self, published: str, envelope: Envelope) -> str:
        """A check word for this sum under the fixed nonces. Returns: the silo."""
        return self._open_check(published, envelope).silo

    def take_check(self, published: str, envelope: Envelope) -> str:
        """As `check_check`, and it counts."""
        message = self._open_check(published, envelope)
        self._checks[message.silo] = message
        return message.silo

    def check_sum(self, published: str, body: Iterable[NDArray[np.int32]], tail: NDArray[np.uint64]) -> bool:
        """Hold the sum against the check words, as each silo does.

        Returns, raises: as the dense `Coordinator.check_sum`.
        """
        opened, members = self.opened_nonces, self._tree("list").values
        expected = checks.add_checks(self.parameters, members, published, opened.digest, self._checks)
        if expected is None:
            return False
        nonces = {silo: each.nonce for silo, each in opened.nonces.items()}
        seed = check_word.seed_of(self.parameters.ctx, published, nonces)
        checks.compare_words(self.parameters, seed, expected, body, tail)
        return nonces.keys() == members.keys()

    def _open_nonce(self, published: str, envelope: Envelope) -> Nonce:
        message = self._open(Nonce, envelope, within="list")
        checks.check_sum(self._tree("list").values, published, message)
        wanted = self._ready[message.silo].nonce
        if not sealing.fits("nonce 2", message.nonce, wanted, ctx=self.parameters.ctx, silo=message.silo):
            raise ProtocolViolation("BAD_NONCE", f"the nonce of {message.silo} is not the one it committed to")
        return message

    def _open_check(self, published: str, envelope: Envelope) -> Check:
        message = self._open(Check, envelope, within="list")
        checks.check_check(self._tree("list").values, published, self.opened_nonces.digest, message)
        try:
            check_word.add_up([message.word])
        except ValueError as error:
            raise ProtocolViolation("BAD_CHECK", f"{error}, unlike that of {message.silo}") from error
        return message

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
