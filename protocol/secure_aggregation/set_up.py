"""Steps 1 to 3 of a silo's round: a fresh key, bundles to the peers, and the set R between whom masks exist."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from protocol import canonical
from protocol.messages import Bundles, Keys, Ready
from protocol.secure_aggregation import sealing, sets, shamir
from protocol.secure_aggregation.attempt import SECRET_BYTES, Attempt
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sealing import Bundle, SealingError
from protocol.secure_aggregation.sets import RosterView
from protocol.signing import Envelope


class SetUp(Attempt):
    """From `keys()` to `accept_ready()`."""

    # --- 1. keys -----------------------------------------------------------------------------------------------------

    def keys(self) -> Envelope:
        """Join the attempt with a fresh HPKE key; the secrets of older attempts are erased.

        Raises:
            ProtocolViolation: OLD_ROUND, ROUND_SPENT (a list of another attempt of this round was signed), ROUND_OVER,
                OTHER_MODEL (this attempt was joined with another model or manifest), OTHER_LENGTH (or for an update of
                another length), NO_MODEL.
            StudyPaused: three lists were signed for this model state.
        """
        with self._lock:
            record = self._join("keys()")
            return self._seal(Keys, roster=None, hpke_public=sealing.public_of(canonical.unb64(record["hpke"])))

    # --- 2. bundles --------------------------------------------------------------------------------------------------

    def accept_roster(self, envelopes: Iterable[Envelope]) -> Envelope:
        """Take the one roster of this attempt (all signed `keys`) and seal a bundle to each other silo in it.

        Raises:
            ProtocolViolation: LEFT_OUT, OTHER_KEY (not the key this silo made), BAD_KEY, TOO_FEW_KNOWN, SECOND_ROSTER,
                and what `sets.read_roster` raises.
        """
        with self._lock:
            own = self._secrets("accept_roster()")
            roster = sets.read_roster(self.parameters, envelopes)
            if self.silo not in roster.members:
                raise ProtocolViolation("LEFT_OUT", f"the roster does not name {self.silo}")
            if roster.keys[self.silo] != sealing.public_of(canonical.unb64(own["hpke"])):
                raise ProtocolViolation("OTHER_KEY", f"the roster holds another round key for {self.silo}")
            self._check_known(roster.members, "roster")
            record = self._records.read("roster")
            if record is None:
                record = self._make_bundles(own, roster)
                self._records.write("roster", record)
            if record["digest"] != roster.digest:
                raise ProtocolViolation("SECOND_ROSTER", "this silo already took another roster in this attempt")
            self._roster = roster
            return envelope_in(record["sent"])

    def _make_bundles(self, own: dict[str, Any], roster: RosterView) -> dict[str, Any]:
        n, t, me = len(roster.members), roster.threshold, roster.index(self.silo)
        self_shares = shamir.split(canonical.unb64(own["self"]), threshold=t, shares=n)
        list_shares = shamir.split(canonical.unb64(own["list"]), threshold=t, shares=n)
        halves = {silo: secrets.token_bytes(SECRET_BYTES) for silo in roster.members if silo != self.silo}
        boxes = {}
        for silo, half in halves.items():
            index = roster.index(silo)
            bundle = Bundle(self_shares[index + 1], list_shares[index + 1], half)
            try:
                boxes[silo] = sealing.seal_bundle(
                    bundle, public=roster.keys[silo], ctx=self._ctx, roster=roster.digest, sender=me, receiver=index
                )
            except SealingError as error:
                raise ProtocolViolation("BAD_KEY", f"the round key of {silo}: {error}") from error
        return {
            "digest": roster.digest,
            "keys": [envelope_out(envelope) for envelope in roster.envelopes],
            "self_share": canonical.b64(self_shares[me + 1]),
            "list_share": canonical.b64(list_shares[me + 1]),
            "halves": {silo: canonical.b64(half) for silo, half in halves.items()},
            "sent": envelope_out(self._seal(Bundles, roster=roster.digest, boxes=boxes)),
        }

    # --- 3. ready ----------------------------------------------------------------------------------------------------

    def accept_bundles(self, boxes: Mapping[str, bytes]) -> Envelope:
        """Open the boxes {sender: box} that peers sealed to this silo, and say which could be opened.

        A box that can't be opened is no error: its sender is missing in the answer's `senders`.

        Raises:
            ProtocolViolation: OUTSIDE_PARENT (a sender outside the roster), SET_TOO_SMALL, SECOND_BUNDLES.
        """
        with self._lock:
            own = self._secrets("accept_bundles()")
            mine = self._records.need("roster", "accept_bundles()")
            roster = self._need_roster("accept_bundles()")
            if not set(boxes) <= set(roster.members) - {self.silo}:
                raise ProtocolViolation("OUTSIDE_PARENT", "a bundle comes from outside the roster, or from this silo")
            digest = canonical.digest(
                canonical.encode({sender: canonical.digest(box) for sender, box in boxes.items()})
            )
            record = self._records.read("bundles")
            if record is None:
                record = self._make_ready(own, mine, roster, boxes) | {"digest": digest}
                self._records.write("bundles", record)
            if record["digest"] != digest:
                raise ProtocolViolation("SECOND_BUNDLES", "this silo already took other bundles in this attempt")
            return envelope_in(record["sent"])

    def _make_ready(
        self, own: dict[str, Any], mine: dict[str, Any], roster: RosterView, boxes: Mapping[str, bytes]
    ) -> dict[str, Any]:
        me, private = roster.index(self.silo), canonical.unb64(own["hpke"])
        opened: dict[str, dict[str, str]] = {}
        seeds = {}
        for sender in sorted(boxes):
            index = roster.index(sender)
            try:
                bundle = sealing.open_bundle(
                    boxes[sender], private=private, ctx=self._ctx, roster=roster.digest, sender=index, receiver=me
                )
            except SealingError:
                continue  # named by its absence from `senders`, which is signed
            half = canonical.unb64(mine["halves"][sender])
            low, high = (half, bundle.half) if me < index else (bundle.half, half)
            seeds[sender] = sealing.pair_seed(low, high, self._ctx)
            opened[sender] = {
                "self_share": canonical.b64(bundle.self_share),
                "list_share": canonical.b64(bundle.list_share),
                "seed": canonical.b64(seeds[sender]),
            }
        sets.check_size(self.parameters, roster, len(opened) + 1, "set of silos whose bundles could be opened")
        key = canonical.unb64(own["list"])
        plain = b"".join(seeds.get(silo, bytes(SECRET_BYTES)) for silo in roster.members)
        box = sealing.seal_list(plain, key=key, ctx=self._ctx, roster=roster.digest, silo=self.silo)
        sent = self._seal(
            Ready,
            roster=roster.digest,
            list_digest=canonical.digest(box),
            list_box=box,
            self_hash=self._binding("self", own["self"]),
            list_hash=self._binding("list", own["list"]),
            nonces=tuple(self._binding(f"nonce {i}", nonce) for i, nonce in enumerate(own["nonces"], start=1)),
            senders=tuple(opened),
        )
        return {"opened": opened, "sent": envelope_out(sent)}

    def accept_ready(self, envelopes: Iterable[Envelope]) -> None:
        """Take the one set R of this attempt (all signed `ready`). From here the masks are fixed.

        Raises:
            ProtocolViolation: LEFT_OUT, TOO_FEW_KNOWN, SECOND_SET, OTHER_SET (not the `ready` this silo sent), and
                what `sets.read_ready` raises.
        """
        with self._lock:
            self._secrets("accept_ready()")
            sent = envelope_in(self._records.need("bundles", "accept_ready()")["sent"])
            ready = sets.read_ready(self.parameters, self._need_roster("accept_ready()"), envelopes)
            self._check_own(ready.members, ready.envelopes, sent, "ready set")
            self._check_known(ready.members, "ready set")
            record = {"digest": ready.digest, "ready": [envelope_out(envelope) for envelope in ready.envelopes]}
            before = self._records.read("ready")
            if before is None:
                self._records.write("ready", record)
            elif before["digest"] != ready.digest:
                raise ProtocolViolation("SECOND_SET", "this silo already took another ready set in this attempt")
            self._ready = ready
