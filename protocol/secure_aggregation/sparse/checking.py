"""Steps 8 and 9 of a silo's sparse round: whom the sum names, the second nonce, the check word, and the next state."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.messages import Check, Nonce
from protocol.secure_aggregation import check_word, checks
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.next_state import NextState
from protocol.secure_aggregation.parameters import threshold
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sparse.attempt import open_signed
from protocol.secure_aggregation.sparse.nonces import OpenedNonces
from protocol.secure_aggregation.sparse.reveal import SUMMED, SparseReveal
from protocol.secure_aggregation.sparse.trees import Claim, Tree
from protocol.signing import Envelope


class SparseChecking(SparseReveal, NextState):
    """`agree()`, `open_nonce()`, `send_check()`, `verify_sum()`."""

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

    def open_nonce(self, published: str) -> Envelope:
        """Open the second nonce, once a round, for the sum to which the portal is bound.

        Parameters and errors: as the dense protocol's.
        """
        with self._lock:
            own = self._secrets("open_nonce()")
            self._records.need("final", "open_nonce()")
            record = self._records.read("sum")
            if record is None:
                nonce = canonical.unb64(own["nonces"][1])
                sent = self._seal(Nonce, roster=self._root("open_nonce()"), sum=published, nonce=nonce)
                record = {"sum": published, "sent": envelope_out(sent)}
                self._records.write("sum", record)
            if record["sum"] != published:
                raise ProtocolViolation("SECOND_SUM", "the portal published another sum in this round before")
            return envelope_in(record["sent"])

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
            record = self._records.read("check")
            if record is None:
                seed = check_word.seed_of(self._ctx, published, nonces)
                tail = (np.frombuffer(words, dtype="<u8") for words in self._own_chunks("tail"))
                word = checks.own_word(self.parameters, seed, self._own_body(), tail)
                message = self._seal(
                    Check,
                    roster=self._root("send_check()"),
                    sum=published,
                    nonces=opened.digest,
                    word=check_word.to_bytes(word),
                )
                record = {
                    "nonces": opened.digest,
                    "complete": complete,
                    "seed": canonical.b64(seed),
                    "sent": envelope_out(message),
                }
                self._records.write("check", record)
            if record["nonces"] != opened.digest:
                raise ProtocolViolation("SECOND_CHECK", "this silo already sent a check word under other nonces")
            return envelope_in(record["sent"])

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
            root, messages, sent = self._root("verify_sum()"), dict[str, Check](), envelope_in(own["sent"])
            came = list(check_envelopes)
            if all(envelope.payload != sent.payload for envelope in came):
                raise ProtocolViolation("OTHER_MESSAGE", f"the check words do not hold the one that {self.silo} sent")
            for envelope in came:
                message = open_signed(self.parameters, Check, envelope, root)
                if message.silo in messages:
                    raise ProtocolViolation("TWICE", f"{message.silo} stands twice among the check words")
                messages[message.silo] = message
            expected = checks.add_checks(
                self.parameters, self._members("verify_sum()"), published["sum"], own["nonces"], messages
            )
            if expected is not None:
                checks.compare_words(self.parameters, canonical.unb64(own["seed"]), expected, body, tail)
            verified = expected is not None and own["complete"]
            before = self._records.read("verified")
            if before is None:
                self._records.write("verified", {"verified": verified})
            elif before != {"verified": verified}:
                raise ProtocolViolation("SECOND_CHECK", "the sum was judged with other check words before")
            return verified

    def _members(self, call: str) -> list[str]:
        members: list[str] = self._records.need("final", call)["members"]
        return members

    def _roster_name(self, call: str) -> str:
        return self._root(call)
