"""What the portal works for each request of a round: queries of the database, and signatures that it verifies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from django.db import connection

from federation.models import CLOSED, Purpose, Stage
from protocol import signing
from tests.platform.federation.conftest import Network, PlayedSilo

MESSAGE = 12
"""Queries for a message, or for the assignments, whatever the number of silos."""
LAST = 80
"""The same for the message that ends a stage: the sum is made, or the next round announced."""


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

    def check_queries(self) -> None:
        """All requests of a name but one need few queries; that one ends the stage."""
        for name, works in self.work.items():
            *most, last = sorted(each.queries for each in works)
            assert last <= LAST, (name, last)
            assert not most or most[-1] <= MESSAGE, (name, most[-3:])


def metered(network: Any, monkeypatch: Any, n: int, **settings: Any) -> Meter:
    """What one whole round that trains costs, of n silos."""
    meter = Meter(monkeypatch)
    world = network(n, max_rounds=1, **settings)
    world.play(until=over, steps=3000)
    assert world.rounds[1].stage == Stage.FINISHED, world.rounds[1].failure
    assert world.rounds[1].verified is True
    return meter


def over(world: Network) -> bool:
    """Whether the first round that trains has ended."""
    return len(world.rounds) > 1 and world.rounds[1].stage in CLOSED


def _training(world: Network) -> bool:
    return world.round.purpose == Purpose.TRAIN
