"""How long honest updates are under several training plans, without any clip: what the factors of the sketch rule rest on.

    python -m benchmarks.update_norms DATA [--rounds 10] [--seed 1] >> var/poisoning.jsonl

One JSON line a plan: {"kind": "norms", "plan", "norms": {silo: [L2 of its update, a round each]}, "ratios": {silo: [the
sketch's estimate over the median of all, some seeds of the sketch a round]}}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.six_silos import Federation
from demo.plan import demo_plan
from protocol.model_state import ModelState
from protocol.secure_aggregation.sketch import sketch
from silo_node.training.trainer import round_seed

PLACES = 20
SKETCHES = 20
SGD = {"name": "sgd", "lr": 0.02, "weight_decay": 0.0001}
PLANS: dict[str, dict[str, Any]] = {
    "Adam, three local epochs (the demo's)": {},
    "Adam, one local epoch": {"local_epochs": 1},
    "SGD, three local epochs": {"optimiser": SGD},
    "SGD, one local epoch": {"optimiser": SGD, "local_epochs": 1},
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Norms of honest updates under several plans.")
    parser.add_argument("data", type=Path, help="a folder with site_1 to site_4")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    federation = Federation(arguments.data, demo_plan())
    draw = np.random.default_rng(arguments.seed)
    for name, changes in PLANS.items():
        federation.use(demo_plan() | changes)
        state = federation.first(arguments.seed)
        norms: dict[str, list[float]] = {silo: [] for silo in federation.silos}
        ratios: dict[str, list[float]] = {silo: [] for silo in federation.silos}
        for number in range(1, arguments.rounds + 1):
            updates = {
                silo: federation.update(state, silo, round_seed(arguments.seed, "st-norms", number, silo))
                for silo in federation.silos
            }
            for silo, update in updates.items():
                norms[silo].append(round(float(np.linalg.norm(update)), 4))
            for _ in range(SKETCHES):
                seed = draw.bytes(32)
                found = {
                    silo: _length(sketch(seed, [(len(update), PLACES)], [_words(update)]))
                    for silo, update in updates.items()
                }
                middle = float(np.median(list(found.values())))
                for silo, length in found.items():
                    ratios[silo].append(round(length / middle, 3))
            mean = np.mean(list(updates.values()), axis=0, dtype=np.float32)
            state = ModelState(state.table, (state.vector + mean).astype("<f4"))
        print(json.dumps({"kind": "norms", "plan": name, "norms": norms, "ratios": ratios}), flush=True)


def _words(update: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.rint(update.astype(np.float64) * 2.0**PLACES).astype("<i4")


def _length(sums: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    return float(np.linalg.norm(sums.astype(np.float64)))


if __name__ == "__main__":
    main()
