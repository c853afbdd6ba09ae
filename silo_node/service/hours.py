"""When this hospital's machine may train: `[hours] train = "20:00-06:00"`, by the machine's own clock on the wall.

Only the wall clock counts, so the night in which the clock is set back or forward begins and ends at the same times as any
other; it is an hour longer or shorter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final

_FORM: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Window:
    """From `start` until before `end`, each day; over midnight where `end` is the earlier one."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Window:
        """ "HH:MM-HH:MM". Raises: ValueError in words."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError('must look like "20:00-06:00"')
        first, second = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
        if first == second:
            raise ValueError("begins and ends at the same time: leave it out to train at any time")
        return cls(first, second)

    def holds(self, at: datetime) -> bool:
        """Whether a moment (with its time zone) lies in it, by the machine's local time."""
        wall = at.astimezone().time()
        if self.start < self.end:
            return self.start <= wall < self.end
        return wall >= self.start or wall < self.end

    def next_start(self, after: datetime) -> datetime:
        """When it begins next after a moment, in local time with its offset."""
        day = after.astimezone().date()
        for days in range(3):
            # A naive time becomes a moment by the rules of its own day.
            naive = datetime.combine(day + timedelta(days=days), self.start)
            found = naive.astimezone()
            if found.time() != self.start:
                found = naive.replace(fold=1).astimezone()  # the clock leaps over it: after the leap
            if found > after:
                return found
        raise AssertionError("a day has an hour of each name, or the next one has")

    def __str__(self) -> str:
        return f"{self.start:%H:%M} and {self.end:%H:%M}"
