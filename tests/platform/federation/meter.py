"""What the portal works for each request of a round: queries of the database, and signatures that it verifies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from django.db import connection

from federation.models import Purpose
from protocol import signing
from tests.platform.federation.conftest import Network, PlayedSilo


class Work(NamedTuple):
    """Of one request."""

    queries: int
    verified: int


class Meter:
    """Measures the requests of all training rounds: "POST list" or, of assignments, "GET list" -> one `Work` each."""

    def __init__(self, monkeypatch: Any) -> None:
        self.work: dict[str, list[Work]] = defaultdict(list)
        self._queries = self._verified = 0
        self._inside = False
        verify, ask, assignments = signing.verify, PlayedSilo.ask, PlayedSilo.assignments

        def counted(*args: Any) -> None:
            self._verified += self._inside
            verify(*args)

        def post(silo: PlayedSilo, method: str, path: str, **rest: Any) -> Any:
            parts = path.split("/")
            if method != "POST" or not _training(silo.network):
                return ask(silo, method, path, **rest)
            return self._of(f"POST {parts[2]}", lambda: ask(silo, method, path, **rest))

        def get(silo: PlayedSilo) -> Any:
            if not _training(silo.network):
                return assignments(silo)
            return self._of(f"GET {silo.network.round.stage}", lambda: assignments(silo))

        monkeypatch.setattr(signing, "verify", counted)
        monkeypatch.setattr(PlayedSilo, "ask", post)
        monkeypatch.setattr(PlayedSilo, "assignments", get)

    def _of(self, name: str, act: Callable[[], Any]) -> Any:
        self._queries, self._verified, self._inside = 0, 0, True
        try:
            with connection.execute_wrapper(self._count):
                answer = act()
        finally:
            self._inside = False
        self.work[name].append(Work(self._queries, self._verified))
        return answer

    def _count(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        self._queries += 1
        return execute(sql, params, many, context)

    def verified(self) -> int:
        """Signatures of the whole round."""
        return sum(each.verified for works in self.work.values() for each in works)

    def queries(self, name: str) -> list[int]:
        """Of each request of this name, ascending."""
        return sorted(each.queries for each in self.work[name])


def _training(world: Network) -> bool:
    return world.round.purpose == Purpose.TRAIN
