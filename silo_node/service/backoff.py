"""Pauses between tries: doubling, capped, and drawn at random between nothing and the whole ("full jitter").

Source: M. Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015). A portal that comes back after an outage
finds its silos spread over the longest pause, not at its door in one second.
"""

from __future__ import annotations

import random
from typing import Final

LEAST_SHARE: Final = 0.05
"""Of the pause that could be drawn: a pause of nothing would be no pause."""


class Backoff:
    """first, longest: seconds. draw: random numbers of 0 to 1; the machine's own unless a test gives a seeded one."""

    def __init__(self, first: float, longest: float, draw: random.Random | None = None) -> None:
        self._first, self._longest = first, longest
        self._draw = draw or random.SystemRandom()
        self._most = first

    def pause(self) -> float:
        """Seconds to wait now; twice as long the next time, at the most."""
        most, self._most = self._most, min(2 * self._most, self._longest)
        return most * self._draw.uniform(LEAST_SHARE, 1.0)

    def reset(self) -> None:
        """It went well: the next pause is a first one."""
        self._most = self._first
