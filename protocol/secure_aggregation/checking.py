"""Step 8 of a silo's round: hold the published sum against what all members sent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.messages import Check, Nonce
from protocol.secure_aggregation import check_word, checks
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.next_state import NextState
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.reveal import Reveal
from protocol.signing import Envelope


class Checking(Reveal, NextState):
    """`open_nonce()`, `send_check()`, `verify_sum()`."""

    # --- 8. check words ----------------------------------------------------------------------------------------------

    def open_nonce(self, published: str) -> Envelope:
        """Open the second nonce, once a round, for the sum to which the portal is bound.

        Parameters:
            published: digest of the sum's bytes, from facts that the portal signed (the caller checks that).

        Raises:
            ProtocolViolation: OUT_OF_STAGE before `agree`, LEFT_OUT (this silo's update is not in the sum), SECOND_SUM.
        """
        with self._lock:
            own = self._secrets("open_nonce()")
            if self.silo not in self._final("open_nonce()").members:
                raise ProtocolViolation("LEFT_OUT", f"the update of {self.silo} is not in this sum; it checks nothing")
            message = self._seal(
                Nonce,
                roster=self._need_roster("open_nonce()").digest,
                sum=published,
                nonce=canonical.unb64(own["nonces"][1]),
            )
            record = self._records.read("sum")
            if record is None:
                record = {"sum": published, "sent": envelope_out(message)}
                self._records.write("sum", record)
            if record["sum"] != published:
                raise ProtocolViolation("SECOND_SUM", "the portal published another sum in this round before")
            return envelope_in(record["sent"])

    def send_check(self, nonce_envelopes: Iterable[Envelope]) -> Envelope:
        """Send the check word on the journaled update, once a round, under the nonces of t members, its own among them.

        Raises:
            ProtocolViolation: OUT_OF_STAGE, LEFT_OUT, OTHER_MESSAGE, SECOND_CHECK, and what `checks.read_nonces` raises.
        """
        with self._lock:
            self._secrets("send_check()")
            opened = self._records.need("sum", "send_check()")
            roster, ready = self._need_roster("send_check()"), self._need_ready("send_check()")
            final, envelopes = self._final("send_check()"), list(nonce_envelopes)
            nonces = checks.read_nonces(self.parameters, roster, ready, final, opened["sum"], envelopes)
            # Its own nonce, unknown before the sum was fixed, is what makes the coefficients unforeseen.
            sent = envelope_in(opened["sent"])
            if all(envelope.payload != sent.payload for envelope in envelopes):
                raise ProtocolViolation("LEFT_OUT", f"the nonce of {self.silo} is not among those that were opened")
            record = self._records.read("check")
            if record is None:
                tail = (np.frombuffer(words, dtype="<u8") for words in self._own_chunks("tail"))
                word = checks.own_word(self.parameters, nonces.seed, self._own_body(), tail)
                message = self._seal(
                    Check,
                    roster=roster.digest,
                    sum=opened["sum"],
                    nonces=nonces.digest,
                    word=check_word.to_bytes(word),
                )
                record = {
                    "nonces": nonces.digest,
                    "seed": canonical.b64(nonces.seed),
                    "sent": envelope_out(message),
                }
                self._records.write("check", record)
            if record["nonces"] != nonces.digest:
                raise ProtocolViolation("SECOND_CHECK", "this silo already sent a check word under other nonces")
            return envelope_in(record["sent"])

    def verify_sum(
        self, check_envelopes: Iterable[Envelope], body: Iterable[NDArray[np.int32]], tail: NDArray[np.uint64]
    ) -> bool:
        """Hold the published sum against the check words of all members, and against their sketches where it has them.

        Parameters:
            body: the sum's body as signed words, in order, in blocks of any length; the caller compared the bytes with
                the digest of `open_nonce`.
            tail: the sum's tail.

        Returns:
            True; False where a member's check word never came and the manifest lets the sum stand so. The sketches are
            held against the sum in both cases.

        Raises:
            ProtocolViolation: OUT_OF_STAGE, CHECK_MISSING, SUM_NOT_TRUE, SKETCH_DIFFERS, and what `checks.read_checks`
                raises. Then no state is signed in this attempt.
        """
        with self._lock:
            self._secrets("verify_sum()")
            own, opened = self._records.need("check", "verify_sum()"), self._records.need("sum", "verify_sum()")
            roster, final = self._need_roster("verify_sum()"), self._final("verify_sum()")
            expected = checks.read_checks(
                self.parameters, roster, final, opened["sum"], own["nonces"], self._with_own(check_envelopes, own)
            )
            blocks = list(body)
            self._check_sketches(blocks)
            if expected is not None:
                checks.compare_words(self.parameters, canonical.unb64(own["seed"]), expected, blocks, tail)
            verdict = {"verified": expected is not None}
            before = self._records.read("verified")
            if before is None:
                self._records.write("verified", verdict)
            elif before != verdict:
                raise ProtocolViolation("SECOND_CHECK", "the sum was judged with other check words before")
            return expected is not None

    def _with_own(self, envelopes: Iterable[Envelope], own: dict[str, object]) -> list[Envelope]:
        """The check words that came; the own one must be the one that was sent."""
        came = list(envelopes)
        sent = envelope_in(own["sent"])  # type: ignore[arg-type]
        if all(envelope.payload != sent.payload for envelope in came):
            raise ProtocolViolation("OTHER_MESSAGE", f"the check words do not hold the one that {self.silo} sent")
        return came

    def _check_sketches(self, blocks: list[NDArray[np.int32]]) -> None:
        """The sketch of the sum is the sum of the members' sketches, exactly, where this silo signed the second list."""
        second = self._records.read("second")
        if second is None:
            return  # it was away; t others signed that list and hold the sum against it
        shown = self._records.need("sketch", "verify_sum()")
        total = np.frombuffer(canonical.unb64(second["total"]), dtype="<i8")
        checks.compare_sketches(self.parameters, canonical.unb64(shown["seed"]), total, blocks)

    def _roster_name(self, call: str) -> str:
        return self._need_roster(call).digest
