"""Whether `silo run` lives, for a container's health check: its main thread has turned within the last minutes.

FOLDER/alive holds the time since the machine's start at which it last did, which no setting of the clock changes. A portal
that is away, a full disk or a wrong clock is no reason to start the silo again; `silo status` and `silo doctor` name those.
"""

from __future__ import annotations

import time
from typing import Final

from silo_node.config import Config
from silo_node.errors import DiskFull, SiloError
from silo_node.files import write_bytes
from silo_node.node import runs

EVERY: Final = 10.0
PATIENCE: Final = 300.0
"""Seconds that one step of a round may take besides the time that a request is tried again (`[limits] retry`)."""


class Unhealthy(SiloError):
    """The silo has to be started, or started again."""

    def __init__(self, sentence: str) -> None:
        super().__init__("NOT_HEALTHY", sentence)


def turned(config: Config) -> None:
    """The main thread is here. On a full disk nothing is noted: that is no sign of life, but no fault of it either."""
    try:
        write_bytes(config.folder / "alive", f"{_now():.1f}\n".encode(), sync=False)
    except DiskFull:
        return


def check(config: Config) -> float:
    """Seconds since the main thread last turned. Raises: Unhealthy."""
    if not runs(config.folder):
        raise Unhealthy("`silo run` is not running here.")
    try:
        age = _now() - float((config.folder / "alive").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0.0  # it has only just started
    most = PATIENCE + config.settings.limits.retry
    if age > most:
        raise Unhealthy(f"`silo run` has been stuck for {age:.0f} seconds, more than {most:.0f}: start it again.")
    return age


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME if hasattr(time, "CLOCK_BOOTTIME") else time.CLOCK_MONOTONIC)
