"""Steps 6 and 7 of a silo's sparse round: the list it signs, and the shares it reveals, each once a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from protocol import canonical
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sparse.attempt import SparseAttempt, open_signed
from protocol.secure_aggregation.sparse.messages import SparseList, SparseUnmask, SparseUpdate
from protocol.secure_aggregation.sparse.trees import Claim, Leaf
from protocol.signing import Envelope

SUMMED: Final = "summed"
"""The value of a member's leaf in the list."""


class SparseReveal(SparseAttempt):
    """`sign_list()` or `accept_list()`, `unmask()`."""

    # --- 6. list -----------------------------------------------------------------------------------------------------

    def sign_list(self, claim: Claim, leaves: Iterable[Leaf], update_envelopes: Iterable[Envelope]) -> Envelope:
        """Sign the root of the list of those whose update is complete. Spends (study, round).

        Parameters:
            leaves: the entries of this silo, of every neighbour, and of known partners where more of them are needed.
            update_envelopes: the signed `sparse-update` of those members that drew this silo: it gives a share of b only
                for an update that wears the masks of the very R that it accepted itself.

        Raises:
            ProtocolViolation: OUTSIDE_PARENT, OTHER_SET (an update under the masks of another R), TOO_FEW_KNOWN,
                OTHER_MESSAGE (updates are not those of exactly these members), SECOND_LIST, ROUND_SPENT,
                OTHER_LIST_UNMASKED, and what `_read_set` and `_check_row` raise.
            StudyPaused: three lists were already signed for this model state.
        """
        with self._lock:
            self._secrets("sign_list()")
            self._records.need("update", "sign_list()")
            near, ready = self._neighbours("sign_list()"), self._records.need("ready", "sign_list()")
            members = self._read_list(claim, leaves)
            self._check_updates(ready["root"], set(members) & set(near["drew"]), update_envelopes)
            facts = self._facts(claim, ready)
            record = self._records.read("list")
            if record is None:
                self._ledger.spend(self.parameters.round, self._model(), facts, final=True)
                message = self._seal(
                    SparseList,
                    roster=self._root("sign_list()"),
                    ready_set=ready["root"],
                    ready_size=ready["size"],
                    members=claim.root,
                    size=claim.size,
                )
                record = {"facts": facts, "members": members, "sent": envelope_out(message)}
                self._records.write("list", record)
            if record["facts"] != facts:
                raise ProtocolViolation("SECOND_LIST", "this silo already signed another list in this round")
            return envelope_in(record["sent"])

    def accept_list(self, claim: Claim, leaves: Iterable[Leaf], list_envelopes: Iterable[Envelope]) -> None:
        """Take the list without having signed it: for a silo that came back after the others did. Spends (study, round).

        It reveals no share for it, but may open its second nonce and send its check word. What t of its row signed is
        what a silo that signed itself would have revealed shares for. A silo that signed this very list does nothing.

        Parameters:
            leaves: as for `sign_list`.   list_envelopes: as for `unmask`.

        Raises:
            ProtocolViolation: TWO_LISTS (it signed or took another one), and what `sign_list` and `unmask` raise.
            StudyPaused: as `sign_list`.
        """
        with self._lock:
            self._secrets("accept_list()")
            self._records.need("update", "accept_list()")
            near, ready = self._neighbours("accept_list()"), self._records.need("ready", "accept_list()")
            members = self._read_list(claim, leaves)
            facts = self._facts(claim, ready)
            record = self._records.read("list") or self._records.read("accepted")
            if record is None:
                wanted = (ready["root"], ready["size"], claim.root, claim.size)
                self._check_signatures(wanted, set(members) & set(near["row"]), list_envelopes)
                record = {"facts": facts, "members": members}
                self._ledger.spend(self.parameters.round, self._model(), facts, final=True)
                self._records.write("accepted", record)
            if record["facts"] != facts:
                raise ProtocolViolation("TWO_LISTS", "this is not the list that this silo signed or took")

    def _read_list(self, claim: Claim, leaves: Iterable[Leaf]) -> list[str]:
        """This silo's neighbours in a list that it can accept. Raises: as `sign_list`."""
        near, ready = self._neighbours("sign_list()"), self._records.need("ready", "sign_list()")
        found = self._read_set(claim, leaves, near["halves"], "list")
        if set(found.values()) != {SUMMED}:
            raise ProtocolViolation("BAD_MESSAGE", "an entry of the list says neither that a silo is summed nor not")
        del found[self.silo]
        members = sorted(found.keys() & near["halves"].keys())
        if not set(members) <= set(ready["members"]) or claim.size > ready["size"]:
            raise ProtocolViolation("OUTSIDE_PARENT", "the list reaches outside the ready set")
        self._check_known(found, "list")
        self._check_row(members, near["row"], "list")
        return members

    def _listed(self, call: str) -> dict[str, Any]:
        """The record of the list that this silo signed or took."""
        return self._records.read("list") or self._records.need("accepted", call)

    def _check_updates(self, ready_set: str, owners: set[str], envelopes: Iterable[Envelope]) -> None:
        root = self._root("sign_list()")
        updates = [open_signed(self.parameters, SparseUpdate, envelope, root) for envelope in envelopes]
        if sorted(message.silo for message in updates) != sorted(owners):
            raise ProtocolViolation(
                "OTHER_MESSAGE", f"not one update for each member of the list that drew {self.silo}"
            )
        for message in updates:
            if message.ready_set != ready_set:
                raise ProtocolViolation(
                    "OTHER_SET", f"the update of {message.silo} wears the masks of another ready set"
                )

    def _facts(self, claim: Claim, ready: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "attempt": self.parameters.attempt,
            "ctx": self._ctx.hex(),
            "roster": self._root("sign_list()"),
            "ready_set": ready["root"],
            # R's root is of this attempt alone, so no second sum of one model state counts as the same: a silo sees the
            # entries of its neighbours, and a root that it knows may name others who are gone.
            "members": [claim.root, ready["root"]],
            "size": claim.size,
        }

    # --- 7. unmask ---------------------------------------------------------------------------------------------------

    def unmask(self, list_envelopes: Iterable[Envelope]) -> Envelope:
        """Reveal, once a round, of those that drew this silo: shares of b for members of the list, of K for the rest of R.

        Only a silo that signed the list itself reveals, and only when t of the silos it drew signed the very same list:
        then not t holders of its own shares are left who could give one of K. docs/many-silos.md has the argument.

        Parameters:
            list_envelopes: the signed `sparse-list` of silos that this silo drew.

        Raises:
            ProtocolViolation: OUT_OF_STAGE (it signed no list), NOT_NEIGHBOUR, TWICE, TWO_LISTS, TOO_FEW_SIGNATURES,
                OTHER_LIST_UNMASKED.
        """
        with self._lock:
            self._secrets("unmask()")
            signed = self._records.need("list", "unmask()")
            near, ready = self._neighbours("unmask()"), self._records.need("ready", "unmask()")
            facts = signed["facts"]
            wanted = (ready["root"], ready["size"], facts["members"][0], facts["size"])
            self._check_signatures(wanted, set(signed["members"]) & set(near["row"]), list_envelopes)
            record = self._records.read("unmask")
            if record is None:
                shares = self._records.need("bundles", "unmask()")["shares"]
                summed = set(signed["members"])
                owners = [silo for silo in near["drew"] if silo in ready["members"]]
                message = self._seal(
                    SparseUnmask,
                    roster=self._root("unmask()"),
                    self_shares={silo: canonical.unb64(shares[silo][0]) for silo in owners if silo in summed},
                    list_shares={silo: canonical.unb64(shares[silo][1]) for silo in owners if silo not in summed},
                )
                record = {"sent": envelope_out(message)}
                self._ledger.unmask(self.parameters.round, self._model(), signed["facts"]["members"])
                self._records.write("unmask", record)
            return envelope_in(record["sent"])

    def _check_signatures(
        self, wanted: tuple[str, int, str, int], row: set[str], envelopes: Iterable[Envelope]
    ) -> None:
        """t of the row signed the list `wanted`: root and size of R and of itself."""
        root = self._root("unmask()")
        signers: set[str] = set()
        for envelope in envelopes:
            message = open_signed(self.parameters, SparseList, envelope, root)
            if message.silo not in row:
                raise ProtocolViolation("NOT_NEIGHBOUR", f"{self.silo} did not draw {message.silo}")
            if message.silo in signers:
                raise ProtocolViolation("TWICE", f"{message.silo} stands twice among the signatures")
            if (message.ready_set, message.ready_size, message.members, message.size) != wanted:
                raise ProtocolViolation("TWO_LISTS", f"{message.silo} signed another list; nothing is revealed")
            signers.add(message.silo)
        t = self.parameters.neighbourhood.t
        if len(signers) < t:
            raise ProtocolViolation(
                "TOO_FEW_SIGNATURES", f"{len(signers)} silos that {self.silo} drew signed the list, {t} are needed"
            )
