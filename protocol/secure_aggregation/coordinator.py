"""The coordinator's side of a round: checks what silos send, and takes the masks off the sum.

Pure: everything is computed from the signed envelopes that the portal stored, so no process holds state that matters.
The portal could skip any check here; it would only harm itself, for each silo checks all of it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Bundles, Check, Keys, ListSignature, Nonce, Ready, SecondList, Sketch, Unmask, Update
from protocol.secure_aggregation import checks, sealing, sets
from protocol.secure_aggregation.checks import FinalList, NoncesView, SketchesView
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.masking import Masks
from protocol.secure_aggregation.parameters import RoundParameters, colluders
from protocol.secure_aggregation.recovery import Rebuilder
from protocol.secure_aggregation.sealing import SealingError
from protocol.secure_aggregation.sets import ListView, ReadyView, RosterView
from protocol.secure_aggregation.sketch import Verdict
from protocol.secure_aggregation.words import Lanes, Packed, add_packed, lane
from protocol.signing import Envelope


@dataclass(frozen=True)
class ReadyChoice:
    """Which `ready` messages make the set R.

    envelopes: of the members, to be relayed. members: sorted.
    left_out: silo -> sorted names of those with whom it has no pair seed, as one could not open the other's bundle.
    """

    envelopes: tuple[Envelope, ...]
    members: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Removal:
    """The masks that are left in the sum of the members' updates.

    members: whose updates are summed.
    bad_senders: silos proved to have sent a wrong share. suspects: silos of whom some did, where it cannot be told who
    (see recovery.py). The masks are right in both cases.
    """

    parameters: RoundParameters
    members: tuple[str, ...]
    bad_senders: tuple[str, ...]
    suspects: tuple[str, ...]
    masks: Masks

    def sum_chunk(self, k: int, chunks: Iterable[Packed], *, threads: int = 1) -> Lanes:
        """Chunk k of the sum, masks removed, as lanes: pack them to publish them.

        Parameters:
            chunks: the members' masked chunks k as they came, each once, in any order. Each is used up before the next
                is asked for, so all may be read into one buffer: memory is two chunks, whatever their number.
            threads: that take the masks away.

        Raises:
            IndexError: there is no chunk k.
            ValueError: a chunk has another length, or not one came for each member.
        """
        _, start, stop = self.parameters.chunk_range(k)
        bits = self.parameters.bits(k)
        total: Lanes = np.zeros(stop - start, dtype=lane(bits))
        came = 0
        for chunk in chunks:
            add_packed(total, chunk, bits)
            came += 1
        if came != len(self.members):
            raise ValueError(f"{came} chunks came, the sum is over {len(self.members)} silos")
        self.subtract(k, total, threads=threads)
        return total

    def subtract(self, k: int, lanes: Lanes, *, threads: int = 1) -> None:
        """Take the masks off chunk k in place: from the sum of the members' masked chunks k, in the ring of the lane.

        Constant memory, any order, thread safe for different arrays.

        Raises:
            IndexError: there is no chunk k.
            ValueError: the array has another length or type, or cannot be written.
        """
        kind, start, stop = self.parameters.chunk_range(k)
        wanted = lane(self.parameters.bits(k))
        if (lanes.dtype, lanes.shape) != (wanted, (stop - start,)):
            raise ValueError(f"chunk {k} has {stop - start} words of {wanted}, not {lanes.shape} of {lanes.dtype}")
        self.masks.apply(lanes, kind, start, threads=threads)


class Coordinator:
    """Checks and arithmetic of one attempt. Every method raises `ProtocolViolation` for what does not fit.

    Each set is read in one method only (`roster`, `ready`, `list_of`, `first`, `sketches`, `judge`, `final`, `nonces`), so
    whoever is asked again and again overrides them to remember what came of a set. Envelopes may be iterated over twice.
    """

    def __init__(self, parameters: RoundParameters) -> None:
        self.parameters = parameters

    # --- one message at a time, as it comes in: who sent it --------------------------------------------------------

    def check_keys(self, envelope: Envelope) -> str:
        """A signed, usable round key. Returns: the silo."""
        message = sets.open_signed(self.parameters, Keys, envelope, None)
        try:
            sealing.check_public(message.hpke_public)
        except SealingError as error:
            raise ProtocolViolation("BAD_KEY", f"the round key of {message.silo}: {error}") from error
        return message.silo

    def roster(self, envelopes: Iterable[Envelope]) -> RosterView:
        """The roster of all `keys` that came; at least min_roster."""
        return sets.read_roster(self.parameters, envelopes)

    def check_bundles(self, roster: RosterView, envelope: Envelope) -> str:
        """One box for each other silo of the roster. Returns: the silo."""
        message = sets.open_signed(self.parameters, Bundles, envelope, roster)
        if set(message.boxes) != set(roster.members) - {message.silo}:
            raise ProtocolViolation("BAD_MESSAGE", f"bundles of {message.silo}: not one box for each other silo")
        return message.silo

    def boxes_for(self, roster: RosterView, bundle_envelopes: Iterable[Envelope], silo: str) -> dict[str, bytes]:
        """{sender: box} of all boxes for one silo."""
        boxes = {}
        for envelope in bundle_envelopes:
            message = sets.open_signed(self.parameters, Bundles, envelope, roster)
            if message.silo != silo and silo in message.boxes:
                boxes[message.silo] = message.boxes[silo]
        return boxes

    def check_ready(self, roster: RosterView, envelope: Envelope) -> str:
        """A `ready` whose list is the one that it names. Returns: the silo."""
        message = sets.open_signed(self.parameters, Ready, envelope, roster)
        sets.check_ready(roster, message)
        return message.silo

    def choose_ready(self, roster: RosterView, ready_envelopes: Iterable[Envelope]) -> ReadyChoice:
        """The set R: all who are ready, without those who share no pair seed with another member.

        Where two could not open each other's bundle one of them goes: whoever has most such partners, among equals the
        one whose bundle more silos could not open, then the first by name.

        Raises:
            ProtocolViolation: SET_TOO_SMALL where too few are left.
        """
        ready: dict[str, tuple[Ready, Envelope]] = {}
        for envelope in ready_envelopes:
            message = sets.open_signed(self.parameters, Ready, envelope, roster)
            sets.check_ready(roster, message)
            ready[message.silo] = (message, envelope)
        left_out: dict[str, tuple[str, ...]] = {}

        def unopened(sender: str) -> set[str]:
            return {silo for silo, (message, _) in ready.items() if silo != sender and sender not in message.senders}

        while True:
            partners = {
                silo: unopened(silo) | (set(ready) - {silo} - set(message.senders))
                for silo, (message, _) in ready.items()
            }
            worst = min(ready, key=lambda silo: (-len(partners[silo]), -len(unopened(silo)), silo), default=None)
            if worst is None or not partners[worst]:
                break
            left_out[worst] = tuple(sorted(partners[worst]))
            del ready[worst]
        sets.check_size(self.parameters, roster, len(ready), "ready set")
        members = tuple(sorted(ready))
        return ReadyChoice(tuple(ready[silo][1] for silo in members), members, left_out)

    def ready(self, roster: RosterView, ready_envelopes: Iterable[Envelope]) -> ReadyView:
        """The set R of exactly these `ready` messages."""
        return sets.read_ready(self.parameters, roster, ready_envelopes)

    def check_update(self, roster: RosterView, ready_envelopes: Iterable[Envelope], envelope: Envelope) -> str:
        """The last message of an upload; the caller compares its `chunks` with those that came. Returns: the silo."""
        ready = self.ready(roster, ready_envelopes)
        message = sets.open_signed(self.parameters, Update, envelope, roster)
        sets.check_update(self.parameters, ready, message)
        return message.silo

    def list_of(
        self, roster: RosterView, ready_envelopes: Iterable[Envelope], update_envelopes: Iterable[Envelope]
    ) -> ListView:
        """The list L1 that these `update` messages make."""
        return sets.read_updates(self.parameters, roster, self.ready(roster, ready_envelopes), update_envelopes)

    def check_list(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        update_envelopes: Iterable[Envelope],
        envelope: Envelope,
    ) -> str:
        """A signature on the list that these `update` messages make. Returns: the silo."""
        ready = self.ready(roster, ready_envelopes)
        message = sets.open_signed(self.parameters, ListSignature, envelope, roster)
        view = sets.check_list(self.parameters, roster, ready, message)
        if view != self.list_of(roster, ready_envelopes, update_envelopes):
            raise ProtocolViolation("TWO_LISTS", f"{message.silo} signed another list")
        return message.silo

    # --- 6. sketches and the second list, where the manifest has them -------------------------------------------------

    def check_sketch(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        envelope: Envelope,
    ) -> str:
        """One sketch, under the seed of these lists' nonces. Returns: the silo."""
        checks.terms_of(self.parameters)
        first, nonces = self.first(roster, ready_envelopes, list_envelopes)
        message = sets.open_signed(self.parameters, Sketch, envelope, roster)
        checks.check_sketch(first, nonces.digest, message)
        return message.silo

    def sketches(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        sketch_envelopes: Iterable[Envelope],
    ) -> SketchesView:
        """All sketches of these lists."""
        first, nonces = self.first(roster, ready_envelopes, list_envelopes)
        return checks.read_sketches(self.parameters, roster, first, nonces.digest, sketch_envelopes)

    def judge(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        sketch_envelopes: Iterable[Envelope],
    ) -> tuple[SketchesView, Verdict]:
        """All sketches, and what the manifest's rule says of them.

        Raises:
            ProtocolViolation: SET_TOO_SMALL where it leaves too few for a sum.
        """
        sketches = self.sketches(roster, ready_envelopes, list_envelopes, sketch_envelopes)
        return sketches, checks.apply_rule(self.parameters, roster, sketches)

    def check_second(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        sketch_envelopes: Iterable[Envelope],
        envelope: Envelope,
    ) -> str:
        """A signature on the second list that follows from these sketches. Returns: the silo."""
        first, _ = self.first(roster, ready_envelopes, list_envelopes)
        sketches, verdict = self.judge(roster, ready_envelopes, list_envelopes, sketch_envelopes)
        message = sets.open_signed(self.parameters, SecondList, envelope, roster)
        said = checks.check_second(self.parameters, roster, first, message)
        if (said.members, said.sketches) != (verdict.members, sketches.digest):
            raise ProtocolViolation("TWO_LISTS", f"{message.silo} signed another second list")
        return message.silo

    def sketch_of_sum(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        sketch_envelopes: Iterable[Envelope],
        body: Iterable[NDArray[np.int32]],
    ) -> None:
        """Hold the sum's body (signed words, in order) against the members' sketches.

        Raises:
            ProtocolViolation: SKETCH_DIFFERS: somebody's sketch was not that of what it sent; the sum is thrown away.
        """
        _, nonces = self.first(roster, ready_envelopes, list_envelopes)
        sketches, verdict = self.judge(roster, ready_envelopes, list_envelopes, sketch_envelopes)
        checks.compare_sketches(self.parameters, nonces.seed, checks.total_of(sketches, verdict.members), body)

    def first(
        self, roster: RosterView, ready_envelopes: Iterable[Envelope], list_envelopes: Iterable[Envelope]
    ) -> tuple[ListView, NoncesView]:
        """The list L1 that at least t signed, and the seed of the sketches, from the nonces that came with it."""
        return checks.sketch_nonces(self.parameters, roster, self.ready(roster, ready_envelopes), list_envelopes)

    # --- 7. unmask ---------------------------------------------------------------------------------------------------

    def final(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        second_envelopes: Iterable[Envelope] = (),
    ) -> FinalList:
        """The list that is summed. `second_envelopes`: where the manifest has the sketch check."""
        ready = self.ready(roster, ready_envelopes)
        return checks.read_final(self.parameters, roster, ready, list_envelopes, second_envelopes)

    def check_unmask(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        envelope: Envelope,
        second_envelopes: Iterable[Envelope] = (),
    ) -> str:
        """Shares for exactly the list that is summed. Returns: the silo."""
        final = self.final(roster, ready_envelopes, list_envelopes, second_envelopes)
        return self._open_unmask(roster, self.ready(roster, ready_envelopes), final, envelope).silo

    def _open_unmask(self, roster: RosterView, ready: ReadyView, final: FinalList, envelope: Envelope) -> Unmask:
        message = sets.open_signed(self.parameters, Unmask, envelope, roster)
        if message.silo not in ready.members:
            raise ProtocolViolation("OUTSIDE_PARENT", f"{message.silo} is not in the ready set")
        wanted = (set(final.members), set(ready.members) - set(final.members))
        if (set(message.self_shares), set(message.list_shares)) != wanted:
            raise ProtocolViolation("OTHER_SET", f"the shares of {message.silo} are not those of the signed list")
        return message

    # --- 8. second nonces and check words -----------------------------------------------------------------------------

    def check_nonce(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        final: FinalList,
        published: str,
        envelope: Envelope,
    ) -> str:
        """A second nonce, opened for the sum with this digest. Returns: the silo."""
        message = sets.open_signed(self.parameters, Nonce, envelope, roster)
        checks.check_nonce(self.parameters, self.ready(roster, ready_envelopes), final, published, message)
        return message.silo

    def nonces(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        final: FinalList,
        published: str,
        nonce_envelopes: Iterable[Envelope],
    ) -> NoncesView:
        """The seed of the check words, from at least t members' nonces."""
        ready = self.ready(roster, ready_envelopes)
        return checks.read_nonces(self.parameters, roster, ready, final, published, nonce_envelopes)

    def check_check(
        self, roster: RosterView, final: FinalList, published: str, nonces: NoncesView, envelope: Envelope
    ) -> str:
        """A check word for this sum under these nonces. Returns: the silo."""
        message = sets.open_signed(self.parameters, Check, envelope, roster)
        checks.check_check(final.members, published, nonces.digest, message)
        return message.silo

    def check_sum(
        self,
        roster: RosterView,
        final: FinalList,
        published: str,
        nonces: NoncesView,
        check_envelopes: Iterable[Envelope],
        body: Iterable[NDArray[np.int32]],
        tail: NDArray[np.uint64],
    ) -> bool:
        """Hold the sum (body as signed words in order) against the check words, as each silo does.

        Returns:
            False where a member's word is missing and the manifest lets the sum stand so.

        Raises:
            ProtocolViolation: CHECK_MISSING, SUM_NOT_TRUE.
        """
        expected = checks.read_checks(self.parameters, roster, final, published, nonces.digest, check_envelopes)
        if expected is not None:
            checks.compare_words(self.parameters, nonces.seed, expected, body, tail)
        return expected is not None

    # --- the sum -----------------------------------------------------------------------------------------------------

    def recover(
        self,
        roster: RosterView,
        ready_envelopes: Iterable[Envelope],
        list_envelopes: Iterable[Envelope],
        unmask_envelopes: Sequence[Envelope],
        second_envelopes: Iterable[Envelope] = (),
    ) -> Removal:
        """Rebuild the self masks of the list's members and the pair seeds of those who fell out after `ready`.

        Raises:
            NotEnoughShares: fewer than t shares of a secret fit; wait for more `unmask` messages.
            ProtocolViolation: LIST_UNREADABLE names a silo that fell out and whose list does not open.
        """
        ready = self.ready(roster, ready_envelopes)
        view = self.final(roster, ready_envelopes, list_envelopes, second_envelopes)
        messages = {
            message.silo: message
            for message in (self._open_unmask(roster, ready, view, envelope) for envelope in unmask_envelopes)
        }
        rebuilder, ctx = (
            Rebuilder(roster, colluders(len(roster.members), self.parameters.min_participants)),
            self.parameters.ctx,
        )
        own = []
        for silo in view.members:
            shares = {sender: message.self_shares[silo] for sender, message in messages.items()}
            own.append(rebuilder.rebuild("self", silo, shares, ctx=ctx, signed=ready.ready[silo].self_hash))
        plus: list[bytes] = []
        minus: list[bytes] = []
        for silo in sorted(set(ready.members) - set(view.members)):
            shares = {sender: message.list_shares[silo] for sender, message in messages.items()}
            key = rebuilder.rebuild("list", silo, shares, ctx=ctx, signed=ready.ready[silo].list_hash)
            try:
                seeds = sealing.open_list(ready.ready[silo].list_box, key=key, ctx=ctx, roster=roster.digest, silo=silo)
            except SealingError as error:
                raise ProtocolViolation("LIST_UNREADABLE", f"{error}; the round cannot be summed") from error
            for member in view.members:
                index = roster.index(member)
                # A member added the seed it shares with a later silo, and subtracted that with an earlier one.
                (plus if silo > member else minus).append(seeds[32 * index : 32 * index + 32])
        # What was added is subtracted now, and the other way round.
        masks = Masks.build(ctx, self_minus=own, pair_plus=minus, pair_minus=plus)
        suspects = tuple(sorted(rebuilder.suspects - rebuilder.bad))
        return Removal(self.parameters, view.members, tuple(sorted(rebuilder.bad)), suspects, masks)
