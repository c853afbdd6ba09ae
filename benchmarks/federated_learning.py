"""Plain federated averaging in one process, on a folder of hospitals: what a plan learns, and what a round costs.

    python -m benchmarks.federated_learning DATA [--rounds 25] [--seed 1] [--plan FILE.json]

DATA has one sub-folder a hospital with a labels.csv. No masks, no network: the limit against which `make demo` stands.
Prints one JSON line a round: {"round", "auc": {name: x or null}, "mean", "seconds": {name: s}, "norm": {name: L2 of the
update}}. `mean` is over the hospitals with both classes; AUC is of the model before that round's training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from demo.plan import demo_plan
from protocol.initial_model import initial_state
from protocol.model_state import ModelState
from silo_node.imaging import cohort, index, labels
from silo_node.training import trainer


def cohorts(data: Path, work: Path) -> dict[str, cohort.Cohort]:
    """Each hospital's cohort, by folder name; every modality that it has takes part."""
    found = {}
    for folder in sorted(path.parent for path in data.glob("*/labels.csv")):
        listed = labels.load(folder / "labels.csv")
        report = index.scan(folder, work / f"{folder.name}.db", labels=listed)
        study = SimpleNamespace(cohort=SimpleNamespace(modalities=tuple(report.modalities), min_patients=1))
        found[folder.name] = cohort.build(study, work / f"{folder.name}.db", listed, None)
    return found


def simulate(data: Path, plan: dict[str, Any], *, rounds: int, seed: int, work: Path) -> ModelState:
    """Run and print; the last line is an evaluation of the final model."""
    hospitals = cohorts(data, work)
    state = initial_state(trainer.build_table(plan), plan["initial"]["seed"])
    for number in range(1, rounds + 2):
        results = {
            name: trainer.run(
                plan,
                state,
                its_cohort,
                folder=work / "cache" / name,
                purpose="train" if number <= rounds else "evaluate",
                seed=trainer.round_seed(seed, "st-simulation", number, name),
            )
            for name, its_cohort in hospitals.items()
        }
        scores = [result.auc for result in results.values() if result.auc is not None]
        print(
            json.dumps(
                {
                    "round": number - 1,
                    "auc": {name: result.auc and round(result.auc, 4) for name, result in results.items()},
                    "mean": round(float(np.mean(scores)), 4) if scores else None,
                    "seconds": {
                        name: round(result.train_seconds + result.evaluate_seconds, 2)
                        for name, result in results.items()
                    },
                    "norm": {name: round(float(np.linalg.norm(result.update)), 3) for name, result in results.items()},
                }
            ),
            flush=True,
        )
        mean = np.mean([result.update for result in results.values()], axis=0, dtype=np.float32)
        rate = np.float32(plan["strategy"]["server_lr"])
        state = ModelState(state.table, (state.vector + rate * mean).astype("<f4"))
    return state


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Plain federated averaging on a folder of hospitals.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plan", type=Path, help="a plan as JSON instead of the demo's")
    arguments = parser.parse_args()
    plan = json.loads(arguments.plan.read_text()) if arguments.plan else demo_plan(seed=arguments.seed)
    with tempfile.TemporaryDirectory() as work:
        simulate(arguments.data, plan, rounds=arguments.rounds, seed=arguments.seed, work=Path(work))


if __name__ == "__main__":
    main()
