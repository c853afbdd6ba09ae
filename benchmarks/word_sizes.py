"""What rounding to 32, 16 or 12 bits costs in AUC against plain float32 sums, on real chest images, six silos.

    python -m benchmarks.word_sizes DATA [--rounds 12] [--seeds 3] [--clip 2.0] > var/word_sizes.jsonl
    python -m benchmarks.word_sizes --table var/word_sizes.jsonl > docs/word-sizes.md

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
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.quantise import clip, quantise
from protocol.secure_aggregation.scales import FixedPoint
from protocol.secure_aggregation.words import Lanes, lane, signed
from silo_node.training.trainer import round_seed

FLOAT = "float32"
AGAIN = "32 bits, again"
LOOSE_CLIP = 20.0
LAST = 5

_PAGE = """# What short words cost

Written by `python -m benchmarks.word_sizes --table` from a run of `python -m benchmarks.word_sizes` on real chest X-rays.

Six silos, the demo's plan, {rounds} rounds, {seeds} seeds, norm bound (`clip_norm`) {clip:g}, one fixed scale with the most
binary places whose range can be proved. Figures are differences in AUC (mean of the three sites with both classes) to plain
float32 sums of the same clipped updates, with the standard error over seeds. "Error of one sum": length of what rounding
adds, over the length of the sum.

{table}

- **round**: the float32 run; each round's updates summed as words instead, for this round only.
- **path**: the same updates, words of all rounds so far added up: rounding as it piles up, and nothing else. This is what word
  size costs, apart from chance.
- **run**: each word size trains on from its own sums. Trainings that differ in the last digit drift apart, so this mostly shows
  chance: "{again}" differs from "32 bits" in nothing but the random roundings.
- The row "bound {loose:g}" has the scale that a bound of {loose:g} leaves (the updates are the same): a bound near the length
  of honest updates is worth binary places, as it is worth a sharper sketch check (poisoning.md).
"""


@dataclass(frozen=True)
class Words:
    """One encoding. word_bits, fraction_bits: as in a manifest. bound: its clip_norm. draw: which random roundings."""

    word_bits: int
    fraction_bits: int
    bound: float
    draw: int = 0

    def summed(self, updates: Mapping[str, NDArray[np.float32]], key: Sequence[int]) -> Lanes:
        """The sum of the words, in the ring of the lane."""
        total = np.zeros(len(next(iter(updates.values()))), dtype=lane(self.word_bits))
        for at, update in enumerate(updates.values()):
            total += quantise(
                update,
                FixedPoint(self.word_bits, self.fraction_bits, self.bound, len(updates)),
                (Segment(len(update), self.fraction_bits),),
                weight=1,
                rng=np.random.default_rng([self.draw, *key, at]),
            )
        return total

    def values(self, summed: Lanes) -> NDArray[np.float64]:
        """The sum in the units of the weights."""
        return signed(summed, self.word_bits) / 2.0**self.fraction_bits

    def step(self, state: ModelState, summed: Lanes, silos: int) -> ModelState:
        """The protocol's server step."""
        vector = server_step.apply(
            state.vector,
            summed,
            (Segment(len(summed), self.fraction_bits),),
            total_weight=silos,
            word_bits=self.word_bits,
        )
        return ModelState(state.table, vector)


class Bench:
    """All runs of one seed."""

    def __init__(self, federation: Federation, *, rounds: int, clip_norm: float, seed: int) -> None:
        self.federation, self.rounds, self.clip, self.seed = federation, rounds, clip_norm, seed
        n = len(federation.silos)
        self.sizes = {
            f"{bits} bits": Words(bits, largest_fraction_bits(n, clip_norm, bits), clip_norm) for bits in (32, 16, 12)
        }
        places = largest_fraction_bits(n, LOOSE_CLIP, 16)
        self.loose = {f"16 bits, bound {LOOSE_CLIP:g}": Words(16, places, LOOSE_CLIP)}
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
                summed = size.summed(updates, [self.seed, number])
                paths[name] = size.step(paths[name], summed, len(updates))
                error = size.values(summed) - exact
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
                state = size.step(state, size.summed(updates, [self.seed, number]), len(updates))
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


def page(lines: Sequence[dict[str, Any]]) -> str:
    """docs/word-sizes.md."""
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
    drawn = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])
    return _PAGE.format(**settings, last=LAST, table=drawn, again=AGAIN, loose=LOOSE_CLIP)


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
    parser.add_argument("--table", type=Path, help="write docs/word-sizes.md from these JSON lines instead")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clip", type=float, default=2.0)
    arguments = parser.parse_args()
    if arguments.table:
        print(page([json.loads(line) for line in arguments.table.read_text().splitlines()]), end="")
    elif arguments.data is None:
        parser.error("DATA or --table is needed")
    else:
        simulate(arguments.data, rounds=arguments.rounds, seeds=arguments.seeds, clip_norm=arguments.clip)


if __name__ == "__main__":
    main()
