"""What one poisoning silo of six does to the model, with and without the sketch check, on real chest images.

    python -m benchmarks.poisoning DATA [--rounds 12] [--start 4] [--seeds 3] > var/poisoning.jsonl
    python -m benchmarks.poisoning DATA --only gross --word-bits 16 >> var/poisoning.jsonl
    python -m benchmarks.poisoning --table var/poisoning.jsonl > docs/poisoning.md

DATA: a folder with site_1 to site_4. One process and one thread. Runs of one seed share what they have in common (the rounds
before `start`, and all rounds in which the same updates were summed), so an attack whose every update is left out costs
nothing beside the first.

JSON lines: {"kind": "settings"}; {"kind": "round"}, one a round of a run; {"kind": "replay"}: each silo of each honest round
once as the attacker, judged only; {"kind": "directions"} and {"kind": "gains"}: see protocol/secure_aggregation/anomaly.py,
the gains from runs in which a few silos, drawn at random, take part in each round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import poisoning_table
from benchmarks.attacks import ATTACKS, GROSS, QUIET, Attack
from benchmarks.poisoned_runs import Bench, Settings
from benchmarks.six_silos import Federation
from demo.plan import demo_plan
from protocol.secure_aggregation import anomaly

HIDDEN = ("words", "sketches", "auc_before")
MEANT = (None, *QUIET)
PARTS: dict[str, Sequence[Attack]] = {"attacks": ATTACKS, "gross": GROSS, "gains": ()}


def simulate(data: Path, settings: Settings, *, attacks: Sequence[Attack], gains: bool) -> None:
    """Run and print."""
    began = time.monotonic()
    federation = Federation(data, demo_plan())
    images = {silo: len(held) for silo, held in federation.train.items()}
    _print("settings", **dataclasses.asdict(settings), images=images)
    for seed in range(1, settings.seeds + 1) if attacks else ():
        bench = Bench(federation, settings, seed)
        for attack in (None, *attacks):
            for check in (True, False):
                lines = bench.run(attack, check=check, rounds=settings.rounds)
                names = {"seed": seed, "attack": attack.name if attack else "none"}
                for line in lines:
                    _print("round", **names, check=check, **{key: line[key] for key in line if key not in HIDDEN})
                if check and attack is None:
                    _print("replay", seed=seed, found=bench.replay(lines))
                if check and attack in (None, *QUIET):
                    _print_directions(names, bench, lines)
        print(f"seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for seed in range(1, settings.seeds + 1) if gains else ():
        bench = Bench(federation, settings, seed)
        for attack in MEANT:
            lines = bench.run(attack, check=True, rounds=settings.gain_rounds, drawn=settings.silos_a_round)
            names = {"seed": seed, "attack": attack.name if attack else "none"}
            found = anomaly.gains(_records(lines, settings.start))
            _print("gains", **names, silos={silo: dataclasses.asdict(gain) for silo, gain in found.items()})
        print(f"gains of seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _records(lines: Sequence[dict[str, Any]], start: int) -> list[anomaly.RoundRecord]:
    """The rounds from `start` on, and what the last of them gave."""
    records = [anomaly.RoundRecord(line["sketches"], line["members"], line["auc_before"]) for line in lines]
    return [*records[start - 1 :], anomaly.RoundRecord({}, (), lines[-1]["mean"])]


def _print_directions(names: dict[str, Any], bench: Bench, lines: Sequence[dict[str, Any]]) -> None:
    """After one attacked round, after five, and after all."""
    records = _records(lines, bench.settings.start)[:-1]
    weights = dict.fromkeys(bench.silos, 1)
    for count in sorted({1, 5, len(records)}):
        found = anomaly.directions(records[:count], weights)
        silos = {silo: dataclasses.asdict(direction) for silo, direction in found.items()}
        _print("directions", **names, rounds=count, silos=silos)


def _print(kind: str, **values: Any) -> None:
    print(json.dumps({"kind": kind, **values}), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="One poisoning silo of six, with and without the sketch check.")
    parser.add_argument("data", type=Path, nargs="?", help="a folder with site_1 to site_4")
    parser.add_argument("--table", type=Path, help="write docs/poisoning.md from these JSON lines instead")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--start", type=int, default=4, help="the first attacked round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--attacker", default="site_3b")
    parser.add_argument("--clip", type=float, default=2.0)
    parser.add_argument("--word-bits", type=int, default=32, help="32, as in the demo's manifest, 24, 16 or 12")
    parser.add_argument("--gain-rounds", type=int, default=24, help="rounds of the runs with random participation")
    parser.add_argument("--silos-a-round", type=int, default=4)
    parser.add_argument("--tries", type=int, default=10, help="seeds of the sketch for each replayed round")
    parser.add_argument("--only", choices=PARTS, help="one part; the parts' lines may be put together")
    given = vars(parser.parse_args())
    data, table, only = (given.pop(name) for name in ("data", "table", "only"))
    if table:
        print(poisoning_table.text([json.loads(line) for line in table.read_text().splitlines()]), end="")
    elif data is None:
        parser.error("DATA or --table is needed")
    else:
        simulate(data, Settings(**given), attacks=PARTS.get(only, ATTACKS), gains=only in (None, "gains"))


if __name__ == "__main__":
    main()
