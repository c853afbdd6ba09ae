"""Two threads of `silo run` that look for what is wrong, so that status.json says so within seconds and takes it back.

One looks at this machine and the broker every second, the other asks the portal for its log's checkpoint every three: a
small file, whose signed answer shows that the way is open, that the clocks agree, and that it is still the same log. The
long poll alone would notice a network that went silent only after its own long wait.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

import redis

from protocol.transparency.note import NoteError, open_checkpoint
from silo_node.egress import RETRY_STATUS
from silo_node.errors import DiskFull, PortalError, PortalRefused, SiloError, Stopping, is_disk_full
from silo_node.evidence import portal_log
from silo_node.health.local_checks import Here
from silo_node.health.status import HERE, WAY, Live
from silo_node.node import Node
from silo_node.service import broker, logs

HERE_EVERY: Final = 1.0
PORTAL_EVERY: Final = 2.5
PORTAL_TIMEOUT: Final = 2.0
"""Seconds; with the pause before it less than the 5 within which a fault is to be seen."""
CHECKPOINT: Final = "/api/v1/log/checkpoint"


class Watch:
    """What the two threads do. live: where they say what they found. page: why the node's page is not served."""

    def __init__(self, node: Node, live: Live, page: Callable[[], list[SiloError]]) -> None:
        self._page = page
        self._node = node
        self._live = live
        self._look = Here()
        self._egress = node.connection()
        self._broker = broker.connect(node.config, timeout=1.0)

    def here(self) -> None:
        """This machine and the broker, until the silo stops."""
        while not self._node.stop.wait(HERE_EVERY):
            self.look_here()

    def portal(self) -> None:
        """The way to the portal, its clock and its log, until the silo stops."""
        while not self._node.stop.wait(PORTAL_EVERY):
            self.look_at_portal()

    def look_here(self) -> None:
        """Once."""
        config = self._node.config
        self._tell(HERE, [*self._look(config), *self._broker_problem(), *self._page()])

    def look_at_portal(self) -> None:
        """Once. What the portal refuses to give while it is there is no fault of the way."""
        try:
            self._hold_to_log()
        except Stopping:
            return
        except PortalRefused as error:
            self._tell(WAY, [error] if error.status in RETRY_STATUS else [])
        except SiloError as error:
            # Two logs are a fact that stays, and `look_here` says it from now on.
            self._tell(WAY, [] if portal_log.conflict(self._node.config) else [error])
        except (OSError, sqlite3.Error) as error:
            if not is_disk_full(error):
                raise
            self._tell(WAY, [DiskFull("No room to keep the checkpoint of the portal's audit log.")])
        else:
            self._tell(WAY, [])

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
