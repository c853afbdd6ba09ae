"""Drafts to start from: common tasks with settings that are known to work, for the page "new study".

A template is the part of a manifest that a researcher may change; title, hospitals and dates come from the form.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

_GROUP_NORM: list[Any] = ["group", {"num_groups": 4}]
_BASE: dict[str, Any] = {
    "purpose": {
        "kind": "hmb",
        "diseases": [],
        "methods": False,
        "commercial": False,
        "all_non_profit": True,
        "genetic": False,
        "ethics": None,
        "countries": [],
        "accepts": [],
    },
    "cohort": {"modalities": ["CR", "DX"], "min_patients": 20},
    "plan": {
        "network": {
            "name": "DenseNet",
            "args": {
                "init_features": 16,
                "growth_rate": 8,
                "block_config": [2, 4, 4],
                "bn_size": 2,
                "norm": _GROUP_NORM,
            },
        },
        "input": {"size": [64, 64], "channels": 1, "window": "full"},
        "transforms": [
            {"name": "RandFlip", "args": {"prob": 0.5, "spatial_axis": 1}},
            {"name": "RandRotate", "args": {"range_x": 0.15, "prob": 0.5}},
            {"name": "RandZoom", "args": {"prob": 0.5, "min_zoom": 0.9, "max_zoom": 1.1}},
        ],
        "task": "binary",
        "loss": "bce_logit_adjusted",
        "optimiser": {"name": "adam", "lr": 0.001, "weight_decay": 0.0001},
        "batch": 32,
        "local_epochs": 2,
        "strategy": {"name": "fedavg", "server_lr": 1.0},
        "personalisation": "none",
        "frozen": [],
        "stopping": {"max_rounds": 40, "patience": 10, "min_delta": 0.002, "worse_by": 0.03},
        "evaluation": {"bins": 256},
        "initial": {"kind": "seed", "seed": 20261123},
    },
    "aggregation": {
        "protocol": "consilium-secagg/1",
        "min_roster": 3,
        "min_participants": 3,
        "word_bits": 32,
        "fraction_bits": 20,
        "clip_norm": 2.0,
        "error_feedback": False,
        "sketch": True,
        "check_words": "required",
        "sparse_from": 64,
        "drawn": None,
    },
    "privacy": {"mode": "none"},
    "limits": {"round_seconds": 600, "unmask_seconds": 86400},
}


@dataclass(frozen=True)
class StudyTemplate:
    """`key`: its name in the address. `title`, `says`: for the page. `changes`: dotted path -> value in the base."""

    key: str
    title: str
    says: str
    changes: Mapping[str, Any]

    def draft(self) -> dict[str, Any]:
        """A fresh draft, without hospitals and dates."""
        draft = deepcopy(_BASE)
        for path, value in self.changes.items():
            *parents, last = path.split(".")
            target = draft
            for step in parents:
                target = target[step]
            target[last] = deepcopy(value)
        return {"title": "", "summary": "", "participants": [], **draft}


TEMPLATES = (
    StudyTemplate(
        "chest",
        "One finding on chest X-rays",
        "A small network that says yes or no for one finding, such as pneumonia. Up to 40 rounds; two passes over the local "
        "images a round. About a second of training for 1,000 images on one processor core.",
        {},
    ),
    StudyTemplate(
        "trial",
        "A short trial run",
        "The same task with at most five rounds, to see that every hospital's data, policy and node work before a real study.",
        {
            "plan.stopping": {"max_rounds": 5, "patience": None, "min_delta": 0.0, "worse_by": None},
            "plan.local_epochs": 1,
        },
    ),
    StudyTemplate(
        "fine",
        "Fine detail at 128 pixels",
        "Twice the resolution and a deeper network, for findings that small pictures hide. About six times the work of the "
        "first template.",
        {
            "plan.input.size": [128, 128],
            "plan.network.args.block_config": [4, 6, 8],
            "plan.batch": 16,
            "limits.round_seconds": 3600,
        },
    ),
)


def template(key: str) -> StudyTemplate | None:
    """The template called `key`, or None."""
    return next((each for each in TEMPLATES if each.key == key), None)
