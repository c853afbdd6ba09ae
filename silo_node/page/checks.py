"""The settings check: the results of `silo doctor`, kept until somebody asks for new ones."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from silo_node.config import Config


@dataclass(frozen=True)
class Checked:
    """at: RFC 3339. results: name, state (ok, warn, fail, skipped), found, change (what to do)."""

    at: str
    results: list[dict[str, str]]


_LAST: Final[dict[str, Checked]] = {}
_ONE_AT_A_TIME: Final = threading.Lock()


def last(config: Config) -> Checked | None:
    """What was found last, since this page runs."""
    return _LAST.get(str(config.folder))


def run(config: Config) -> None:
    """Check now. Where somebody else is checking, wait for their results."""
    asked = datetime.now(UTC).isoformat()
    with _ONE_AT_A_TIME:
        held = last(config)
        if held is not None and held.at > asked:
            return
        _LAST[str(config.folder)] = Checked(datetime.now(UTC).isoformat(), _report(config))


def _report(config: Config) -> list[dict[str, str]]:
    """`silo doctor`'s results in the page's words; the one place that knows how it is called."""
    from silo_node.health import doctor

    found: list[Any] = doctor.examine(config.folder)
    return [{"name": each.name, "state": each.state, "found": each.found, "change": each.do} for each in found]
