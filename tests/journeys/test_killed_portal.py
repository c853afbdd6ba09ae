"""The portal's processes are killed (kill -9) at every stage of a round: each round goes on from the database, exactly."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from demo.network import Network
from demo.processes import Process
from protocol.initial_model import initial_state
from protocol.model_state import ModelState
from silo_node.training.constant import STEP
from tests.journeys.conftest import run_constant

pytestmark = pytest.mark.timeout(300)
STAGES = ("keys", "bundles", "ready", "update", "list", "sketch", "second", "unmask", "nonce", "check", "state")
ROUNDS = 30


def stage_of(network: Network) -> tuple[int, str]:
    """(number, stage) of the newest round, read from the database itself: it needs no process of the portal."""
    (path,) = network.portal.home.glob("*.sqlite3")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        found = database.execute("SELECT number, stage FROM federation_round WHERE newest ORDER BY id DESC").fetchone()
    return found or (0, "")


def kill_session(process: Process | None) -> None:
    """SIGKILL to the process and all that it started."""
    assert process is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def test_portal_killed_at_every_stage_goes_on_from_its_database(network_of: Callable[..., Network]) -> None:
    network = network_of(hospitals=4)
    network.start()
    study = run_constant(network, 20_000, ROUNDS, title="Killed portal", summary="The portal dies again and again.")
    portal, missed = network.portal, set(STAGES)
    until = time.monotonic() + 150
    while missed and time.monotonic() < until:
        number, stage = stage_of(network)
        if number == 0 or stage not in missed:
            time.sleep(0.002)
            continue
        if number >= ROUNDS:
            break
        # Web server and worker at once: nothing of the portal is left but its database, its files and the broker.
        kill_session(portal.web)
        kill_session(portal.worker)
        missed.discard(stage_of(network)[1])  # where it stood when it died
        portal.start_web()
        portal.start_worker()
        portal.wait_web()
    # A stage that lasts a few milliseconds may slip through; most must not.
    assert len(missed) <= 3, missed
    report = network.wait_for(study, lambda found: found["state"] == "completed", seconds=120)
    trained = [row for row in report["rounds"] if row["purpose"] == "train" and row["stage"] == "finished"]
    assert [row["number"] for row in trained] == list(range(1, ROUNDS + 1))
    path = next((portal.home / "models").rglob(report["model"].removeprefix("sha256:") + "*"))
    last = ModelState.from_bytes(path.read_bytes())
    expected = initial_state(last.table, 1).vector
    for _ in range(ROUNDS):
        expected = expected + STEP
    assert np.array_equal(last.vector, expected)
