"""What `silo status` shows: what the running silo last wrote to FOLDER/status.json, and what lies in its folder."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from protocol.policy import describe_policy
from protocol.signing import fingerprint
from silo_node import documents, logs, pauses
from silo_node.config import Config
from silo_node.egress_log import EgressLog
from silo_node.errors import AlreadyRunning, DiskFull, SiloError
from silo_node.files import read_json, write_json
from silo_node.keys import Keys
from silo_node.node import FolderLock
from silo_node.pacs import state as pacs
from silo_node.pin import Pin

PROBLEMS = 20
PASSING = ("CLOCK_SKEW", "PORTAL_UNREACHABLE", "ANSWER_NOT_GENUINE")
"""Their sentences differ a little each time (a clock's time, a kind of error), and mean the same."""
EVERY = 1.0
"""Seconds between two writes that only note the time of the last contact."""


def now_text() -> str:
    """RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Live:
    """The status of a running silo, kept on disk."""

    def __init__(self, config: Config) -> None:
        self._path = config.folder / "status.json"
        self._lock = threading.Lock()
        self._written = 0.0
        self._problems: deque[dict[str, Any]] = deque(maxlen=PROBLEMS)
        self._value: dict[str, Any] = {
            "state": "starting",
            "pid": os.getpid(),
            "started": now_text(),
            "last_contact": None,
            "round": None,
            "studies": [],
        }

    def update(self, **changes: Any) -> None:
        """Change members and write."""
        with self._lock:
            self._value.update(changes)
            self._write()

    def contact(self) -> None:
        """The portal answered just now."""
        with self._lock:
            self._value["last_contact"] = now_text()
            if self._value["state"] == "connecting":
                self._value["state"] = "idle"
            if time.monotonic() - self._written > EVERY:
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

    def problem(self, code: str, sentence: str) -> bool:
        """Note a problem; the same one in a row is counted, not listed again. Returns whether it is a new one."""
        with self._lock:
            last = self._problems[-1] if self._problems else None
            if last is None or last["code"] != code or (last["sentence"] != sentence and code not in PASSING):
                new = True
                self._problems.append({"time": now_text(), "code": code, "sentence": sentence, "times": 1})
            else:
                new = False
                last.update(time=now_text(), sentence=sentence, times=last["times"] + 1)
            self._value["problems"] = list(self._problems)
            self._write()
            return new

    def _write(self) -> None:
        self._written = time.monotonic()
        try:
            write_json(self._path, self._value, sync=False)
        except DiskFull as error:
            # A status that nobody can read must not end the work; the next one is written when there is room.
            logs.get().error("status.not_written", code=error.code)


def report(config: Config) -> dict[str, Any]:
    """Everything, as plain values."""
    live = read_json(config.folder / "status.json") or {"state": "never started", "problems": []}
    running = _running(config)
    if not running and live["state"] not in ("stopped", "never started"):
        live["state"] = "not running"
    problems = list(live.get("problems", []))
    log = EgressLog(config.folder / "egress.db")
    try:
        sent = log.totals()
    finally:
        log.close()
    value: dict[str, Any] = {
        "silo": config.name,
        "portal": config.portal,
        "fingerprint": _fingerprint(config),
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
        "pacs": None,
    }
    for name, read in (
        ("enrolled", _enrolled),
        ("policy", _policy),
        ("approvals", _approvals),
        ("paused", _paused),
        ("pacs", pacs.report),
    ):
        try:
            value[name] = read(config)
        except SiloError as error:
            problems.append({"time": now_text(), "code": error.code, "sentence": error.sentence, "times": 1})
    value["problems"] = problems + pacs.problems(value["pacs"])
    return value


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


def _running(config: Config) -> bool:
    if not (config.folder / "silo.lock").exists():
        return False
    try:
        FolderLock(config.folder, mark=False).release()
    except AlreadyRunning:
        return True
    return False


def _enrolled(config: Config) -> dict[str, str]:
    pin = Pin.load(config)
    return {"portal": pin.portal_name, "organisation": pin.organisation, "portal_fingerprint": pin.fingerprint}


def _policy(config: Config) -> dict[str, Any]:
    trust = documents.load_trust(config)
    envelope, policy = documents.load_policy(config, trust, now=datetime.now(UTC))
    return {"digest": envelope.digest, "version": policy.version, "words": describe_policy(policy)}


def _paused(config: Config) -> list[dict[str, str]]:
    return [{"study": each.study, "code": each.code, "sentence": each.sentence} for each in pauses.every(config)]


def _approvals(config: Config) -> list[dict[str, Any]]:
    found = []
    for study in sorted(path.name for path in config.approvals.iterdir()) if config.approvals.is_dir() else []:
        for envelope in documents.load_approvals(config, study):
            found.append({"study": study, "digest": envelope.digest, **documents.summary(envelope)})
    return found
