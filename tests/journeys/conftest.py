"""Journeys start a whole network of real processes; each test says which promise of the whole system it keeps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.round_overhead import constant_plan
from demo import synthetic
from demo.network import Network
from demo.settings import silo_name
from demo.study import draft

NetworkMaker = Callable[..., Network]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living processes that belong to a network in `folder`: it stands in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
def network_of(tmp_path: Path) -> Iterator[NetworkMaker]:
    """Makes a network of silos whose training adds a constant (no torch), with a few drawn pictures each."""
    made: list[Network] = []

    def make(hospitals: int = 4, **options: Any) -> Network:
        folders = synthetic.write(tmp_path / "data", hospitals=hospitals, images=12)
        options.setdefault("networks", ("constant",))
        options["silo_env"] = {"SILO_TRAINING_ALLOW_CONSTANT": "1", **options.get("silo_env", {})}
        network = Network(tmp_path / "network", {silo_name(path.name): path for path in folders}, **options)
        made.append(network)
        return network

    yield make
    for network in made:
        network.stop()
    assert processes_of(tmp_path / "network") == []


def run_constant(network: Network, weights: int, rounds: int, *, title: str, summary: str) -> str:
    """A study of all the network's hospitals that trains the constant network; its id, once it is approved everywhere."""
    return network.run_study(
        draft(
            silos=[hospital.name for hospital in network.hospitals],
            plan=constant_plan(weights, rounds),
            modalities=["CR", "DX"],
            countries=[],
            title=title,
            summary=summary,
            min_patients=2,
        )
    )
