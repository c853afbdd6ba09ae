"""Keeps the last good reading of a FHIR server fresh while no round reads it, in a thread of `silo run`.

A silo that was idle for days would otherwise meet the server's next short outage with a reading that is too old. Nothing is
decided or recorded here: that is the round's (registry.py). What a search met is noted for whoever looks (asked.py).
"""

from __future__ import annotations

import time
from typing import Final

from silo_node.config import Config
from silo_node.consent import registry
from silo_node.errors import SiloError
from silo_node.health.local_checks import disk
from silo_node.node import Node
from silo_node.service import logs
from silo_node.service.backoff import Backoff

SHARE: Final = 0.5
"""Of max_age_hours: from that age on the reading is renewed."""
EVERY: Final = 10.0
"""Seconds between two looks at its age."""
FIRST, LONGEST = 60.0, 900.0
"""Seconds, the first and the longest pause, after a search that failed; at most an eighth of max_age_hours."""


def due(config: Config) -> bool:
    """Whether the reading is old enough to be renewed, or there is none, or it is of before the clock was set back."""
    try:
        age = time.time() - config.consent_kept.stat().st_mtime
    except OSError:
        return True
    return not 0 <= age < SHARE * config.settings.consent.max_age_hours * 3600


class Renewing:
    """The thread."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pauses = Backoff(FIRST, min(LONGEST, node.config.settings.consent.max_age_hours * 3600 / 8))

    def run(self) -> None:
        """Until the silo stops; at once where consents come from no server."""
        if self._node.config.settings.consent.source != "server":
            return
        pause = 0.0
        while not self._node.stop.wait(pause):
            pause = self.turn()

    def turn(self) -> float:
        """Renew the reading where that is due. Returns: seconds to wait."""
        config = self._node.config
        if not due(config):
            self._pauses.reset()
            return EVERY
        try:
            if disk(config):  # what is kept would not fit; that is said elsewhere
                return self._pauses.pause()
            registry.renew(config)
        except (SiloError, OSError, MemoryError) as error:
            logs.get().warning("consents.not_renewed", code=getattr(error, "code", type(error).__name__))
            return self._pauses.pause()
        logs.get().info("consents.renewed")
        self._pauses.reset()
        return EVERY
