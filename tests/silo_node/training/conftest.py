"""Drawn hospitals and small plans, made once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demo import synthetic
from silo_node.consent.opt_out import OptOut
from silo_node.imaging import cohort, index, labels
from tests.silo_node.opened_files import watched  # noqa: F401

SMALL: dict[str, Any] = {
    "network": {
        "name": "Classifier",
        "args": {
            "channels": [8, 16],
            "strides": [2, 2],
            "num_res_units": 1,
            "act": "relu",
            "norm": ["group", {"num_groups": 4}],
        },
    },
    "input": {"size": [24, 24], "channels": 1, "window": "full"},
    "transforms": [{"name": "RandFlip", "args": {"prob": 0.5, "spatial_axis": 1}}],
    "task": "binary",
    "loss": "bce_logit_adjusted",
    "optimiser": {"name": "adam", "lr": 0.005, "weight_decay": 0.0},
    "batch": 16,
    "local_epochs": 1,
    "strategy": {"name": "fedavg", "server_lr": 1.0},
    "personalisation": "none",
    "frozen": [],
    "stopping": {"max_rounds": 3, "patience": None, "min_delta": 0.0, "worse_by": None},
    "evaluation": {"bins": 64},
    "initial": {"kind": "seed", "seed": 1},
}


@pytest.fixture
def plan() -> dict[str, Any]:
    """A plan that learns in a second; each test its own copy."""
    return copy.deepcopy(SMALL)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn hospitals of 40 pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    synthetic.write(folder, hospitals=2, images=40, seed=3)
    return folder


@pytest.fixture
def cohort_of(drawn: Path, tmp_path: Path) -> Callable[..., cohort.Cohort]:
    """The cohort of one drawn hospital; `opted_out` patients by number."""

    def make(site: str = "site_1", opted_out: tuple[str, ...] = (), data: Path = drawn) -> cohort.Cohort:
        listed = labels.load(data / site / "labels.csv")
        out = OptOut(frozenset(opted_out), "sha256:" + "0" * 64, datetime.now(UTC))
        index.scan(data / site, tmp_path / f"{site}.db", labels=listed, opt_out=out)
        study = SimpleNamespace(cohort=SimpleNamespace(modalities=("CR", "DX"), min_patients=5))
        return cohort.build(study, tmp_path / f"{site}.db", listed, out)

    return make
