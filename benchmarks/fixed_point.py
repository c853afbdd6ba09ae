"""What words of few bits do to federated averaging: one scale for all against a scale a tensor, with error feedback and without.

    python -m benchmarks.fixed_point DATA [--rounds 8] [--seed 1] [--bits 16 12] [--clip 20]

DATA has one sub-folder a hospital with a labels.csv. Each variant trains its own model from the same start, in one process,
without masks (they cancel exactly). Prints one JSON line a variant: {"bits", "scales", "feedback", "fraction_bits",
"error": relative L2 error of each round's mean update against the float32 one, "drift": the same of the sum over all rounds,
"cut": share of elements beyond their tensor's bound, a round, "auc": mean over hospitals with both classes, of each model}.
The first line is float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated_learning import cohorts
from demo.plan import demo_plan
from protocol.initial_model import initial_state
from protocol.model_state import ModelState
from protocol.secure_aggregation.quantise import clip, quantise
from protocol.secure_aggregation.scales import FixedPoint, ScalesError
from protocol.secure_aggregation.words import signed
from protocol.server_step import apply, next_scales
from silo_node.training import trainer


class Words:
    """The sum of updates in words, as the silos and the portal make it together; `fixed` None: in float32."""

    def __init__(self, fixed: FixedPoint | None, *, feedback: bool, seed: int) -> None:
        self.fixed, self.feedback = fixed, feedback
        self.owed: dict[str, NDArray[np.float32]] = {}
        self.cut: list[float] = []
        self._rng = np.random.default_rng(seed)

    def step(self, state: ModelState, updates: dict[str, NDArray[np.float32]]) -> ModelState:
        """The next state from one update a silo, all of weight 1."""
        if self.fixed is None:
            mean = np.mean(list(updates.values()), axis=0, dtype=np.float64)
            return ModelState(state.table, (state.vector + mean).astype("<f4"))
        segments = self.fixed.segments(state.table, state.scales)
        bounds = np.repeat([float(self.fixed.bound(bits)) for _, bits in segments], [words for words, _ in segments])
        total, beyond = np.zeros(state.vector.size, dtype=np.int64), 0
        for name, update in updates.items():
            whole = clip(update + self.owed[name] if name in self.owed else update, self.fixed.clip_norm)
            left = np.empty_like(whole)
            words = quantise(whole, self.fixed, segments, weight=1, rng=self._rng, residual=left)
            if self.feedback:
                self.owed[name] = left
            total += signed(words, self.fixed.word_bits)
            beyond += int((np.abs(whole) > bounds).sum())
        self.cut.append(beyond / total.size / len(updates))
        summed = total.astype("<i2" if self.fixed.word_bits < 24 else "<i4")
        lanes = summed.view(f"<u{summed.itemsize}")
        count, bits = len(updates), self.fixed.word_bits
        vector = apply(state.vector, lanes, segments, total_weight=count, word_bits=bits)
        scales = next_scales(self.fixed, state.table, state.scales, lanes, total_weight=count)
        return ModelState(state.table, vector, scales)


def largest_fraction(bits: int, clip_norm: float, silos: int) -> int:
    """The most binary places that one scale for all words can have."""
    for places in range(30, -1, -1):
        try:
            FixedPoint(bits, places, clip_norm, silos)
        except ScalesError:
            continue
        return places
    raise SystemExit(f"words of {bits} bits can't hold the sum of {silos} updates of length {clip_norm:g} at all")


def simulate(
    hospitals: dict[str, Any], plan: dict[str, Any], words: Words, *, rounds: int, seed: int, work: Path
) -> Any:
    """Run one variant. Returns (error of each round, drift after each, mean AUC of each model)."""
    table = trainer.build_table(plan)
    scales = words.fixed.initial(table) if words.fixed else None
    state = initial_state(table, plan["initial"]["seed"], scales=scales)
    errors, drift, scores = [], [], []
    meant, sent = np.zeros(state.vector.size), np.zeros(state.vector.size)
    for number in range(1, rounds + 2):
        results = {
            name: trainer.run(
                plan,
                state,
                cohort,
                folder=work / "cache" / name,
                purpose="train" if number <= rounds else "evaluate",
                seed=trainer.round_seed(seed, "st-simulation", number, name),
            )
            for name, cohort in hospitals.items()
        }
        scores.append(round(float(np.mean([each.auc for each in results.values() if each.auc is not None])), 4))
        if number > rounds:
            break
        updates = {name: each.update for name, each in results.items()}
        mean = np.mean(list(updates.values()), axis=0, dtype=np.float64)
        following = words.step(state, updates)
        moved = following.vector.astype(np.float64) - state.vector
        meant, sent, state = meant + mean, sent + moved, following
        errors.append(float(f"{np.linalg.norm(moved - mean) / np.linalg.norm(mean):.3g}"))
        drift.append(float(f"{np.linalg.norm(sent - meant) / np.linalg.norm(meant):.3g}"))
    return errors, drift, scores


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Words of few bits in federated averaging.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 12])
    parser.add_argument("--clip", type=float, default=20.0)
    arguments = parser.parse_args()
    plan = demo_plan(seed=arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        hospitals = cohorts(arguments.data, work)
        variants: list[tuple[FixedPoint | None, bool]] = [(None, False)]
        for bits in arguments.bits:
            places = largest_fraction(bits, arguments.clip, len(hospitals))
            for fraction in (places, None):
                fixed = FixedPoint(bits, fraction, arguments.clip, len(hospitals))
                variants += [(fixed, False), (fixed, True)]
        for fixed, feedback in variants:
            words = Words(fixed, feedback=feedback, seed=arguments.seed)
            errors, drift, scores = simulate(
                hospitals, plan, words, rounds=arguments.rounds, seed=arguments.seed, work=work
            )
            line = {
                "bits": fixed.word_bits if fixed else 32,
                "scales": "float32" if fixed is None else "tensor" if fixed.fraction_bits is None else "one",
                "feedback": feedback,
                "fraction_bits": fixed.fraction_bits if fixed else None,
                "error": errors,
                "drift": drift,
                "cut": [float(f"{each:.2g}") for each in words.cut],
                "auc": scores,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
