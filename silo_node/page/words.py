"""Words, signs and units of the pages: a state as word, sign and colour; times, sizes and counts for people."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from markupsafe import Markup, escape

from protocol.plain_text import visible
from silo_node.evidence.egress_log import NOT_SENT


class Is(NamedTuple):
    """A state: tone is the colour's class, icon the sign's name."""

    word: str
    tone: str
    icon: str


STATES: Final = {
    "idle": Is("running", "good", "check"),
    "working": Is("running", "good", "check"),
    "starting": Is("starting", "wait", "clock"),
    "connecting": Is("looking for the portal", "warn", "clock"),
    "stopped": Is("stopped", "warn", "pause"),
    "not running": Is("not running", "bad", "cross"),
    "never started": Is("never started", "wait", "minus"),
}
MATCHES: Final = {
    "PERMIT": Is("permits", "good", "check"),
    "REVIEW": Is("a person must look", "warn", "question"),
    "DENY": Is("refuses", "bad", "cross"),
}
DECISIONS: Final = {
    "approve": Is("approved", "good", "check"),
    "reject": Is("rejected", "bad", "cross"),
    "revoke": Is("taken back", "bad", "cross"),
    "unreadable": Is("unreadable", "bad", "alert"),
}
CHECKS: Final = {
    "ok": Is("in order", "good", "check"),
    "warn": Is("look at this", "warn", "alert"),
    "fail": Is("wrong", "bad", "cross"),
    "skipped": Is("not checked", "wait", "minus"),
}
DOES: Final = {"approve": "Approve", "reject": "Reject", "revoke": "Take back the approval"}
"""What a button does that signs."""
ASKS: Final = {"approve": "Approve", "reject": "Reject", "revoke": "Take back the approval of"}
"""The same before a study's name."""
PROBLEM: Final = Is("wrong", "bad", "alert")
PREVIEW: Final = Is("not signed", "wait", "minus")
STANDS: Final = Is("approved and in force", "good", "check")
OVER: Final = Is("over", "bad", "cross")
WAITING: Final = Is("waits for a decision", "warn", "clock")
_UNKNOWN: Final = Is("unknown", "wait", "question")
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


def state(name: Any) -> Is:
    """The silo's state."""
    return STATES.get(str(name), Is(str(name), "live", "turn"))


def match(name: Any) -> Is:
    """What a policy says."""
    return MATCHES.get(str(name), _UNKNOWN)


def decision(name: Any) -> Is:
    """What a steward said; None where nobody has."""
    return WAITING if name is None else DECISIONS.get(str(name), _UNKNOWN)


def check(name: Any) -> Is:
    """How a check ended."""
    return CHECKS.get(str(name), _UNKNOWN)


def outcome(name: Any) -> Is:
    """How a round ended."""
    return Is(str(name), *(("good", "check") if name == "finished" else ("warn", "alert")))


def answer(status: int | None) -> Is:
    """The portal's answer to a message."""
    if status is None:
        return Is("perhaps sent", "warn", "question")
    if status == NOT_SENT:
        return Is("not sent", "wait", "minus")
    return Is("taken", "good", "check") if status < 300 else Is(f"refused ({status})", "bad", "cross")


def size(count: int) -> str:
    """`812 bytes`, `28.0 MB` (powers of 1000)."""
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{count:,} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def number(count: int) -> str:
    """`7,000,000`."""
    return f"{count:,}"


def moment(text: str | None, otherwise: str = "never") -> Markup:
    """A time element: UTC as written by us, in the reader's zone as soon as the script has run."""
    try:
        at = datetime.fromisoformat(str(text).replace("Z", "+00:00")).astimezone(UTC)
    except ValueError:
        return escape(otherwise)
    return Markup('<time datetime="{}" title="{} UTC" data-moment="exact">{} UTC</time>').format(
        at.isoformat().replace("+00:00", "Z"), f"{at:%Y-%m-%d %H:%M:%S}", f"{at:%d %b %Y, %H:%M:%S}"
    )


def coded(text: str) -> Markup:
    """A sentence of ours; what stands between back quotes is something to type."""
    parts = visible(str(text)).split("`")
    if len(parts) % 2 == 0:
        return escape("`".join(parts))
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def short(digest: str | None) -> str:
    """The first characters of a digest, as one reads them out."""
    text = str(digest or "").removeprefix("sha256:")[:12]
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "size": size,
    "number": number,
    "moment": moment,
    "short": short,
    "coded": coded,
    "quoted": lambda value: shlex.quote(str(value)),
}
