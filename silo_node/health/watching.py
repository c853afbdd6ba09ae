"""The threads of `silo run` that look for what is wrong, so that status.json says so within seconds and takes it back.

One looks at this machine and the broker every second, one at where consents and images come from: files by their times, the
PACS and a FHIR server by what met whoever asked them last. Nobody may have asked the FHIR server for long, so one more asks
it, at most once a minute.

The last asks the portal for its log's checkpoint: a small file, whose signed answer shows that the way is open, that the
clocks agree, and that it is still the same log. A thousand silos must not ask for that all the time, so it is asked when
there is a reason, and seldom without one:

    the long poll broke     a portal that dies or a proxy that cuts ends it at once, a silent network within four seconds
                            (silence.py)
    the clock jumped        against the one that only counts seconds; or the machine has slept
    the last look failed    until one does not
    REST seconds are over   for what none of these shows: a portal that hangs, another log that nothing has brought yet
    BEHIND_PROXY            instead of REST: a proxy answers the poll's probes itself, so silence beyond it shows only so

Another log comes with a checkpoint: with this one, or with the proof in a round's announcement, which the gate holds to
the same log. Either is refused when it comes.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final

import redis

from protocol.transparency.note import NoteError, open_checkpoint
from silo_node.config import Config
from silo_node.consent import asked
from silo_node.consent.looking import Looking
from silo_node.egress import RETRY_STATUS
from silo_node.errors import DiskFull, PortalError, PortalRefused, SiloError, Stopping, is_disk_full
from silo_node.evidence import portal_log
from silo_node.health.doctor_network import Broken, Target
from silo_node.health.local_checks import Here, gather
from silo_node.health.status import HERE, SOURCES, WAY, Live
from silo_node.node import Node
from silo_node.pacs import state as pacs
from silo_node.service import broker, logs
from silo_node.service.backoff import Backoff

HERE_EVERY: Final = 1.0
REST: Final = 60.0
BEHIND_PROXY: Final = 15.0
"""Seconds between two looks at the portal without a reason."""
AGAIN: Final = (2.5, 10.0)
"""Seconds, the first and the longest pause, after a look that failed."""
SERVER_EVERY: Final = 60.0
"""Seconds between two questions to the FHIR server, whoever asks; and at least SERVER_REST times as long as one took."""
SERVER_REST: Final = 10.0
SPREAD: Final = 1.0
"""Seconds over which the silos of a network ask that all have the same reason."""
PORTAL_TIMEOUT: Final = 2.0
JUMP: Final = 2.0
"""Seconds by which a clock is set, not slewed."""
CHECKPOINT: Final = "/api/v1/log/checkpoint"


class Watch:
    """What the threads do. live: where they say what they found. page: why the node's page is not served."""

    def __init__(self, node: Node, live: Live, page: Callable[[], list[SiloError]]) -> None:
        self._page = page
        self._node = node
        self._live = live
        self._look, self._consents = Here(), Looking()
        self._egress = node.connection()
        self._reason = threading.Event()
        self._again = Backoff(*AGAIN)
        self._well = True
        self._rest = BEHIND_PROXY if _proxied(node.config) else REST
        self._clock = time.time() - time.monotonic()
        self._broker = broker.connect(node.config, timeout=1.0)

    def here(self) -> None:
        """This machine and the broker, until the silo stops."""
        while not self._node.stop.wait(HERE_EVERY):
            self.look_here()

    def portal(self) -> None:
        """The way to the portal, its clock and its log, until the silo stops."""
        while not self._node.stop.is_set():
            self._reason.clear()
            self.look_at_portal()
            if self._reason.wait(self._pause()):
                self._node.stop.wait(random.uniform(0.0, SPREAD))

    def sources(self) -> None:
        """Where consents and images come from, until the silo stops."""
        while not self._node.stop.wait(HERE_EVERY):
            self.look_at_sources()

    def consent_server(self) -> None:
        """The FHIR server, until the silo stops; at once where there is none. What it says is seen by `look_at_sources`."""
        config = self._node.config
        if config.settings.consent.source != "server":
            return
        took, pause = 0.0, 0.0
        while not self._node.stop.wait(pause):
            due = max(SERVER_EVERY, SERVER_REST * took)
            if pause == 0.0 or asked.age(config) >= due:
                began = time.monotonic()
                try:
                    asked.ask(config)
                except OSError as error:
                    logs.get().warning("watch.failed", error_at=error)
                took = time.monotonic() - began
            pause = HERE_EVERY

    def poll_failed(self, error: PortalError) -> None:
        """The long poll met a fault of the way: said at once, and looked at. From the poll's thread."""
        if self._well:
            self._tell(WAY, [error])
            self._reason.set()

    def _pause(self) -> float:
        if not self._well:
            return self._again.pause()
        self._again.reset()
        return self._rest * random.uniform(0.8, 1.0)

    def look_here(self) -> None:
        """Once."""
        config = self._node.config
        clock = time.time() - time.monotonic()
        if abs(clock - self._clock) > JUMP:
            self._reason.set()
        self._clock = clock
        self._tell(HERE, [*self._look(config), *self._broker_problem(), *self._page()])

    def look_at_sources(self) -> None:
        """Once."""
        found = gather((self._consents, _pacs), self._node.config, "A source of consents or images")
        self._tell(SOURCES, found)

    def look_at_portal(self) -> None:
        """Once. What the portal refuses to give while it is there is no fault of the way."""
        try:
            found = self._way()
        except Stopping:
            return
        if not found and not self._well:
            self._live.over_with_way()
        self._well = not found
        self._tell(WAY, found)

    def _way(self) -> list[SiloError]:
        try:
            self._hold_to_log()
        except Stopping:
            raise
        except PortalRefused as error:
            return [error] if error.status in RETRY_STATUS else []
        except SiloError as error:
            # Two logs are a fact that stays, and `look_here` says it from now on.
            return [] if portal_log.conflict(self._node.config) else [error]
        except (OSError, sqlite3.Error) as error:
            if not is_disk_full(error):
                raise
            return [DiskFull("No room to keep the checkpoint of the portal's audit log.")]
        return []

    def _tell(self, about: str, found: list[SiloError]) -> None:
        """The logs hear of each problem once."""
        for error in self._live.now(about, found):
            logs.get().warning("problem", code=error.code, sentence=error.sentence)

    def _hold_to_log(self) -> None:
        note = self._egress.get(CHECKPOINT, kind="checkpoint", patience=0, timeout=PORTAL_TIMEOUT).body
        pin = self._node.pin
        if pin is None:
            return
        try:
            text = note.decode()
            checkpoint = open_checkpoint(text, pin.log_vkey)
        except (NoteError, UnicodeDecodeError):
            raise PortalError(
                "LOG_UNREADABLE",
                "The checkpoint of the portal's audit log is not signed by the log pinned at enrolment.",
            ) from None
        portal_log.accept(self._node, checkpoint, text)

    def _broker_problem(self) -> list[SiloError]:
        try:
            self._broker.ping()
        except (redis.RedisError, OSError) as error:
            return [broker.BrokerError(f"The broker does not answer ({type(error).__name__}): no training can start.")]
        return []


def _pacs(config: Config) -> list[SiloError]:
    """What ended the last fetch early, or keeps the receiver from listening."""
    if config.settings.dicomweb is None and config.settings.receiver is None:
        return []
    return [SiloError(each["code"], each["sentence"]) for each in pacs.problems(pacs.report(config))]


def _proxied(config: Config) -> bool:
    try:
        return Target.of(config).proxy is not None
    except Broken:
        return True
