"""Steps 1 to 4 of a silo's sparse round: a key and a hidden nonce, the roster, the neighbours, and the set R."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from protocol import canonical
from protocol.secure_aggregation import sealing, shamir
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sealing import SealingError
from protocol.secure_aggregation.sparse import boxes, graph
from protocol.secure_aggregation.sparse.attempt import SparseAttempt, open_signed
from protocol.secure_aggregation.sparse.boxes import SECRET_BYTES, Content, Parcel
from protocol.secure_aggregation.sparse.messages import SparseBundles, SparseKeys, SparseReady, SparseRow
from protocol.secure_aggregation.sparse.nonces import ready_value
from protocol.secure_aggregation.sparse.trees import Claim, Leaf
from protocol.signing import Envelope


@dataclass(frozen=True)
class Neighbour:
    """What the portal shows of one neighbour.

    leaf: its entry in the roster. keys: its signed `sparse-keys`, None where it is absent.
    row: its signed `sparse-row`, where it drew the reader.
    """

    leaf: Leaf
    keys: Envelope | None = None
    row: Envelope | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "leaf": self.leaf.as_dict(),
            "keys": None if self.keys is None else self.keys.as_dict(),
            "row": None if self.row is None else self.row.as_dict(),
        }


class SparseSetUp(SparseAttempt):
    """From `keys()` to `accept_ready()`."""

    # --- 1. keys -----------------------------------------------------------------------------------------------------

    def keys(self) -> Envelope:
        """Join the attempt with a fresh HPKE key and a committed nonce; the secrets of older attempts are erased.

        Raises:
            ProtocolViolation, StudyPaused: as the dense protocol's `SetUp.keys`.
        """
        with self._lock:
            own = self._join("keys()")
            public = sealing.public_of(canonical.unb64(own["hpke"]))
            return self._seal(
                SparseKeys, roster=None, hpke_public=public, graph=self._binding("graph", own["nonces"][0])
            )

    # --- 2. roster ---------------------------------------------------------------------------------------------------

    def accept_roster(self, claim: Claim, leaf: Leaf) -> Envelope:
        """Take the one roster of this attempt by its root, and open the nonce that draws this silo's row.

        Parameters:
            leaf: this silo's own entry.

        Raises:
            ProtocolViolation: ROSTER_TOO_SMALL (as stated), OTHER_MESSAGE (not this silo's signed key), SECOND_ROSTER,
                and what `_read_set` raises.
        """
        with self._lock:
            own = self._secrets("accept_roster()")
            if claim.size < self.parameters.min_roster:
                raise ProtocolViolation(
                    "ROSTER_TOO_SMALL",
                    f"the roster has {claim.size} silos, the manifest asks for {self.parameters.min_roster}",
                )
            if self._read_set(claim, [leaf], (), "roster")[self.silo] != self.keys().digest:
                raise ProtocolViolation("OTHER_MESSAGE", f"the roster holds another key of {self.silo} than it sent")
            record = self._records.read("roster")
            if record is None:
                nonce = canonical.unb64(own["nonces"][0])
                record = {
                    "root": claim.root,
                    "size": claim.size,
                    "row": list(graph.row(self.parameters, claim.root, self.silo, nonce)),
                    "sent": envelope_out(self._seal(SparseRow, roster=claim.root, nonce=nonce)),
                }
                self._records.write("roster", record)
            if (record["root"], record["size"]) != (claim.root, claim.size):
                raise ProtocolViolation("SECOND_ROSTER", "this silo already took another roster in this attempt")
            return envelope_in(record["sent"])

    # --- 3. neighbours and bundles -----------------------------------------------------------------------------------

    def accept_neighbours(self, neighbours: Iterable[Neighbour]) -> Envelope:
        """Take the one neighbourhood of this attempt and seal a box to each neighbour that is present.

        Exactly the silos of this silo's row, absent ones proved absent, and any others whose opened row names this silo.

        Raises:
            ProtocolViolation: TOO_FEW_NEIGHBOURS, TOO_MANY_NEIGHBOURS, NOT_NEIGHBOUR, TWICE, BAD_PROOF, BAD_NONCE,
                OTHER_MESSAGE (not the key in the roster), BAD_KEY, SECOND_NEIGHBOURS, and what `open_signed` raises.
        """
        with self._lock:
            own = self._secrets("accept_neighbours()")
            mine = self._records.need("roster", "accept_neighbours()")
            given = list(neighbours)
            facts = [[item.leaf.silo, item.leaf.value, None if item.row is None else item.row.digest] for item in given]
            digest = canonical.digest(canonical.encode(sorted(facts, key=str)))
            record = self._records.read("neighbours")
            if record is None:
                record = self._make_bundles(own, mine, given) | {"digest": digest}
                self._records.write("neighbours", record)
            if record["digest"] != digest:
                raise ProtocolViolation("SECOND_NEIGHBOURS", "this silo already took other neighbours in this attempt")
            return envelope_in(record["sent"])

    def _read_neighbours(self, root: str, row: list[str], given: list[Neighbour]) -> tuple[dict[str, bytes], set[str]]:
        """The HPKE keys of all who are present, and which of them drew this silo."""
        most, rows = self.parameters.neighbourhood.most_in, sum(item.row is not None for item in given)
        if rows > most:  # before the work that it would make
            raise ProtocolViolation("TOO_MANY_NEIGHBOURS", f"{rows} silos drew {self.silo}, at most {most} are taken")
        public: dict[str, bytes] = {}
        drew: set[str] = set()
        seen: set[str] = set()
        for item in given:
            silo = item.leaf.silo
            if silo == self.silo or (silo not in row and item.row is None):
                raise ProtocolViolation("NOT_NEIGHBOUR", f"{silo} is no neighbour of {self.silo}")
            if silo in seen:
                raise ProtocolViolation("TWICE", f"{silo} stands twice among the neighbours")
            seen.add(silo)
            item.leaf.check(self.parameters, root)
            if item.leaf.value != (None if item.keys is None else item.keys.digest):
                raise ProtocolViolation("OTHER_MESSAGE", f"the key of {silo} is not the one in the roster")
            if item.keys is None:
                if item.row is not None:
                    raise ProtocolViolation("NOT_NEIGHBOUR", f"{silo} is absent and yet drew {self.silo}")
                continue
            keys = open_signed(self.parameters, SparseKeys, item.keys, None)
            if keys.silo != silo:
                raise ProtocolViolation("OTHER_MESSAGE", f"the key of {silo} is signed by {keys.silo}")
            public[silo] = keys.hpke_public
            if item.row is not None:
                self._check_drew(root, keys, open_signed(self.parameters, SparseRow, item.row, root))
                drew.add(silo)
        missing = set(row) - seen
        if missing:
            raise ProtocolViolation("TOO_FEW_NEIGHBOURS", f"the neighbour {min(missing)} is missing")
        self._check_row(public, row, "roster")
        return public, drew

    def _check_drew(self, root: str, keys: SparseKeys, opened: SparseRow) -> None:
        if opened.silo != keys.silo:
            raise ProtocolViolation("OTHER_MESSAGE", f"the row of {keys.silo} is signed by {opened.silo}")
        if not sealing.fits("graph", opened.nonce, keys.graph, ctx=self._ctx, silo=opened.silo):
            raise ProtocolViolation("BAD_NONCE", f"the nonce of {opened.silo} is not the one it committed to")
        if self.silo not in graph.row(self.parameters, root, opened.silo, opened.nonce):
            raise ProtocolViolation("NOT_NEIGHBOUR", f"{opened.silo} did not draw {self.silo}")

    def _make_bundles(self, own: dict[str, Any], mine: dict[str, Any], given: list[Neighbour]) -> dict[str, Any]:
        root, row = mine["root"], mine["row"]
        public, drew = self._read_neighbours(root, row, given)
        hood = self.parameters.neighbourhood
        # b and K side by side, so that both are shared in one pass.
        both = canonical.unb64(own["self"]) + canonical.unb64(own["list"])
        shares = shamir.split(both, threshold=hood.t, shares=hood.h)
        halves = {silo: secrets.token_bytes(SECRET_BYTES) for silo in sorted(public)}
        sealed, hashes = {}, {}
        for silo, half in halves.items():
            content = Content(half)
            if silo in row:
                share = shares[row.index(silo) + 1]
                content = Content(half, share[:SECRET_BYTES], share[SECRET_BYTES:])
                hashes[silo] = boxes.share_hashes(
                    share[:SECRET_BYTES], share[SECRET_BYTES:], ctx=self._ctx, owner=self.silo, holder=silo
                )
            try:
                sealed[silo] = boxes.seal(
                    content, public=public[silo], ctx=self._ctx, roster=root, sender=self.silo, receiver=silo
                )
            except SealingError as error:
                raise ProtocolViolation("BAD_KEY", f"the round key of {silo}: {error}") from error
        return {
            "row": sorted(set(row) & public.keys()),
            "drew": sorted(drew),
            "halves": {silo: canonical.b64(half) for silo, half in halves.items()},
            "sent": envelope_out(self._seal(SparseBundles, roster=root, boxes=sealed, hashes=hashes)),
        }

    # --- 4. ready ----------------------------------------------------------------------------------------------------

    def accept_bundles(self, parcels: Mapping[str, Parcel]) -> Envelope:
        """Open the parcels {sender: parcel} that neighbours sent, and say which could be opened.

        A parcel that can't be opened, or whose shares do not fit their hashes, is no error: its sender is missing in
        the answer's `senders`.

        Raises:
            ProtocolViolation: NOT_NEIGHBOUR, TOO_FEW_NEIGHBOURS, SECOND_BUNDLES.
        """
        with self._lock:
            own = self._secrets("accept_bundles()")
            near = self._neighbours("accept_bundles()")
            strangers = parcels.keys() - near["halves"].keys()
            if strangers:
                raise ProtocolViolation("NOT_NEIGHBOUR", f"{min(strangers)} is no neighbour of {self.silo}")
            facts = {sender: canonical.digest(canonical.encode(item.as_dict())) for sender, item in parcels.items()}
            digest = canonical.digest(canonical.encode(facts))
            record = self._records.read("bundles")
            if record is None:
                record = self._make_ready(own, near, parcels) | {"digest": digest}
                self._records.write("bundles", record)
            if record["digest"] != digest:
                raise ProtocolViolation("SECOND_BUNDLES", "this silo already took other bundles in this attempt")
            return envelope_in(record["sent"])

    def _make_ready(
        self, own: dict[str, Any], near: Mapping[str, Any], parcels: Mapping[str, Parcel]
    ) -> dict[str, Any]:
        root, private = self._root("accept_bundles()"), sealing.load_private(canonical.unb64(own["hpke"]))
        drew, me = set(near["drew"]), self.parameters.positions[self.silo]
        seeds: dict[str, bytes] = {}
        shares: dict[str, list[str]] = {}
        for sender in sorted(parcels):
            try:
                content = boxes.open_parcel(
                    parcels[sender],
                    private=private,
                    ctx=self._ctx,
                    roster=root,
                    sender=sender,
                    receiver=self.silo,
                    holder=sender in drew,
                )
            except SealingError:
                continue  # named by its absence from `senders`, which is signed
            half = canonical.unb64(near["halves"][sender])
            low, high = (half, content.half) if me < self.parameters.positions[sender] else (content.half, half)
            seeds[sender] = sealing.pair_seed(low, high, self._ctx)
            if content.self_share is not None and content.list_share is not None:
                shares[sender] = [canonical.b64(content.self_share), canonical.b64(content.list_share)]
        self._check_row(seeds, near["row"], "set of silos whose bundles could be opened")
        box = sealing.seal_list(
            b"".join(seeds.values()), key=canonical.unb64(own["list"]), ctx=self._ctx, roster=root, silo=self.silo
        )
        sent = self._seal(
            SparseReady,
            roster=root,
            self_hash=self._binding("self", own["self"]),
            list_hash=self._binding("list", own["list"]),
            list_box=box,
            senders=tuple(seeds),
            nonce=self._binding("nonce 2", own["nonces"][1]),
        )
        return {
            "seeds": {sender: canonical.b64(seed) for sender, seed in seeds.items()},
            "shares": shares,
            "sent": envelope_out(sent),
        }

    def accept_ready(self, claim: Claim, leaves: Iterable[Leaf]) -> None:
        """Take the one set R of this attempt, by its root. From here the masks are fixed.

        Parameters:
            leaves: the entries of this silo, of every neighbour, and of known partners where more of them are needed.

        Raises:
            ProtocolViolation: OTHER_MESSAGE (not the `ready` this silo sent), NOT_OPENED (a member of R whose bundle
                this silo could not open), TOO_FEW_KNOWN, SECOND_SET, and what `_read_set` and `_check_row` raise.
        """
        with self._lock:
            self._secrets("accept_ready()")
            bundles = self._records.need("bundles", "accept_ready()")
            near = self._neighbours("accept_ready()")
            found = self._read_set(claim, leaves, near["halves"], "ready set")
            sent = envelope_in(bundles["sent"])
            if found.pop(self.silo) != ready_value(sent.digest, SparseReady.parse(sent.payload).nonce):
                raise ProtocolViolation("OTHER_MESSAGE", f"the ready set holds another message of {self.silo}")
            self._check_known(found, "ready set")
            members = sorted(found.keys() & near["halves"].keys())
            unopened = set(members) - bundles["seeds"].keys()
            if unopened:
                raise ProtocolViolation(
                    "NOT_OPENED", f"{self.silo} could not open the bundle of {min(unopened)}; one must be left out"
                )
            self._check_row(members, near["row"], "ready set")
            record = {"root": claim.root, "size": claim.size, "members": members}
            before = self._records.read("ready")
            if before is None:
                self._records.write("ready", record)
            elif before != record:
                raise ProtocolViolation("SECOND_SET", "this silo already took another ready set in this attempt")
