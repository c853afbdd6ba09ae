"""A round as lanes, one a silo: what each did from the announcement to its last answer, on one axis of seconds.

Training and the set-up of the masks run side by side, so a lane has two tracks: the upper third shows checks, set-up,
upload, unmasking (with the lists and the sketch) and the check of the sum, the rest shows training. Times come from the
silo's signed messages (the portal's clock on arrival) and from its heartbeats; a silo that never answered has an empty
lane and a sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

WIDTH = 1000
HEIGHT = 26
_UPPER = (0, 9)
_LOWER = (10, 16)
_WHOLE = (0, HEIGHT)
# Words that silos use in heartbeats -> part of the lane.
PARTS = {
    "gate": "gate",
    "checks": "gate",
    "setup": "setup",
    "set-up": "setup",
    "keys": "setup",
    "bundles": "setup",
    "ready": "setup",
    "table": "setup",
    "train": "train",
    "training": "train",
    "evaluate": "train",
    "evaluation": "train",
    "evaluating": "train",
    "update": "upload",
    "upload": "upload",
    "uploading": "upload",
    "list": "unmask",
    "sketch": "unmask",
    "second": "unmask",
    "unmask": "unmask",
    "unmasking": "unmask",
    "sum": "verify",
    "nonce": "verify",
    "check": "verify",
    "verify": "verify",
    "state": "verify",
}
LABELS = {
    "gate": "checks",
    "setup": "set-up",
    "train": "training",
    "upload": "upload",
    "unmask": "unmasking",
    "verify": "check of the sum",
}


@dataclass(frozen=True)
class Track:
    """What is known of one silo in one round.

    `entered`: the silo's own stages by heartbeat -> time. `sent`: kind of message -> time of arrival. `first_chunk`,
    `chunks`, `bytes_up`: its upload. `seen_at`: last sign of life. `fault`, `refusal`: sentences where there are any.
    """

    silo: str
    hospital: str
    entered: Mapping[str, datetime]
    sent: Mapping[str, datetime]
    first_chunk: datetime | None = None
    last_chunk: datetime | None = None
    bytes_up: int = 0
    seen_at: datetime | None = None
    in_roster: bool | None = None
    member: bool | None = None
    refusal: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Bar:
    """One rectangle of a lane, in the units of its viewBox, as text (templates would localise numbers)."""

    part: str
    x: str
    width: str
    y: int
    height: int


@dataclass
class Lane:
    """One silo's lane: bars for the picture, seconds for the table, and a sentence where it did not go through."""

    silo: str
    hospital: str
    state: str
    bars: list[Bar] = field(default_factory=list)
    seconds: dict[str, float | None] = field(default_factory=dict)
    bytes_up: int = 0
    sentence: str = ""

    @property
    def spoken(self) -> str:
        """The lane for who can't see it."""
        parts = [f"{LABELS[key]} {value:.1f} s" for key, value in self.seconds.items() if value is not None]
        return f"{self.hospital}: {', '.join(parts) or 'nothing yet'}, {self.state}"


def spans(track: Track, *, started: datetime, closed: datetime | None) -> dict[str, tuple[datetime, datetime | None]]:
    """Start and end (None: still going on) of each part of a silo's round; parts that have not begun are left out.

    Heartbeats come every few seconds, messages and pieces at once: of two signs of the same step the earlier counts.
    """
    entered: dict[str, datetime] = {}
    for stage, at in sorted(track.entered.items(), key=lambda pair: pair[1]):
        entered.setdefault(PARTS.get(stage, ""), at)
    sent = track.sent
    found: dict[str, tuple[datetime, datetime | None]] = {}
    train = _earliest(entered.get("train"), sent.get("keys"))
    setup = sent.get("keys") or entered.get("setup")
    if train or setup or entered or sent:
        found["gate"] = (started, _earliest(train, setup, sent.get("refusal"), sent.get("state")))
    if setup:
        # Where the first model is made there are no keys: the silo builds it and signs its state.
        found["setup"] = (setup, sent.get("ready") if "keys" in sent else sent.get("state"))
    upload = _earliest(entered.get("upload"), track.first_chunk)
    if train:
        found["train"] = (train, _earliest(track.entered.get("waiting"), upload, sent.get("update")))
    if upload:
        found["upload"] = (upload, sent.get("update"))
    # Between its update and the list a silo only waits for the others: a gap, not a bar.
    unmask = entered.get("unmask") or sent.get("list")
    if unmask and "update" in sent:
        left = sent.get("sketch") if track.member is False else None
        found["unmask"] = (unmask, sent.get("unmask") or left or closed)
    verify = _earliest(entered.get("verify"), sent.get("nonce"))
    if verify and "unmask" in sent:
        found["verify"] = (verify, sent.get("state") or closed)
    return {part: (start, end or closed) for part, (start, end) in found.items()}


def _earliest(*times: datetime | None) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def draw(
    tracks: Sequence[Track], *, started: datetime, now: datetime, closed: datetime | None, failed: bool = False
) -> tuple[list[Lane], float]:
    """Lanes of all silos and the seconds that the axis spans (at least one). `failed`: the round was given up."""
    end = closed or now
    extent = max((end - started).total_seconds(), 1.0)
    lanes = []
    for track in tracks:
        state = _state(track, closed=closed is not None, failed=failed)
        over = end
        if state in ("lost", "refused"):
            over = min(track.sent.get("refusal") or track.seen_at or end, end)
        lane = Lane(
            track.silo, track.hospital, state, bytes_up=track.bytes_up, sentence=_sentence(track, state, failed=failed)
        )
        for part, (start, finish) in spans(track, started=started, closed=closed).items():
            finish = max(min(finish or over, over), start)
            lane.seconds[part] = (finish - start).total_seconds()
            low, high = _LOWER if part == "train" else _UPPER
            lane.bars.append(
                _bar(part, (start - started).total_seconds(), (finish - start).total_seconds(), extent, low, high)
            )
        if state in ("lost", "refused"):
            at = max((over - started).total_seconds(), 0.0)
            lane.bars.append(_bar("lost", min(at, extent * 0.992), extent * 0.008, extent, *_WHOLE))
        lanes.append(lane)
    return lanes, extent


def ticks(extent: float) -> list[str]:
    """Five marks of the axis, as text with their unit."""
    digits = 1 if extent < 20 else 0
    return [f"{extent * step / 4:.{digits}f} s" for step in range(5)]


def _bar(part: str, start: float, length: float, extent: float, y: int, height: int) -> Bar:
    x = start / extent * WIDTH
    width = max(length / extent * WIDTH, 2.0)
    return Bar(part, f"{min(x, WIDTH - 2.0):.1f}", f"{min(width, WIDTH - min(x, WIDTH - 2.0)):.1f}", y, height)


def _state(track: Track, *, closed: bool, failed: bool) -> str:
    """The word for where the silo is, or how the round ended for it."""
    sent = track.sent
    if track.refusal:
        return "refused"
    if closed and failed:
        return "lost" if track.fault or not sent else "left out" if "update" in sent else "ended"
    if track.member or (closed and "state" in sent):
        if closed or "state" in sent:
            return "done"
        return "verify" if "nonce" in sent else "done" if "unmask" in sent else "unmask" if "list" in sent else "sent"
    if track.member is False or track.in_roster is False:
        return "left out" if "update" in sent else "lost"
    if closed:
        return "left out" if sent else "lost"
    if "update" in sent:
        return "unmask" if "list" in sent else "sent"
    if track.first_chunk:
        return "upload"
    if "state" in sent:
        return "sent"
    parts = {PARTS.get(stage) for stage in track.entered}
    if "keys" in sent or "train" in parts:
        return "waiting" if "waiting" in track.entered else "train"
    if "setup" in parts:
        return "setup"
    return "gate" if track.entered else "waiting"


def _sentence(track: Track, state: str, *, failed: bool) -> str:
    if track.refusal:
        return f"Its own checks refused this round: {track.refusal}"
    if track.fault:
        return track.fault
    if state == "lost":
        if "keys" not in track.sent:
            return "It did not answer the announcement in time. Nothing of it can be in the sum."
        return (
            "It stopped answering before its update was complete. It sent no whole update, so nothing of it can be in "
            "the sum."
        )
    if state == "left out" and failed:
        return "Its update came in, but the attempt failed before there was a sum: nothing was made of it."
    if state == "left out":
        return "It did not reach the list that the hospitals signed, so nothing of it is in the sum."
    return ""
