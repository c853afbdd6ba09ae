"""Waking long polls: one subscription a process to the channels of all silos, and a counter a silo.

A waiter remembers the counter before it reads the database and waits only while the counter stands still, so no news is
lost between reading and waiting. Which version of a silo's assignments belongs to a counter is kept: a silo that asks
again with that version, while the counter stands still, waits without reading. When the broker is away nothing of this
holds: then every poll reads at its start and at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict

import redis.asyncio
import structlog
from django.conf import settings
from redis.exceptions import RedisError

from portal.events import SILO_CHANNEL

log = structlog.get_logger(__name__)
AGAIN_SECONDS = 0.5
FIRST_SECONDS = 2.0


class Hub:
    """Counts news for silos in one event loop."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._news: defaultdict[str, int] = defaultdict(int)
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._known: dict[str, tuple[int, str]] = {}
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once the subscription stands, or after two seconds without a broker."""
        if self._address is None:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen(), name="silo-news")
        if not self._listening.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._listening.wait(), FIRST_SECONDS)

    def count(self, silo: str) -> int:
        """How often there was news for a silo; may be called from any thread."""
        return self._news.get(silo, 0)

    def note(self, silo: str, seen: int, version: str) -> None:
        """The assignments that were read when the counter of a silo was `seen` have this version."""
        self._known[silo] = (seen, version)

    def unchanged(self, silo: str, version: str) -> int | None:
        """The counter of a silo, where nothing happened since its assignments had this version; None otherwise."""
        seen, known = self._known.get(silo, (-1, ""))
        if not self._listening.is_set() or known != version or seen != self._news.get(silo, 0):
            return None
        return seen

    async def changed(self, silo: str, seen: int) -> None:
        """Return once the counter of a silo is not `seen` any more."""
        event = asyncio.Event()
        waiters = self._waiters[silo]
        waiters.add(event)
        try:
            while self._news.get(silo, 0) == seen:
                event.clear()
                await event.wait()
        finally:
            waiters.discard(event)

    async def stop(self) -> None:
        """End the subscription."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def tell(self, silo: str) -> None:
        """There is news for a silo."""
        self._news[silo] += 1
        for event in self._waiters.get(silo, ()):
            event.set()

    async def _listen(self) -> None:
        client = redis.asyncio.Redis.from_url(self._address or "")
        said = False
        try:
            while True:
                try:
                    await self._receive(client)
                except (RedisError, OSError) as error:
                    if self._listening.is_set() or not said:
                        log.warning("wake.broker_away", error=type(error).__name__)
                        said = True
                self._listening.clear()
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            await client.aclose()

    async def _receive(self, client: redis.asyncio.Redis) -> None:
        async with client.pubsub() as channel:
            await channel.psubscribe(SILO_CHANNEL + "*")
            async for message in channel.listen():
                if message["type"] == "psubscribe":
                    self._listening.set()
                    # News may have passed while nobody listened: everybody reads again.
                    for silo in list(self._waiters):
                        self.tell(silo)
                elif message["type"] == "pmessage":
                    self.tell(message["channel"].decode()[len(SILO_CHANNEL) :])


_hubs: dict[int, tuple[asyncio.AbstractEventLoop, Hub]] = {}


def hub() -> Hub:
    """The hub of the running event loop."""
    loop = asyncio.get_running_loop()
    for key, (known, _) in list(_hubs.items()):
        if known.is_closed():
            del _hubs[key]
    if id(loop) not in _hubs:
        _hubs[id(loop)] = (loop, Hub(settings.REDIS_ADDRESS))
    return _hubs[id(loop)][1]
