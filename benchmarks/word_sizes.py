"""What rounding to 32, 16 or 12 bits costs in AUC against plain float32 sums, on real chest images, six silos.

    python -m benchmarks.word_sizes DATA [--rounds 16] [--seeds 3] [--clip 2.0] > var/word_sizes.jsonl
    python -m benchmarks.word_sizes --table var/word_sizes.jsonl

Two trainings that differ in one bit soon differ everywhere (their AUC by a point and more), so the AUCs of two runs say little
about rounding. Three comparisons, from what is sure to what is noisy:

    round   the same float32 run, round by round: its updates summed as words, against their float32 sum; one round's rounding
    path    the same updates again, but all words of all rounds so far added up: rounding as it piles up, and nothing else
    run     each word size trains on from its own sums; beside it "again" (32 bits, other random roundings): what chance does

Differences of the mean AUC over the sites with both classes, paired by seed and round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.poisoned_runs import largest_fraction_bits
from benchmarks.six_silos import Federation
from demo.plan import demo_plan
from protocol import server_step
from protocol.model_state import ModelState
from protocol.secure_aggregation.quantise import clip, quantise
from silo_node.training.trainer import round_seed

FLOAT = "float32"
AGAIN = "32 bits, again"
LOOSE_CLIP = 20.0
LAST = 5


@dataclass(frozen=True)
class Words:
    """One encoding. fraction_bits: of the fixed point. draw: which random roundings."""

    fraction_bits: int
    draw: int = 0

    def summed(
        self, updates: Mapping[str, NDArray[np.float32]], bound: float, key: Sequence[int]
    ) -> NDArray[np.uint32]:
        """The sum of the words. They are those of a shorter word too: its fraction_bits come from its own proof of range."""
        total = np.zeros(len(next(iter(updates.values()))), dtype="<u4")
        for at, update in enumerate(updates.values()):
            rng = np.random.default_rng([self.draw, *key, at])
            total += quantise(
                update,
                weight=1,
                fraction_bits=self.fraction_bits,
                word_bits=32,
                n=len(updates),
                clip_norm=bound,
                rng=rng,
            )
        return total

    def step(self, state: ModelState, summed: NDArray[np.uint32], silos: int) -> ModelState:
        """The protocol's server step."""
        vector = server_step.apply(state.vector, summed, fraction_bits=self.fraction_bits, total_weight=silos)
        return ModelState(state.table, vector)


class Bench:
    """All runs of one seed."""

    def __init__(self, federation: Federation, *, rounds: int, clip_norm: float, seed: int) -> None:
        self.federation, self.rounds, self.clip, self.seed = federation, rounds, clip_norm, seed
        n = len(federation.silos)
        fitting = {bits: largest_fraction_bits(n, clip_norm, bits) for bits in (32, 16, 12)}
        self.sizes = {f"{bits} bits": Words(places) for bits, places in fitting.items()}
        self.loose = {f"16 bits, bound {LOOSE_CLIP:g}": Words(largest_fraction_bits(n, LOOSE_CLIP, 16))}
        self._seen: dict[str, float] = {}

    def reference(self) -> None:
        """The float32 run; in each round its updates as words as well."""
        state = self.federation.first(self.seed)
        sizes = self.sizes | self.loose
        paths = dict.fromkeys(sizes, state)
        for number in range(1, self.rounds + 1):
            updates = self._updates(state, number)
            exact = np.sum(list(updates.values()), axis=0, dtype=np.float64)
            following = self._float_step(state, updates)
            line: dict[str, Any] = {"seed": self.seed, "round": number, FLOAT: self._mean(following), "sizes": {}}
            for name, size in sizes.items():
                summed = size.summed(updates, self.clip, [self.seed, number])
                paths[name] = size.step(paths[name], summed, len(updates))
                error = summed.view("<i4") / 2.0**size.fraction_bits - exact
                line["sizes"][name] = {
                    "error": float(np.linalg.norm(error) / np.linalg.norm(exact)),
                    "round": self._mean(size.step(state, summed, len(updates))) - line[FLOAT],
                    "path": self._mean(paths[name]) - line[FLOAT],
                }
            _print("reference", **line)
            state = following

    def own(self, name: str, size: Words | None) -> None:
        """A run that trains on from its own sums."""
        state = self.federation.first(self.seed)
        for number in range(1, self.rounds + 1):
            updates = self._updates(state, number)
            if size is None:
                state = self._float_step(state, updates)
            else:
                state = size.step(state, size.summed(updates, self.clip, [self.seed, number]), len(updates))
            _print("run", seed=self.seed, name=name, round=number, mean=self._mean(state))

    def _updates(self, state: ModelState, number: int) -> dict[str, NDArray[np.float32]]:
        return {
            silo: clip(self.federation.update(state, silo, round_seed(self.seed, "st-words", number, silo)), self.clip)
            for silo in self.federation.silos
        }

    def _float_step(self, state: ModelState, updates: Mapping[str, NDArray[np.float32]]) -> ModelState:
        """Plain float32 sums, one silo after the other."""
        total = np.zeros_like(state.vector)
        for update in updates.values():
            total += update
        return ModelState(state.table, (state.vector + total * np.float32(1 / len(updates))).astype("<f4"))

    def _mean(self, state: ModelState) -> float:
        if state.digest not in self._seen:
            self._seen[state.digest] = float(np.mean(list(self.federation.aucs(state).values())))
        return self._seen[state.digest]


def simulate(data: Path, *, rounds: int, seeds: int, clip_norm: float) -> None:
    """Run everything and print."""
    began = time.monotonic()
    federation = Federation(data, demo_plan())
    benches = [Bench(federation, rounds=rounds, clip_norm=clip_norm, seed=seed) for seed in range(1, seeds + 1)]
    sizes = {name: dataclasses.asdict(size) for name, size in (benches[0].sizes | benches[0].loose).items()}
    _print("settings", rounds=rounds, seeds=seeds, clip=clip_norm, sizes=sizes)
    for bench in benches:
        bench.reference()
        print(f"reference {bench.seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for bench in benches:
        again = {AGAIN: dataclasses.replace(bench.sizes["32 bits"], draw=1)}
        for name, size in (bench.sizes | again).items():
            bench.own(name, size)
        print(f"runs {bench.seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    _print("end", seconds=round(time.monotonic() - began))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    settings = next(line for line in lines if line["kind"] == "settings")
    reference = [line for line in lines if line["kind"] == "reference"]
    late = settings["rounds"] - LAST
    rows = []
    for name, size in settings["sizes"].items():
        found = [line["sizes"][name] for line in reference]
        cells = [name, size["fraction_bits"], f"{100 * np.mean([row['error'] for row in found]):.2g} %"]
        for what, chosen in (("round", reference), ("path", [line for line in reference if line["round"] > late])):
            cells.append(_by_seed([(line["seed"], line["sizes"][name][what]) for line in chosen]))
        rows.append([*cells, _run(lines, reference, name, late)])
    rows.append([AGAIN, "", "", "", "", _run(lines, reference, AGAIN, late)])
    head = ["words", "binary places", "error of one sum", "round", f"path, last {LAST}", f"run, last {LAST}"]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _run(lines: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], name: str, late: int) -> str:
    plain = {(line["seed"], line["round"]): line[FLOAT] for line in reference}
    found = [
        (line["seed"], line["mean"] - plain[line["seed"], line["round"]])
        for line in lines
        if line["kind"] == "run" and line["name"] == name and line["round"] > late
    ]
    return _by_seed(found) if found else ""


def _by_seed(values: Sequence[tuple[int, float]]) -> str:
    """Mean of the seeds' means, and its standard error (rounds of one seed are not independent)."""
    means = [
        np.mean([value for other, value in values if other == seed]) for seed in sorted({seed for seed, _ in values})
    ]
    error = f" ± {np.std(means, ddof=1) / np.sqrt(len(means)):.4f}" if len(means) > 1 else ""
    return f"{np.mean(means):+.4f}{error}"


def _print(kind: str, **values: Any) -> None:
    print(json.dumps({"kind": kind, **values}), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="AUC with 32, 16 and 12 bit words against plain float32 sums.")
    parser.add_argument("data", type=Path, nargs="?", help="a folder with site_1 to site_4")
    parser.add_argument("--table", type=Path, help="print a table of these JSON lines instead")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clip", type=float, default=2.0)
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in arguments.table.read_text().splitlines()]), end="")
    elif arguments.data is None:
        parser.error("DATA or --table is needed")
    else:
        simulate(arguments.data, rounds=arguments.rounds, seeds=arguments.seeds, clip_norm=arguments.clip)


if __name__ == "__main__":
    main()
