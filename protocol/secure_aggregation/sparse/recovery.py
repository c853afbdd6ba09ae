"""Rebuilding secrets from shares. Each owner signed the hash of each share, and its holder checked the share against it
before it was ready, so a share that does not fit names its sender, however many lie together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from protocol.secure_aggregation import sealing, shamir
from protocol.secure_aggregation.coordinator import Removal
from protocol.secure_aggregation.errors import NotEnoughShares, ProtocolViolation
from protocol.secure_aggregation.masking import Masks
from protocol.secure_aggregation.sealing import SealingError
from protocol.secure_aggregation.sparse import boxes
from protocol.secure_aggregation.sparse.messages import SparseReady, SparseUnmask
from protocol.secure_aggregation.sparse.parameters import SparseParameters

Secret = Literal["self", "list"]


@dataclass
class Recovery:
    """What came in, and whom it proves wrong.

    rows: silo -> the silos that hold its shares. hashes: owner -> holder -> hashes of both shares.
    bad: silos proved to have sent a wrong share.
    """

    parameters: SparseParameters
    roster: str
    rows: Mapping[str, tuple[str, ...]]
    hashes: Mapping[str, Mapping[str, tuple[str, ...]]]
    ready: Mapping[str, SparseReady]
    unmask: Mapping[str, SparseUnmask]
    bad: set[str] = field(default_factory=set)

    def removal(self, summed: set[str], ready: set[str]) -> Removal:
        """The masks that are left in the sum. Raises: as `SparseCoordinator.recover`."""
        ctx, positions = self.parameters.ctx, self.parameters.positions
        own = [self._rebuild("self", silo, self.ready[silo].self_hash) for silo in sorted(summed)]
        plus: list[bytes] = []
        minus: list[bytes] = []
        for silo in sorted(ready - summed):
            key = self._rebuild("list", silo, self.ready[silo].list_hash)
            try:
                seeds = sealing.open_list(self.ready[silo].list_box, key=key, ctx=ctx, roster=self.roster, silo=silo)
            except SealingError as error:
                raise ProtocolViolation("LIST_UNREADABLE", f"{error}; the round cannot be summed") from error
            for index, member in enumerate(self.ready[silo].senders):
                if member in summed:
                    # A member added the seed it shares with a later silo, and subtracted that with an earlier one.
                    added = positions[silo] > positions[member]
                    (plus if added else minus).append(seeds[32 * index : 32 * index + 32])
        # What was added is subtracted now, and the other way round.
        masks = Masks.build(ctx, self_minus=own, pair_plus=minus, pair_minus=plus)
        return Removal(self.parameters, tuple(sorted(summed)), tuple(sorted(self.bad)), (), masks)

    def _rebuild(self, what: Secret, owner: str, signed: str) -> bytes:
        t = self.parameters.neighbourhood.t
        good: dict[int, bytes] = {}
        for x, holder in enumerate(self.rows[owner], start=1):
            share = self._share(what, owner, holder)
            if share is not None and len(good) < t:
                good[x] = share
        if len(good) < t:
            raise NotEnoughShares(
                f"the {what} secret of {owner}: {len(good)} shares that fit their hashes came, {t} are needed",
                bad=self.bad,
            )
        secret = shamir.interpolate(good)
        if not sealing.fits(what, secret, signed, ctx=self.parameters.ctx, silo=owner):
            raise ProtocolViolation(
                "BAD_DEALER", f"{owner} dealt shares that do not make its {what} secret; the round cannot be summed"
            )
        return secret

    def _share(self, what: Secret, owner: str, holder: str) -> bytes | None:
        """A holder's share, None where none came or it is wrong; then the holder is named."""
        message = self.unmask.get(holder)
        if message is None:
            return None
        # `take_unmask` took exactly the shares of the silos that drew this holder.
        share = (message.self_shares if what == "self" else message.list_shares)[owner]
        wanted = self.hashes[owner][holder][what == "list"]
        if not boxes.share_fits(what, share, wanted, ctx=self.parameters.ctx, owner=owner, holder=holder):
            self.bad.add(holder)
            return None
        return share
