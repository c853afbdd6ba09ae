"""A journal that dies with its process, for benchmarks and tests: what a hospital runs is silo_node/journal.py."""

from __future__ import annotations

from protocol.secure_aggregation import JournalConflict


class MemoryJournal:
    """Put-once, as the protocol asks. rows: key -> value."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        if self.rows.setdefault(key, bytes(value)) != value:
            raise JournalConflict(key)

    def get(self, key: str) -> bytes | None:
        return self.rows.get(key)

    def forget(self, prefix: str) -> None:
        for key in [key for key in self.rows if key.startswith(prefix)]:
            del self.rows[key]
