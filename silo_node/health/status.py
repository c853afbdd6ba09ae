"""What `silo status` shows: what the running silo last wrote to FOLDER/status.json, and what lies in its folder."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from protocol.policy import describe_policy
from protocol.signing import fingerprint
from silo_node import certificates, key_history
from silo_node.config import Config
from silo_node.errors import DiskFull, SiloError
from silo_node.evidence.egress_log import totals_of
from silo_node.files import read_json, write_json
from silo_node.health.local_checks import Here
from silo_node.health.problems import what_to_do
from silo_node.keys import Keys
from silo_node.node import runs
from silo_node.pacs import state as pacs
from silo_node.pin import Pin
from silo_node.service import logs
from silo_node.steward import documents, pauses

PROBLEMS = 20
"""Of those about studies, the newest that are kept."""
PORTAL, WAY, HERE, SOURCES = "portal", "way", "here", "sources"
"""What a problem is about where it is no study: what the portal said, the way to it, this machine, and where the consents
and the images come from."""
AROUND = (PORTAL, WAY, HERE, SOURCES)
OF_THE_WAY = frozenset(
    {"CLOCK_SKEW", "PORTAL_UNREACHABLE", "PROXY_REFUSES", "PORTAL_CERTIFICATE", "ANSWER_NOT_GENUINE"}
)
"""What no request gets through, and what is over when one does."""
PASSING = OF_THE_WAY - {"PORTAL_CERTIFICATE"} | {"BROKER"}
"""Their sentences differ a little each time (a clock's time, a kind of error), and mean the same."""
EVERY = 1.0
"""Seconds between two writes that only note the time of the last contact."""
LOOKED_EVERY = 5.0
STALE = 20.0
"""Seconds without a look after which a silo that runs is said to hang."""
SETTLED = 3.0
"""Seconds for which a problem with the portal did not come again, and the portal answered, before it is over."""


def now_text() -> str:
    """RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Live:
    """The status of a running silo, kept on disk. Safe to use from several threads.

    Each problem says what it is about, and goes when that is well again: of a study with its next round, of the portal
    when it answers, of this machine when the next look finds nothing.
    """

    def __init__(self, config: Config) -> None:
        self._path = config.folder / "status.json"
        self._lock = threading.Lock()
        self._written = self._contact = 0.0
        self._problems: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._touched: dict[tuple[str, str, str], float] = {}
        self._value: dict[str, Any] = {
            "state": "starting",
            "pid": os.getpid(),
            "started": now_text(),
            "looked": now_text(),
            "last_contact": None,
            "round": None,
            "studies": [],
            "problems": [],
        }

    def update(self, **changes: Any) -> None:
        """Change members and write."""
        with self._lock:
            self._value.update(changes)
            self._write()

    def contact(self) -> None:
        """The portal answered just now."""
        with self._lock:
            self._contact = time.monotonic()
            self._value["last_contact"] = now_text()
            first = self._value["state"] == "connecting"
            if first:
                self._value["state"] = "idle"
            if first or time.monotonic() - self._written > EVERY:
                self._write()

    def studies(self, items: Iterable[Mapping[str, Any]]) -> None:
        """The studies that wait for this hospital, or are paused or completed."""
        found = [
            {name: item.get(name) for name in ("kind", "study", "title", "manifest", "state")}
            for item in items
            if item.get("kind") in ("study", "paused", "completed")
        ]
        with self._lock:
            if found != self._value["studies"]:
                self._value["studies"] = found
                self._write()

    def problem(self, code: str, sentence: str, *, about: str = PORTAL) -> bool:
        """Note a problem; one that is there already is counted. Returns whether it is a new one."""
        with self._lock:
            new = self._note(about, code, sentence)
            events = [key for key in self._problems if key[0] not in AROUND]
            self._drop(events[:-PROBLEMS])
            self._write()
            return new

    def now(self, about: str, found: Sequence[SiloError]) -> list[SiloError]:
        """All that is wrong with one thing now; what was wrong before and is not named is over. Returns the new ones."""
        with self._lock:
            new = [error for error in found if self._note(about, error.code, error.sentence)]
            named = {_key(about, error.code, error.sentence) for error in found}
            over = [key for key in self._problems if key[0] == about and key not in named]
            calm = time.monotonic() - SETTLED
            over += [
                key for key in self._problems if key[0] == PORTAL and self._touched[key] < min(self._contact, calm)
            ]
            self._drop(over)
            if about == HERE:
                self._value["looked"] = now_text()
            if new or over or time.monotonic() - self._written > LOOKED_EVERY:
                self._write()
            return new

    def over(self, about: str) -> None:
        """Nothing is wrong with it any more."""
        with self._lock:
            over = [key for key in self._problems if key[0] == about]
            self._drop(over)
            if over:
                self._write()

    def over_with_way(self) -> None:
        """The way to the portal was not open and is again: whatever found it closed meanwhile is over too."""
        with self._lock:
            self._drop([key for key in self._problems if key[0] == PORTAL and key[1] in OF_THE_WAY])
            self._write()

    def _note(self, about: str, code: str, sentence: str) -> bool:
        key, at = _key(about, code, sentence), now_text()
        self._touched[key] = time.monotonic()
        before = self._problems.get(key)
        if before is not None:
            before.update(time=at, sentence=sentence, times=before["times"] + 1)
            return False
        self._problems[key] = as_problem(code, sentence, about=about, at=at)
        return True

    def _drop(self, keys: Iterable[tuple[str, str, str]]) -> None:
        for key in keys:
            del self._problems[key], self._touched[key]

    def _write(self) -> None:
        self._written = time.monotonic()
        self._value["problems"] = list(self._problems.values())
        try:
            write_json(self._path, self._value, sync=False)
        except DiskFull as error:
            # A status that nobody can read must not end the work; the next one is written when there is room.
            logs.get().error("status.not_written", code=error.code)


def as_problem(code: str, sentence: str, *, about: str, at: str | None = None) -> dict[str, Any]:
    """A problem as status.json has it. about: a study, or PORTAL, WAY, HERE. since, time: when it was first and last seen."""
    at = at or now_text()
    return {
        "code": code,
        "sentence": sentence,
        "do": what_to_do(code),
        "about": about,
        "since": at,
        "time": at,
        "times": 1,
    }


def _key(about: str, code: str, sentence: str) -> tuple[str, str, str]:
    return about, code, "" if code in PASSING else sentence


def report(config: Config) -> dict[str, Any]:
    """Everything, as plain values. Nothing is written for it, so that a full disk or a read-only drive hides nothing."""
    live = read_json(config.folder / "status.json") or {"state": "never started", "problems": []}
    running = runs(config.folder)
    # What a silo that ended said about its surroundings is old; what it said about studies still stands.
    problems = [each for each in live.get("problems", []) if running or each.get("about") not in AROUND]
    if not running and live["state"] not in ("stopped", "never started"):
        live["state"] = "not running"
        problems.append(
            as_problem("NOT_RUNNING", "The silo is not running: it ended without being told to.", about=HERE)
        )
    if running and _age(live.get("looked")) > STALE:
        sentence = f"The running silo has not looked round for more than {STALE:.0f} seconds."
        problems.append(as_problem("STATUS_STALE", sentence, about=HERE))
    problems += [as_problem(error.code, error.sentence, about=HERE) for error in Here()(config)]
    try:
        sent = totals_of(config.folder / "egress.db")
    except SiloError as error:
        sent = {}
        problems.append(as_problem(error.code, error.sentence, about=HERE))
    value: dict[str, Any] = {
        "silo": config.name,
        "portal": config.portal,
        "fingerprint": _fingerprint(config),
        "key": None,
        "running": running,
        **{name: live.get(name) for name in ("state", "pid", "started", "last_contact", "round")},
        "studies": live.get("studies", []),
        "enrolled": None,
        "rounds": rounds(config),
        "sent": sent,
        "bytes_up": sum(each["bytes_up"] for each in sent.values()),
        "policy": None,
        "approvals": [],
        "paused": [],
        "reminders": _certificates(config),
        "pacs": None,
    }
    parts = {
        "key": _key_age,
        "enrolled": _enrolled,
        "policy": _policy,
        "approvals": _approvals,
        "paused": _paused,
        "reminders": _reminders,
        "pacs": pacs.report,
    }
    for name, read in parts.items():
        try:
            value[name] = read(config)
        except SiloError as error:
            problems.append(as_problem(error.code, error.sentence, about=HERE))
        except (OSError, sqlite3.Error) as error:
            said = getattr(error, "strerror", None) or getattr(error, "sqlite_errorname", None) or type(error).__name__
            sentence = f"What `silo status` says about {name} can't be read in {config.folder}: {said}."
            problems.append(as_problem("FILE_UNREADABLE", sentence, about=HERE))
    problems += [
        as_problem(each["code"], each["sentence"], about=HERE, at=each["time"]) for each in pacs.problems(value["pacs"])
    ]
    # The running silo's own comes first: it knows since when.
    value["problems"] = list({_key("", each["code"], each["sentence"]): each for each in reversed(problems)}.values())[
        ::-1
    ]
    return value


def _age(at: str | None) -> float:
    """Seconds since a time that this module wrote; 0 where there is none (a status of an older version)."""
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() if at else 0.0


def rounds(config: Config) -> dict[str, Any]:
    """How many rounds ended how, and the last ones."""
    try:
        lines = [json.loads(line) for line in config.rounds.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        lines = []
    outcomes: dict[str, int] = {}
    for line in lines:
        outcomes[line["outcome"]] = outcomes.get(line["outcome"], 0) + 1
    return {"total": len(lines), "outcomes": outcomes, "last": lines[-5:]}


def _fingerprint(config: Config) -> str | None:
    try:
        return fingerprint(Keys(config).silo.public)
    except SiloError:
        return None  # the keys are missing or damaged: every other command says so


def _key_age(config: Config) -> dict[str, Any] | None:
    if not (config.keys / "silo.key").exists():
        return None
    found = key_history.age(config)
    return {"since": found.since.isoformat(), "days": found.days, "old": found.old}


def _enrolled(config: Config) -> dict[str, str]:
    pin = Pin.load(config)
    return {"portal": pin.portal_name, "organisation": pin.organisation, "portal_fingerprint": pin.fingerprint}


def _policy(config: Config) -> dict[str, Any]:
    trust = documents.load_trust(config)
    envelope, policy = documents.load_policy(config, trust, now=datetime.now(UTC))
    return {"digest": envelope.digest, "version": policy.version, "words": describe_policy(policy)}


def _paused(config: Config) -> list[dict[str, str]]:
    return [{"study": each.study, "code": each.code, "sentence": each.sentence} for each in pauses.every(config)]


def _reminders(config: Config) -> list[dict[str, str]]:
    from silo_node.steward import decisions

    return _certificates(config) + decisions.reminders(config)


def _certificates(config: Config) -> list[dict[str, str]]:
    """The page's and the receiver's, where they end soon; what else is wrong with them is a problem of its own."""
    from silo_node.steward import decisions

    page, receiver, now = config.settings.page, config.settings.receiver, datetime.now(UTC)
    remedy, found = "put the renewed one and its key in its place, without a restart", []
    for what, name in (
        ("the certificate of the node's page", "" if page.off else page.tls_cert),
        ("the receiver's certificate", receiver.tls_cert if receiver else ""),
    ):
        ends = certificates.end_of(config.folder / name) if name else None
        if ends is not None and ends - now < decisions.REMIND:
            found.append(decisions.reminder(what, ends, now, remedy))
    return found


def _approvals(config: Config) -> list[dict[str, Any]]:
    found = []
    try:
        trust = documents.load_trust(config)
    except SiloError:
        trust = None  # the policy's reading says what is wrong with it
    for study in sorted(path.name for path in config.approvals.iterdir()) if config.approvals.is_dir() else []:
        for envelope in documents.load_approvals(config, study):
            found.append({"study": study, "digest": envelope.digest, **documents.summary(envelope, trust)})
    return found
