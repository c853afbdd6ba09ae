"""A silo in a temporary folder, made and enrolled with the same functions that the commands use, and its small portal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.secure_aggregation.sketch import LEAST_WORDS
from silo_node.config import Config
from silo_node.keys import Keys
from silo_node.node import Node
from silo_node.pin import Pin
from silo_node.steward import approvals
from tests.silo_node.portal_double import TOKEN, PortalDouble

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = b"correct horse battery staple"
POLICY: dict[str, Any] = {
    "schema": "consilium/policy/1",
    "permission": "DUO:0000042",
    "modifiers": [],
    "diseases": [],
    "limits": {},
    "legal_basis": "Section 6 GDNG",
    "consent_default": "opt-out",
    "share_metrics": False,
    "partners": {"keys": {}, "min_known": 0},
}


class SiloUnderTest:
    """A silo's folder and what a test does with it."""

    def __init__(self, folder: Path, portal: PortalDouble) -> None:
        self.folder, self.portal = folder, portal
        self.processes: list[subprocess.Popen[bytes]] = []
        self.closing = contextlib.ExitStack()
        data = folder.parent / "data"
        data.mkdir(exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        self.settings(f'name = "{portal.silo}"\nportal = "{portal.address}"\ndata = "{data}"\n')

    def settings(self, text: str, limits: str = "poll = 5\nretry = 5\nfree_mb = 0\n", training: str = "") -> None:
        (self.folder / "silo.toml").write_text(
            f"{text}[training]\nallow_constant = true\n{training}\n[page]\noff = true\n\n[limits]\n{limits}"
        )

    @property
    def config(self) -> Config:
        return Config.load(self.folder, {})

    def node(self) -> Node:
        return Node(self.config, Pin.load(self.config))

    def enrol(self) -> None:
        config = self.config
        Keys.create(config)
        approvals.make_steward(config, person="Dr. Steward", passphrase=PASSPHRASE)
        node = Node(config, None)
        Pin.from_answer(approvals.enrol(node, TOKEN)).save(config)
        node.close()

    def policy(self, **changes: Any) -> None:
        node = self.node()
        envelope, _ = approvals.sign_policy(node, {**POLICY, **changes}, passphrase=PASSPHRASE)
        approvals.send_policy(node, envelope)
        node.close()

    def decide(self, decision: approvals.Decision = "approve", reason: str = "", **limits: Any) -> None:
        node = self.node()
        proposal = approvals.fetch(node, self.portal.manifest.study)
        envelope = approvals.decide(node, proposal, decision, passphrase=PASSPHRASE, reason=reason, **limits)
        approvals.send(node, self.portal.manifest.study, envelope)
        node.close()

    def command(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run `silo ...` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "silo_node.cli", *arguments],
            cwd=ROOT,
            env={**os.environ, "SILO_HOME": str(self.folder), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
            **more,
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """`silo run` in the background. command: another module that runs it, with its arguments."""
        log = (self.folder / "run.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", *(command or ("silo_node.cli", "run", str(self.folder)))],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        log.close()
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """kill -9 of the newest `silo run`."""
        self.processes[-1].send_signal(signal.SIGKILL)
        self.processes[-1].wait()

    def train_once(self) -> None:
        """Start, and let the first model be made; then the first training round begins, and nothing after it."""
        self.portal.holding = True
        self.start()
        self.portal.begin()
        self.portal.wait(lambda: self.portal.finished(0))
        self.portal.go_on(hold=True)

    def dies_at(self, step: str, number: int = 1, *, arrives: bool = True) -> Callable[[], bool]:
        """kill -9, once, where it sends this in a round (or fetches the `sum`), before it hears the answer.

        arrives: whether the portal takes the message.
        Returns: what tells whether that has happened.
        """
        method = "GET" if step == "sum" else "PUT" if "/" in step else "POST"
        last = (method, f"/api/v1/rounds/{self.portal.manifest.study}.{number}.1/{step}")
        killed = threading.Event()

        def fault(*request: str) -> int | None:
            if request != last or killed.is_set():
                return None
            self.kill()
            killed.set()
            return None if arrives else 0

        self.portal.fault = fault
        return killed.is_set

    def dies_and_goes_on(self, step: str, number: int = 1) -> None:
        """It dies there and is started again: round 1 ends well, and nothing left it twice with other bytes."""
        dead, sent = self.dies_at(step, number), dict[str, str]()
        self.train_once()
        self.until(dead)
        self.start()
        self.portal.wait(lambda: self.portal.finished(1))
        assert self.portal.refused() == []
        for request in self.portal.received:
            path = request.path
            if request.method == "POST" and "/rounds/" in path and not path.endswith(("/heartbeat", "/metrics")):
                payload = json.loads(request.body)["payload"]
                assert sent.setdefault(path, payload) == payload, f"{path} left twice, with other bytes"

    def status(self) -> dict[str, Any]:
        done = self.command("status", str(self.folder), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def until(self, ready: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait for something on this silo's disk; there is no event for it, so it is looked at often."""
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < end, (self.folder / "run.log").read_text() if self.processes else "not in time"
            time.sleep(0.02)
        return found

    def close(self) -> None:
        self.closing.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def portal() -> Iterator[PortalDouble]:
    double = PortalDouble()
    yield double
    double.close()


@pytest.fixture
def silo(tmp_path: Path, portal: PortalDouble) -> Iterator[SiloUnderTest]:
    """Enrolled, with a policy that permits general research; no study yet."""
    under_test = SiloUnderTest(tmp_path / "silo", portal)
    under_test.enrol()
    under_test.policy()
    yield under_test
    under_test.close()


@pytest.fixture
def ready(silo: SiloUnderTest, portal: PortalDouble) -> SiloUnderTest:
    """With a study that the steward has approved."""
    portal.make_study()
    silo.decide()
    return silo


@pytest.fixture
def sketched(silo: SiloUnderTest, portal: PortalDouble) -> SiloUnderTest:
    """As `ready`, with the sketch check; the partners' updates are about as long as the silo's own (2^6 a word)."""
    portal.partner_word = 1 << 6
    portal.parameters_count = LEAST_WORDS
    portal.make_study(aggregation={"sketch": True})
    silo.decide()
    return silo
