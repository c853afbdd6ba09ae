"""The threads of `silo run` that wait: for the portal, for training, and for the time of the next heartbeat.

Each puts what it hears into the main thread's queue; only the main thread acts. None of them polls with sleeps: the
portal and the broker hold the question until there is an answer.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import redis

from silo_node.egress import Egress
from silo_node.errors import DiskFull, PortalError, PortalRefused, SiloError, Stopping
from silo_node.node import Node
from silo_node.service import broker, logs
from silo_node.service.backoff import Backoff

Events = queue.SimpleQueue[tuple[str, Any]]
ASSIGNMENTS = "/api/v1/silo/assignments"
FIRST_PAUSE = 0.4
LONGEST_PAUSE = 30.0
"""Seconds over which the silos of a network spread their polls while the portal is away."""
MOST_VERSION = 64


def start(name: str, target: Callable[[], None], events: Events) -> None:
    """Run `target` in a thread that ends with the process.

    An error that it does not expect is put into the queue as `("failed", name)`: a silo that has gone deaf must not look
    as if it waited.
    """

    def run() -> None:
        try:
            target()
        except BaseException as error:
            logs.get().error("thread.failed", thread=name, error_at=error)
            events.put(("failed", name))
            raise

    threading.Thread(target=run, name=name, daemon=True).start()


class Poller:
    """The long poll, on a connection of its own. failed: told of each fault of the way, at once."""

    def __init__(
        self, node: Node, events: Events, *, failed: Callable[[PortalError], None] = lambda error: None
    ) -> None:
        self._node = node
        self._events = events
        self._failed = failed
        self._egress: Egress = node.connection(probed=True)

    def run(self) -> None:
        """Until the silo stops."""
        version: str | int | None = None
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while not self._node.stop.is_set():
            # The first question is answered at once: that the silo is in contact need not wait for news.
            wait = self._node.config.settings.limits.poll if version is not None else 0
            query: dict[str, str | int] = {"wait": wait} if version is None else {"wait": wait, "after": version}
            try:
                body = self._egress.get(ASSIGNMENTS, kind="poll", query=query, wait=wait, patience=0).json()
                version = _version(body["version"])
                self._events.put(("assignments", body))
                pauses.reset()
            except Stopping:
                return
            except (PortalError, PortalRefused, DiskFull) as error:
                self._events.put(("problem", error))
                if isinstance(error, PortalError):
                    self._failed(error)
                # Whatever was missed meanwhile comes whole with the next answer.
                version = None
                self._node.stop.wait(pauses.pause())
            except (KeyError, TypeError):
                self._events.put(("problem", SiloError("BAD_ANSWER", "The portal's assignments can't be read.")))
                self._node.stop.wait(pauses.pause())


def _version(value: object) -> str | int:
    """What the next question names, so nothing that no address can hold. Raises: TypeError."""
    if not isinstance(value, str | int) or len(str(value)) > MOST_VERSION:
        raise TypeError("a version is a number or a short text")
    return value


class Results:
    """Waits on the broker for trainings that ended."""

    def __init__(self, node: Node, events: Events) -> None:
        self._node = node
        self._events = events

    def run(self) -> None:
        """Until the silo stops; a broker that restarts is found again, and told as `("lost", None)`: it may have lost all."""
        client, pauses, lost = broker.connect(self._node.config, once=True), Backoff(0.1, 5.0), False
        while not self._node.stop.is_set():
            try:
                if lost:
                    client.ping()
                    self._events.put(("lost", None))
                    lost = False
                self._events.put(("result", broker.wait_result(client, self._node.config)))
                pauses.reset()
            except (redis.RedisError, OSError):
                lost = True
                self._node.stop.wait(pauses.pause())


class Heart:
    """Heartbeats of the open round: soon after a stage began that lasts, then every few seconds."""

    SOON = 0.5

    def __init__(self, node: Node, beats: Callable[[], list[Callable[[], None]]]) -> None:
        self._node = node
        self._beats = beats
        self._began = threading.Event()

    def begin(self) -> None:
        """A round began."""
        self._began.set()

    def run(self) -> None:
        """Until the silo stops."""
        while not self._node.stop.is_set():
            self._began.wait()
            self._began.clear()
            pause = self.SOON
            while not self._node.stop.wait(pause):
                pause = self._node.config.settings.limits.heartbeat
                beats = self._beats()
                if not beats:
                    break
                for beat in beats:
                    try:
                        beat()
                    except Stopping:
                        return
                    except SiloError as error:
                        logs.get().warning("heartbeat.lost", code=error.code)


class Ticker:
    """Puts `(name, None)` into the queue every so many seconds."""

    def __init__(self, node: Node, events: Events, name: str, every: float) -> None:
        self._node = node
        self._events = events
        self._name = name
        self._every = every

    def run(self) -> None:
        """Until the silo stops."""
        while not self._node.stop.wait(self._every):
            self._events.put((self._name, None))


class Keeper:
    """The silo's own log: numbers what was recorded and sends the new checkpoint to the portal."""

    EVERY = 10.0

    def __init__(self, node: Node) -> None:
        self._node = node

    def run(self) -> None:
        """Until the silo stops."""
        while not self._node.stop.wait(self.EVERY):
            self.turn()

    def turn(self, *, patience: float | None = None, timeout: float = 30.0) -> None:
        """One sequencing, with its checkpoint sent; both in seconds, see `Egress.request`."""
        try:
            note = self._node.evidence.sequence()
            if note is not None:
                self._node.egress.post(
                    "/api/v1/log/silo-checkpoint",
                    {"note": note},
                    kind="silo-checkpoint",
                    patience=patience,
                    timeout=timeout,
                )
        except Stopping:
            return
        except (SiloError, OSError, sqlite3.Error) as error:
            # The records are on disk; the next turn numbers and sends them.
            logs.get().error("evidence.delayed", code=getattr(error, "code", type(error).__name__))
