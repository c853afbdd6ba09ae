"""Steps 8 and 9 of a silo's sparse round: whom the sum names, the second nonce, the check word, and the next state."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.messages import Check
from protocol.secure_aggregation import check_word, checks
from protocol.secure_aggregation.checks import NoncesView
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.parameters import threshold
from protocol.secure_aggregation.sparse.attempt import open_signed
from protocol.secure_aggregation.sparse.nonces import OpenedNonces
from protocol.secure_aggregation.sparse.reveal import SUMMED, SparseReveal
from protocol.secure_aggregation.sparse.trees import Claim, Tree
from protocol.secure_aggregation.verdict import Verdict
from protocol.signing import Envelope


class SparseChecking(SparseReveal, Verdict):
    """`agree()`, `send_check()`, `verify_sum()`."""

    def agree(self, members: Iterable[str]) -> tuple[str, ...]:
        """Whom the list names that this silo signed or accepted: only its members make its root.

        Returns: the members, sorted.

        Raises:
            ProtocolViolation: OUT_OF_STAGE, OTHER_SET (they do not make the root of that list).
        """
        with self._lock:
            self._secrets("agree()")
            names, facts = list(members), self._listed("agree()")["facts"]
            known = names == sorted(set(names)) and set(names) <= self.parameters.positions.keys()
            claim = Claim(facts["members"][0], facts["size"])
            if not known or Tree(self.parameters, dict.fromkeys(names, SUMMED)).claim != claim:
                raise ProtocolViolation("OTHER_SET", f"the named silos are not those of the list that {self.silo} took")
            self._records.write("final", {"members": names})
            return tuple(names)

    # --- 8. check words ----------------------------------------------------------------------------------------------

    def send_check(self, opened: OpenedNonces) -> Envelope:
        """Send the check word on the journaled update, once a round.

        Parameters:
            opened: the nonces of all members; where the manifest lets a sum stand unverified, of floor(2n/3) + 1.

        Raises:
            ProtocolViolation: OUT_OF_STAGE, BAD_NONCE (not those of R), OUTSIDE_PARENT, LEFT_OUT (not the own one among
                them), CHECK_MISSING, TOO_FEW_SIGNATURES, SECOND_CHECK.
        """
        with self._lock:
            own = self._secrets("send_check()")
            published = self._records.need("sum", "send_check()")["sum"]
            ready, members = self._records.need("ready", "send_check()"), self._members("send_check()")
            opened.check(self.parameters, Claim(ready["root"], ready["size"]))
            nonces = {silo: each.nonce for silo, each in opened.nonces.items()}
            complete = self._check_complete(set(members), nonces.keys())
            if not hmac.compare_digest(nonces.get(self.silo, b""), canonical.unb64(own["nonces"][1])):
                raise ProtocolViolation("LEFT_OUT", f"the nonce of {self.silo} is not among those that were opened")
            view = NoncesView(opened.digest, check_word.seed_of(self._ctx, published, nonces))
            return self._check_under(view, published, complete=complete)

    def _check_complete(self, members: set[str], opened: Iterable[str]) -> bool:
        """Whether every member opened its nonce, so that nobody could choose among sets of nonces."""
        missing, strangers = members - set(opened), set(opened) - members
        if strangers:
            raise ProtocolViolation("OUTSIDE_PARENT", f"{min(strangers)} is not in the list that was summed")
        if missing and not self.parameters.unverified:
            raise ProtocolViolation("CHECK_MISSING", f"the nonce of {min(missing)} is missing; no sum is believed so")
        least = threshold(len(self.parameters.members))
        if len(members) - len(missing) < least:
            raise ProtocolViolation(
                "TOO_FEW_SIGNATURES", f"{len(members) - len(missing)} silos opened their nonces, {least} are needed"
            )
        return not missing

    def verify_sum(
        self, check_envelopes: Iterable[Envelope], body: Iterable[NDArray[np.int32]], tail: NDArray[np.uint64]
    ) -> bool:
        """Hold the published sum against the check words of all members: one signature each is verified.

        Parameters, result and errors: as the dense protocol's, TWICE, and what `open_signed` raises.
        """
        with self._lock:
            self._secrets("verify_sum()")
            own, published = self._records.need("check", "verify_sum()"), self._records.need("sum", "verify_sum()")
            root, messages = self._root("verify_sum()"), dict[str, Check]()
            for envelope in self._with_own(check_envelopes, own):
                message = open_signed(self.parameters, Check, envelope, root)
                if message.silo in messages:
                    raise ProtocolViolation("TWICE", f"{message.silo} stands twice among the check words")
                messages[message.silo] = message
            expected = checks.add_checks(
                self.parameters, self._members("verify_sum()"), published["sum"], own["nonces"], messages
            )
            if expected is not None:
                checks.compare_words(self.parameters, canonical.unb64(own["seed"]), expected, body, tail)
            return self._judge(expected is not None and own["complete"])

    def _roster_name(self, call: str) -> str:
        return self._root(call)
