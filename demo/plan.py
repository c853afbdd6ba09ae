"""The demo's training plan: one for any organ and modality, small enough for two cores.

A residual network of MONAI (Classifier) with group normalisation, about 32,000 weights at 64 x 64 pixels; three local
epochs with logit adjustment and equal weights. Measured on real chest images by `python -m benchmarks.federated_learning`.
"""

from __future__ import annotations

from typing import Any


def demo_plan(
    *,
    max_rounds: int = 25,
    patience: int | None = None,
    min_delta: float = 0.0,
    seed: int = 1,
    local_epochs: int = 3,
    bins: int = 256,
) -> dict[str, Any]:
    """The manifest's `plan`, as plain values. `seed` draws the first model (0 to 2^53 - 1)."""
    return {
        "network": {
            "name": "Classifier",
            "args": {
                "channels": [8, 16, 32, 32],
                "strides": [2, 2, 2, 2],
                "num_res_units": 1,
                "act": "relu",
                "norm": ["group", {"num_groups": 4}],
            },
        },
        "input": {"size": [64, 64], "channels": 1, "window": "full"},
        # Small turns, shifts, zooms and contrasts. No mirror: organs have sides.
        "transforms": [
            {
                "name": "RandAffine",
                "args": {
                    "prob": 0.5,
                    "rotate_range": 0.15,
                    "translate_range": [4.0, 4.0],
                    "scale_range": [0.1, 0.1],
                    "padding_mode": "border",
                },
            },
            {"name": "RandAdjustContrast", "args": {"prob": 0.5, "gamma": [0.7, 1.5]}},
        ],
        "task": "binary",
        "loss": "bce_logit_adjusted",
        "optimiser": {"name": "adam", "lr": 0.002, "weight_decay": 0.0001},
        "batch": 32,
        "local_epochs": local_epochs,
        "strategy": {"name": "fedavg", "server_lr": 1.0},
        "personalisation": "none",
        "frozen": [],
        "stopping": {"max_rounds": max_rounds, "patience": patience, "min_delta": min_delta, "worse_by": None},
        "evaluation": {"bins": bins},
        "initial": {"kind": "seed", "seed": seed},
    }
