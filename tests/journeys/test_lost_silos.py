"""A silo that vanishes does not stop a round, and nothing wrong is summed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from demo.network import Network
from protocol.initial_model import initial_state
from protocol.model_state import ModelState
from silo_node.training.constant import STEP
from tests.journeys.conftest import run_constant

pytestmark = pytest.mark.timeout(240)
WEIGHTS = 20_000


def training_processes(network: Network, name: str) -> list[psutil.Process]:
    """The processes of a silo's training worker: its parent and its one child."""
    hospital = next(each for each in network.hospitals if each.name == name)
    assert hospital.process is not None
    end = time.monotonic() + 30
    while True:
        below = psutil.Process(hospital.process.pid).children(recursive=True)
        found = [process for process in below if "training" in " ".join(process.cmdline())]
        if len(found) == 2:
            return found
        assert time.monotonic() < end, [process.cmdline() for process in below]
        time.sleep(0.05)  # a silo is ready for rounds before its worker has begun


def test_round_ends_with_the_exact_sum_of_the_others(network_of: Callable[..., Network]) -> None:
    """One silo is killed (kill -9) after `ready`, in round 1; it is still dead, so lost from the start, in round 2."""
    network = network_of(hospitals=4)
    network.start()
    victim = network.hospitals[-1]
    for process in training_processes(network, victim.name):
        os.kill(
            process.pid, signal.SIGSTOP
        )  # its training never ends, so it is certainly in the stage before its upload

    names = [hospital.name for hospital in network.hospitals]
    study = run_constant(network, WEIGHTS, 2, title="Drop-outs", summary="A silo vanishes.")

    def masks_are_fixed(report: dict[str, Any]) -> bool:
        return any(row["number"] == 1 and row["stage"] == "update" for row in report["rounds"])

    network.wait_for(study, masks_are_fixed, seconds=90)
    stopped = training_processes(network, victim.name)
    assert victim.process is not None
    victim.process.kill()
    victim.process = None
    for process in stopped:
        if process.is_running():
            process.kill()

    report = network.wait_for(study, lambda found: found["state"] == "completed", seconds=150)
    trained = [row for row in report["rounds"] if row["purpose"] == "train" and row["stage"] == "finished"]
    assert [row["number"] for row in trained] == [1, 2]
    assert [row["members"] for row in trained] == [names[:-1], names[:-1]]

    path = next((network.portal.home / "models").rglob(report["model"].removeprefix("sha256:") + "*"))
    last = ModelState.from_bytes(path.read_bytes())
    first = initial_state(last.table, 1)
    # The mean of three times the same constant, exactly: one word of a fourth mask or update in the sum would show.
    expected = (first.vector + STEP) + STEP
    assert np.array_equal(last.vector, expected)


def test_refusal_after_revocation_is_shown_in_words(network_of: Callable[..., Network]) -> None:
    """A steward revokes between rounds: from then on the silo refuses, and the study's page says why."""
    network = network_of(hospitals=4)
    network.start()
    study = run_constant(network, WEIGHTS, 150, title="Revocation", summary="A steward changes her mind.")
    network.wait_for(study, lambda report: any(row["stage"] == "finished" for row in report["rounds"]), seconds=90)
    leaver = network.hospitals[0]
    leaver.silo(
        *("approve", str(leaver.folder), study, "--passphrase-file", str(leaver.passphrase_file), "--yes"),
        *("--revoke", "--reason", "The ethics committee asked for a pause."),
    )

    def goes_on_without(report: dict[str, Any]) -> bool:
        finished = [row for row in report["rounds"] if row["stage"] == "finished" and row["purpose"] == "train"]
        return bool(finished) and leaver.name not in finished[-1]["members"]

    network.wait_for(study, goes_on_without, seconds=60)
    page = network.person("researcher").get(f"/studies/{study}/hospitals/").text
    assert "withdrawn" in page
    assert "The ethics committee asked for a pause." in page
