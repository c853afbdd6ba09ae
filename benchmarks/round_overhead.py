"""What a round costs apart from training: a real portal and four real silos whose "training" adds a constant.

    python -m benchmarks.round_overhead --json [--sizes 32000,1000000,7000000] [--rounds 10] [--silos 4]

One JSON line a case:
    d                               weights in the model
    seconds_median, seconds_max     round time minus the slowest silo's training and evaluation
    cpu_seconds                     of all processes of portal and silos together, a round
    bytes_up_per_weight             sent by one silo in a round, over d; bytes_down_per_weight likewise received
    portal_peak_rss_mb              the largest resident set that any process of the portal ever had
    command_to_first_round_seconds  from this case's start (nothing running) to the announcement of the first training round
    sum_in_memory_seconds           the limit: the same sum of plain numpy arrays
No torch is loaded by any process; that is checked.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from demo import synthetic
from demo.network import Network
from demo.settings import silo_name
from demo.study import draft
from demo.summary import overheads


def constant_plan(d: int, rounds: int) -> dict[str, Any]:
    """A plan whose training adds a constant to each of d weights; hospitals must allow it in their own settings."""
    return {
        "network": {"name": "constant", "args": {"parameters": d}},
        "input": {"size": [64, 64], "channels": 1, "window": "full"},
        "transforms": [],
        "task": "binary",
        "loss": "bce",
        "optimiser": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0},
        "batch": 32,
        "local_epochs": 1,
        "strategy": {"name": "fedavg", "server_lr": 1.0},
        "personalisation": "none",
        "frozen": [],
        "stopping": {"max_rounds": rounds, "patience": None, "min_delta": 0.0, "worse_by": None},
        "evaluation": {"bins": 64},
        "initial": {"kind": "seed", "seed": 1},
    }


def sum_in_memory(d: int, silos: int) -> float:
    """Seconds to add `silos` arrays of d 32-bit words that are already in memory, best of five."""
    arrays = [np.full(d, i, dtype=np.uint32) for i in range(silos)]
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        total = arrays[0].copy()
        for array in arrays[1:]:
            np.add(total, array, out=total)
        best = min(best, time.perf_counter() - begin)
    return best


def _tree(pid: int) -> list[psutil.Process]:
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def _peak_rss_mb(process: psutil.Process) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {process.pid} shows no VmHWM")


def _no_torch(processes: list[psutil.Process]) -> None:
    for process in processes:
        if "libtorch" in Path(f"/proc/{process.pid}/maps").read_text():
            raise RuntimeError(f"process {process.pid} ({' '.join(process.cmdline())}) has loaded torch")


def _seconds(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


def case(d: int, *, rounds: int, silos: int, folder: Path) -> dict[str, Any]:
    """One case on a network of its own."""
    begin = time.time()
    folders = {silo_name(path.name): path for path in synthetic.write(folder / "data", hospitals=silos, images=2)}
    names = sorted(folders)
    network = Network(
        folder,
        folders,
        networks=("constant",),
        lean=True,
        silo_env={"SILO_TRAINING_ALLOW_CONSTANT": "1"},
    )
    try:
        network.start()
        study = network.run_study(
            draft(
                silos=names,
                plan=constant_plan(d, rounds),
                modalities=["CR"],
                countries=[],
                title="Round overhead",
                summary="Training adds a constant.",
                min_patients=2,
                clip_norm=20.0,
            )
        )
        network.wait_for(study, lambda report: any(r["purpose"] == "train" for r in report["rounds"]), seconds=120)
        processes = [p for pid in network.pids() for p in _tree(pid)]
        cpu_before = sum(_seconds(p) for p in processes)
        rounds_before = len([r for r in network.report(study)["rounds"] if r["stage"] == "finished"])
        report = network.wait_for(study, lambda report: report["state"] == "completed", seconds=600)
        cpu = sum(_seconds(p) for p in processes if p.is_running()) - cpu_before
        done = [r for r in report["rounds"] if r["stage"] == "finished"]
        first = min(r["started_at"] for r in report["rounds"] if r["purpose"] == "train")
        portal = [p for pid in network.portal_pids() for p in _tree(pid)]
        _no_torch(processes)
        seconds = overheads(report, network.hospitals)
        lines = [line for hospital in network.hospitals for line in hospital.rounds() if 1 <= line["round"] <= rounds]
        return {
            "d": d,
            "silos": silos,
            "rounds": len(seconds),
            "seconds_median": round(statistics.median(seconds), 4),
            "seconds_max": round(max(seconds), 4),
            "cpu_seconds": round(cpu / max(1, len(done) - rounds_before), 3),
            "bytes_up_per_weight": round(statistics.median(line["bytes_up"] for line in lines) / d, 3),
            "bytes_down_per_weight": round(statistics.median(line["bytes_down"] for line in lines) / d, 3),
            "portal_peak_rss_mb": round(max(_peak_rss_mb(p) for p in portal), 1),
            "command_to_first_round_seconds": round(dt.datetime.fromisoformat(first).timestamp() - begin, 2),
            "sum_in_memory_seconds": round(sum_in_memory(d, silos), 5),
        }
    finally:
        network.stop()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line a case (default: the same, indented)")
    parser.add_argument("--sizes", default="32000,1000000,7000000")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--silos", type=int, default=4)
    options = parser.parse_args(argv)
    for size in options.sizes.split(","):
        with tempfile.TemporaryDirectory(prefix="consilium-bench-") as folder:
            result = case(int(size), rounds=options.rounds, silos=options.silos, folder=Path(folder))
        print(json.dumps(result, indent=None if options.json else 2), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
