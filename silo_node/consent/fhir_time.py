"""FHIR's `dateTime`: a year, a month, a day, or a time with its zone. What is not written is not guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_FORM = re.compile(
    r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})"
    r"(?:T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2}))?)?)?"
)


@dataclass(frozen=True)
class Moment:
    """Some time from `first` to `last`, both UTC and inclusive: equal where the time is written out."""

    first: datetime
    last: datetime


EVER = Moment(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
"""A moment of which nothing is known."""


def parse(text: object) -> Moment:
    """The moment that `text` names; a date without time is that day in UTC. Raises: ValueError without the text."""
    form = _FORM.fullmatch(text) if isinstance(text, str) else None
    if form is None:
        raise ValueError("is not a FHIR dateTime")
    year, month, day, hour, minute, second, fraction, zone = form.groups()
    try:
        if zone is not None:
            micro = (fraction or "0").ljust(6, "0")[:6]
            offset = "+00:00" if zone == "Z" else zone
            exact = datetime.fromisoformat(f"{year}-{month}-{day}T{hour}:{minute}:{second}.{micro}{offset}")
            return Moment(exact.astimezone(UTC), exact.astimezone(UTC))
        first = datetime(int(year), int(month or 1), int(day or 1), tzinfo=UTC)
        return Moment(first, _after(first, month is not None, day is not None) - timedelta(microseconds=1))
    except (ValueError, OverflowError):
        raise ValueError("is not a time that exists") from None


def _after(first: datetime, month: bool, day: bool) -> datetime:
    """The first moment after that day, month or year; the end of 9999 where there is none."""
    try:
        if day:
            return first + timedelta(days=1)
        if month and first.month < 12:
            return first.replace(month=first.month + 1)
        return first.replace(year=first.year + 1, month=1)
    except (ValueError, OverflowError):
        return EVER.last
