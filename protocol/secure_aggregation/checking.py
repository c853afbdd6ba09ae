"""Step 8 of a silo's round: hold the published sum against what all members sent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.secure_aggregation import checks
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_in
from protocol.secure_aggregation.reveal import Reveal
from protocol.secure_aggregation.verdict import Verdict
from protocol.signing import Envelope


class Checking(Reveal, Verdict):
    """`send_check()`, `verify_sum()`."""

    # --- 8. check words ----------------------------------------------------------------------------------------------

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
            return self._check_under(nonces, opened["sum"])

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
            return self._judge(expected is not None)

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
