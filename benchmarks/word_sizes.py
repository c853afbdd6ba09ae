"""What rounding to 32, 16 or 12 bits costs in AUC against plain float32 sums, on real chest images, six silos.

    python -m benchmarks.word_sizes DATA [--rounds 12] [--seeds 3] [--clip 2.0] > var/word_sizes.jsonl
    python -m benchmarks.word_sizes --table var/word_sizes.jsonl > docs/word-sizes.md

Two trainings that differ in one bit soon differ everywhere (their AUC by a point and more), so the AUCs of two runs say little
about rounding. Three comparisons, from what is sure to what is noisy:

    round   the same float32 run, round by round: its updates summed as words, against their float32 sum; one round's rounding
    path    the same updates again, but all words of all rounds so far added up: rounding as it piles up, and nothing else
    run     each word size trains on from its own sums; beside it "again" (32 bits, other random roundings): what chance does

Scales that follow the sum, and what silos owe, are those of the path, or of the run. Figures are differences of the mean AUC over
the sites with both classes, paired by seed and round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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
from protocol.secure_aggregation.scales import FixedPoint, Segments
from protocol.secure_aggregation.words import Lanes, lane, signed
from silo_node.rounds import error_feedback
from silo_node.training.trainer import round_seed

FLOAT = "float32"
AGAIN = "32 bits, again"
FOLLOW = "scales follow the sum"
LOOSE_CLIP = 20.0
LAST = 5

_PAGE = """# What short words cost

Written by `python -m benchmarks.word_sizes --table` from a run of `python -m benchmarks.word_sizes` on real chest X-rays.

Six silos, the demo's plan, {rounds} rounds, {seeds} seeds, norm bound (`clip_norm`) {clip:g}; one fixed scale with the most
binary places, up to 20, whose range can be proved, unless the row says otherwise. Figures are differences in AUC (mean of the
three sites with both classes) to plain float32 sums of the same clipped updates, with the standard error over seeds. "Error of
one sum": length of what words change in it, over its length.

{table}

- **round**: the float32 run; each round's updates summed as words instead, for this round only.
- **path**: the same updates, words of all rounds so far added up: rounding as it piles up, and nothing else. This is what word
  size costs, apart from chance.
- **run**: each word size trains on from its own sums. Trainings that differ in the last digit drift apart, so this mostly shows
  chance: "{again}" differs from "32 bits" in nothing but the random roundings.
- The row "bound {loose:g}" has the scale that a bound of {loose:g} leaves (the updates are the same): a bound near the length
  of honest updates is worth binary places, as it is worth a sharper sketch check (poisoning.md).
- "{follow}": `fraction_bits` is null, so each tensor's scale comes from the last sum of the same row
  (`protocol/secure_aggregation/scales.py`), and the binary places are the least and the most of any tensor in any round. "Error
  feedback": a silo adds what rounding and cutting took from its last update to the next one before clipping
  (`silo_node/rounds/error_feedback.py`), so one sum also has the last one's rounding in it.
"""


@dataclass(frozen=True)
class Words:
    """One encoding. fixed: as in a manifest. feedback: silos send later what rounding took. draw: which random roundings."""

    fixed: FixedPoint
    feedback: bool = False
    draw: int = 0


class Study:
    """The models that follow from the sums in one encoding; `state` is the newest, with its scales.

    clip_norm: what updates are clipped to; the encoding may allow for more. folder: for what silos owe.
    """

    def __init__(self, words: Words, first: ModelState, *, clip_norm: float, folder: str) -> None:
        self.words, self.clip = words, clip_norm
        self.state = dataclasses.replace(first, scales=words.fixed.initial(first.table))
        self._folder = Path(folder)

    @property
    def segments(self) -> Segments:
        """The scales of the next sum's words."""
        return self.words.fixed.segments(self.state.table, self.state.scales)

    def summed(self, updates: Mapping[str, NDArray[np.float32]], key: Sequence[int]) -> Lanes:
        """The sum of the words, in the ring of the lane."""
        total = np.zeros(len(next(iter(updates.values()))), dtype=lane(self.words.fixed.word_bits))
        for at, (silo, update) in enumerate(updates.items()):
            rng = np.random.default_rng([self.words.draw, *key, at])
            kept = self._kept(silo) if self.words.feedback else None
            owed = kept.take(self.state.digest, len(update)) if kept else None
            left = np.empty_like(update) if kept else None
            whole = clip(update if owed is None else update + owed, self.clip)
            total += quantise(whole, self.words.fixed, self.segments, weight=1, rng=rng, residual=left)
            if kept and left is not None:
                kept.sent(str(key), self.state.digest, left)
        return total

    def values(self, summed: Lanes) -> NDArray[np.float64]:
        """The sum in the units of the weights."""
        units = np.repeat([2.0**bits for _, bits in self.segments], [words for words, _ in self.segments])
        return signed(summed, self.words.fixed.word_bits) / units

    def stepped(self, state: ModelState, summed: Lanes, silos: int) -> ModelState:
        """The protocol's server step from `state`, with this study's scales."""
        fixed, bits = self.words.fixed, self.words.fixed.word_bits
        vector = server_step.apply(state.vector, summed, self.segments, total_weight=silos, word_bits=bits)
        scales = server_step.next_scales(fixed, state.table, self.state.scales, summed, total_weight=silos)
        return ModelState(state.table, vector, scales)

    def go_on(self, updates: Mapping[str, NDArray[np.float32]], summed: Lanes, key: Sequence[int]) -> None:
        """The sum was published: from now on `state` is what came of it."""
        self.state = self.stepped(self.state, summed, len(updates))
        if self.words.feedback:
            for silo in updates:
                self._kept(silo).summed(str(key), self.state.digest)

    def _kept(self, silo: str) -> error_feedback.ErrorFeedback:
        return error_feedback.ErrorFeedback(self._folder / silo, "st-words", "word_sizes")


class Bench:
    """All runs of one seed."""

    def __init__(self, federation: Federation, *, rounds: int, clip_norm: float, seed: int) -> None:
        self.federation, self.rounds, self.clip, self.seed = federation, rounds, clip_norm, seed
        n = len(federation.silos)

        def fixed(bits: int, bound: float) -> FixedPoint:
            return FixedPoint(bits, largest_fraction_bits(n, bound, bits), bound, n)

        self.sizes = {f"{bits} bits": Words(fixed(bits, clip_norm)) for bits in (32, 16, 12)}
        for bits in (16, 12):
            self.sizes[f"{bits} bits, {FOLLOW}"] = Words(FixedPoint(bits, None, clip_norm, n))
        self.sizes[f"12 bits, {FOLLOW}, error feedback"] = Words(FixedPoint(12, None, clip_norm, n), feedback=True)
        self.loose = {f"16 bits, bound {LOOSE_CLIP:g}": Words(fixed(16, LOOSE_CLIP))}
        self._seen: dict[str, float] = {}

    def reference(self) -> None:
        """The float32 run; in each round its updates as words as well."""
        state = self.federation.first(self.seed)
        with contextlib.ExitStack() as folders:
            paths = {name: self._study(size, folders) for name, size in (self.sizes | self.loose).items()}
            for number in range(1, self.rounds + 1):
                updates, key = self._updates(state, number), [self.seed, number]
                exact = np.sum(list(self._clipped(updates)), axis=0, dtype=np.float64)
                following = self._float_step(state, updates)
                line: dict[str, Any] = {"seed": self.seed, "round": number, FLOAT: self._mean(following), "sizes": {}}
                for name, path in paths.items():
                    summed = path.summed(updates, key)
                    error = np.linalg.norm(path.values(summed) - exact) / np.linalg.norm(exact)
                    places = [bits for _, bits in path.segments]
                    once = path.stepped(state, summed, len(updates))
                    path.go_on(updates, summed, key)
                    line["sizes"][name] = {
                        "places": [min(places), max(places)],
                        "error": float(error),
                        "round": self._mean(once) - line[FLOAT],
                        "path": self._mean(path.state) - line[FLOAT],
                    }
                _print("reference", **line)
                state = following

    def own(self, name: str, size: Words) -> None:
        """A run that trains on from its own sums."""
        with contextlib.ExitStack() as folders:
            study = self._study(size, folders)
            for number in range(1, self.rounds + 1):
                updates, key = self._updates(study.state, number), [self.seed, number]
                study.go_on(updates, study.summed(updates, key), key)
                _print("run", seed=self.seed, name=name, round=number, mean=self._mean(study.state))

    def _study(self, size: Words, folders: contextlib.ExitStack) -> Study:
        folder = folders.enter_context(tempfile.TemporaryDirectory())
        return Study(size, self.federation.first(self.seed), clip_norm=self.clip, folder=folder)

    def _updates(self, state: ModelState, number: int) -> dict[str, NDArray[np.float32]]:
        return {
            silo: self.federation.update(state, silo, round_seed(self.seed, "st-words", number, silo))
            for silo in self.federation.silos
        }

    def _clipped(self, updates: Mapping[str, NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        return (clip(update, self.clip) for update in updates.values())

    def _float_step(self, state: ModelState, updates: Mapping[str, NDArray[np.float32]]) -> ModelState:
        """Plain float32 sums, one silo after the other."""
        total = np.zeros_like(state.vector)
        for update in self._clipped(updates):
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
    for name in settings["sizes"]:
        found = [line["sizes"][name] for line in reference]
        least, most = min(row["places"][0] for row in found), max(row["places"][1] for row in found)
        places = f"{least} to {most}" if least < most else f"{most}"
        cells = [name, places, f"{100 * np.mean([row['error'] for row in found]):.2g} %"]
        for what, chosen in (("round", reference), ("path", [line for line in reference if line["round"] > late])):
            cells.append(_by_seed([(line["seed"], line["sizes"][name][what]) for line in chosen]))
        rows.append([*cells, _run(lines, reference, name, late)])
    rows.append([AGAIN, "", "", "", "", _run(lines, reference, AGAIN, late)])
    head = ["words", "binary places", "error of one sum", "round", f"path, last {LAST}", f"run, last {LAST}"]
    drawn = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])
    return _PAGE.format(**settings, last=LAST, table=drawn, again=AGAIN, loose=LOOSE_CLIP, follow=FOLLOW)


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
