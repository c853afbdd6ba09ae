"""Step 9 of a silo's round, whichever protocol it speaks: sign the digest of the next model's state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from protocol.messages import MessageError, State, TableRow, seal
from protocol.model_state import TensorSpec
from protocol.secure_aggregation.attempt import Attempt
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_out
from protocol.signing import Envelope


class NextState(Attempt, ABC):
    """`sign_state()`."""

    def sign_state(self, digest: str, table: Iterable[TensorSpec | TableRow] | None = None) -> Envelope:
        """Sign the digest of the model state that this silo computed itself, once an attempt.

        Parameters:
            digest: "sha256:<64 hex>" of the state.
            table: only, and always, in the round that makes the first model: its tensors.

        Raises:
            ProtocolViolation: SECOND_STATE, OUT_OF_STAGE (not in a roster, or the sum was not verified), BAD_STATE.
        """
        with self._lock:
            if (table is None) != (self.parameters.model is not None):
                raise ProtocolViolation("BAD_STATE", "a table is signed with the first model, and only with it")
            if table is None:
                self._secrets("sign_state()")
                self._records.need("verified", "sign_state()")
                roster, rows = self._roster_name("sign_state()"), None
            else:
                self._check_current()
                roster, rows = None, tuple(TableRow(row.name, tuple(row.shape), row.kind) for row in table)
            try:
                content = State(
                    ctx=self.parameters.attempt_ctx.hex(), silo=self.silo, roster=roster, state=digest, table=rows
                )
                message = seal(content, self._key)
            except MessageError as error:
                raise ProtocolViolation("BAD_STATE", str(error)) from error
            record = {"sent": envelope_out(message)}
            before = self._records.read("state")
            if before is None:
                self._records.write("state", record)
            elif before != record:
                raise ProtocolViolation("SECOND_STATE", "this silo already signed another state in this attempt")
            return message

    @abstractmethod
    def _roster_name(self, call: str) -> str:
        """Digest or root of the roster that was accepted. Raises: ProtocolViolation (OUT_OF_STAGE)."""
