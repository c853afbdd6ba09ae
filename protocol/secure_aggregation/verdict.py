"""Step 8 of a silo's round, whichever protocol it speaks: what is said about the published sum, each thing once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from protocol import canonical
from protocol.messages import Check, Nonce
from protocol.secure_aggregation import check_word, checks
from protocol.secure_aggregation.checks import NoncesView
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.next_state import NextState
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.signing import Envelope


class Verdict(NextState):
    """`open_nonce()`, and what is left of `send_check()` and `verify_sum()` once the messages of the others are read."""

    def open_nonce(self, published: str) -> Envelope:
        """Open the second nonce, once a round, for the sum to which the portal is bound.

        Parameters:
            published: digest of the sum's bytes, from facts that the portal signed (the caller checks that).

        Raises:
            ProtocolViolation: OUT_OF_STAGE before `agree`, LEFT_OUT (this silo's update is not in the sum), SECOND_SUM.
        """
        with self._lock:
            own = self._secrets("open_nonce()")
            if self.silo not in self._members("open_nonce()"):
                raise ProtocolViolation("LEFT_OUT", f"the update of {self.silo} is not in this sum; it checks nothing")
            record = self._records.read("sum")
            if record is None:
                nonce = canonical.unb64(own["nonces"][1])
                message = self._seal(Nonce, roster=self._roster_name("open_nonce()"), sum=published, nonce=nonce)
                record = {"sum": published, "sent": envelope_out(message)}
                self._records.write("sum", record)
            if record["sum"] != published:
                raise ProtocolViolation("SECOND_SUM", "the portal published another sum in this round before")
            return envelope_in(record["sent"])

    def _members(self, call: str) -> list[str]:
        """Whose updates are in the sum."""
        members: list[str] = self._records.need("final", call)["members"]
        return members

    def _check_under(self, nonces: NoncesView, published: str, **facts: bool) -> Envelope:
        """The check word on the journaled update under these nonces, sent once. facts: kept in the record, for the verdict.

        Raises: ProtocolViolation (SECOND_CHECK).
        """
        record = self._records.read("check")
        if record is None:
            tail = (np.frombuffer(words, dtype="<u8") for words in self._own_chunks("tail"))
            word = checks.own_word(self.parameters, nonces.seed, self._own_body(), tail)
            message = self._seal(
                Check,
                roster=self._roster_name("send_check()"),
                sum=published,
                nonces=nonces.digest,
                word=check_word.to_bytes(word),
            )
            record = {
                "nonces": nonces.digest,
                "seed": canonical.b64(nonces.seed),
                "sent": envelope_out(message),
                **facts,
            }
            self._records.write("check", record)
        if record["nonces"] != nonces.digest:
            raise ProtocolViolation("SECOND_CHECK", "this silo already sent a check word under other nonces")
        return envelope_in(record["sent"])

    def _with_own(self, envelopes: Iterable[Envelope], own: dict[str, Any]) -> list[Envelope]:
        """The check words that came; the own one must be the one that was sent. Raises: ProtocolViolation (OTHER_MESSAGE)."""
        came, sent = list(envelopes), envelope_in(own["sent"])
        if all(envelope.payload != sent.payload for envelope in came):
            raise ProtocolViolation("OTHER_MESSAGE", f"the check words do not hold the one that {self.silo} sent")
        return came

    def _judge(self, verified: bool) -> bool:
        """The verdict itself, kept in the journal. Raises: ProtocolViolation (SECOND_CHECK) where it was another before."""
        verdict = {"verified": verified}
        before = self._records.read("verified")
        if before is None:
            self._records.write("verified", verdict)
        elif before != verdict:
            raise ProtocolViolation("SECOND_CHECK", "the sum was judged with other check words before")
        return verified
