"""What a silo writes into its journal in each step of one attempt, and how it is read back after a crash.

One record a step, written before the step has an effect. Whoever finds the record does not do the step again: it sends
what was sent. The journal is the only memory; nothing secret is kept in attributes for longer than a call needs it.
"""

from __future__ import annotations

from typing import Any, Literal

from protocol import canonical
from protocol.secure_aggregation.errors import JournalConflict, ProtocolViolation
from protocol.secure_aggregation.journal import Journal, round_prefix
from protocol.signing import Envelope

Step = Literal[
    "keys", "roster", "neighbours", "bundles", "ready", "words", "update",
    "list", "accepted", "sketch", "second", "final", "unmask", "sum", "check", "verified", "state",
]  # fmt: skip


class Records:
    """The records of one attempt."""

    def __init__(self, journal: Journal, study: str, number: int, attempt: int) -> None:
        self._journal = journal
        self._prefix = round_prefix(study, number, attempt)

    def read(self, step: Step) -> dict[str, Any] | None:
        """The record of a step, None where it was not done."""
        data = self._journal.get(self._prefix + step)
        if data is None:
            return None
        value: dict[str, Any] = canonical.decode(data)
        return value

    def write(self, step: Step, record: dict[str, Any]) -> None:
        """Do a step, once. Raises: ProtocolViolation (JOURNAL_CONFLICT) where it was done otherwise in the meantime."""
        self._put(step, canonical.encode(record))

    def need(self, step: Step, call: str) -> dict[str, Any]:
        """The record of a step that must have been done. Raises: ProtocolViolation (OUT_OF_STAGE)."""
        record = self.read(step)
        if record is None:
            raise ProtocolViolation("OUT_OF_STAGE", f"{call} comes before the step {step} of this attempt")
        return record

    def put_chunk(self, k: int, words: bytes) -> None:
        """Keep the quantised words of chunk k, not yet masked. Raises: ProtocolViolation (JOURNAL_CONFLICT)."""
        self._put(f"chunk/{k}", words)

    def chunk(self, k: int) -> bytes | None:
        """The quantised words of chunk k."""
        return self._journal.get(f"{self._prefix}chunk/{k}")

    def drop_chunks(self) -> None:
        """Forget words that were not all written; none of them had left, because the step `words` was not done."""
        self._journal.forget(f"{self._prefix}chunk/")

    def destroy(self) -> None:
        """Everything of this attempt, secrets first of all, is gone for good."""
        self._journal.forget(self._prefix)

    def _put(self, name: str, value: bytes) -> None:
        try:
            self._journal.put(self._prefix + name, value)
        except JournalConflict as error:
            raise ProtocolViolation("JOURNAL_CONFLICT", f"{name} was done with other content meanwhile") from error


def envelope_out(envelope: Envelope) -> dict[str, Any]:
    """An envelope as JSON for a record."""
    return envelope.as_dict()


def envelope_in(value: dict[str, Any]) -> Envelope:
    """An envelope from a record."""
    return Envelope.from_dict(value)
