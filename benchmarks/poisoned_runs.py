"""Runs of federated training in which one silo of six may be poisoned: for `benchmarks.poisoning`.

No network and no masks, but the words, sketches, rule, range check and server step of the protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks import Attack, Turn, with_patch
from benchmarks.six_silos import Federation, Held
from protocol import server_step
from protocol.model_state import ModelState
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.quantise import QuantisationError, clip, quantise
from protocol.secure_aggregation.scales import FixedPoint, ScalesError
from protocol.secure_aggregation.sketch import Sketch, Verdict, judge, sketch
from protocol.secure_aggregation.words import lane, signed
from silo_node.training.trainer import round_seed

REFUSED = "REFUSED_AT_SILO"
REPLAYED = {"three": 3.0, "ten": 10.0, "negated": -5.0, "zero": 0.0}


@dataclass(frozen=True)
class Settings:
    """start: the attack's first round (from 1). clip: the norm bound. silos_a_round: in the runs for the gains."""

    rounds: int
    start: int
    seeds: int
    attacker: str
    clip: float
    word_bits: int
    gain_rounds: int
    silos_a_round: int
    tries: int


class Bench:
    """All runs of one seed. Updates and AUCs are kept by the model they were made from."""

    def __init__(self, federation: Federation, settings: Settings, seed: int) -> None:
        self.federation, self.settings, self.seed = federation, settings, seed
        self.silos = federation.silos
        self.fraction_bits = largest_fraction_bits(len(self.silos), settings.clip, settings.word_bits)
        self.segments = [Segment(federation.first(seed).vector.size, self.fraction_bits)]
        self.fixed = FixedPoint(settings.word_bits, self.fraction_bits, settings.clip, len(self.silos))
        self._updates: dict[tuple[str, str, int, str], NDArray[np.float32]] = {}
        self._seen: dict[str, dict[str, Any]] = {}

    def run(self, attack: Attack | None, *, check: bool, rounds: int, drawn: int | None = None) -> list[dict[str, Any]]:
        """One run; a dictionary a round, of which `words` and `sketches` are not for the output."""
        state = self.federation.first(self.seed)
        earlier: list[NDArray[np.float64]] = []
        lines = []
        for number in range(1, rounds + 1):
            present = self._present(number, drawn)
            words, excluded = self._words(state, number, present, attack, earlier)
            seed = self._bytes("sketch", number, attack and attack.name)
            sketches = {silo: self._sketch(seed, row) for silo, row in words.items()}
            if check:
                excluded |= self.judge(sketches).excluded
            members = [silo for silo in words if silo not in excluded]
            before = self.evaluate(state)["mean"]
            state, lost = self._step(state, words, sketches, members, seed)
            lines.append(
                {"round": number, "present": present, "excluded": excluded, "members": members, "lost": lost}
                | self.evaluate(state)
                | {"words": words, "sketches": sketches, "auc_before": before}
            )
        return lines

    def judge(self, sketches: dict[str, Sketch]) -> Verdict:
        """The rule's verdict, all silos with weight 1."""
        return judge(sketches, dict.fromkeys(sketches, 1), clip_norm=self.settings.clip, segments=self.segments)

    def replay(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Each silo of each honest round once as the attacker, under `tries` seeds of the sketch.

        Nothing is trained: a sketch is linear, so an attack scales it. Answers attacks: attack -> silo -> {tries, caught,
        honest_excluded}; honest: sketches judged without an attacker, and how many of them were left out; norms: silo ->
        the estimated norms.
        """
        found: dict[str, dict[str, dict[str, int]]] = {}
        honest = {"sketches": 0, "excluded": 0}
        norms: dict[str, list[float]] = {silo: [] for silo in self.silos}
        for line in lines:
            for again in range(self.settings.tries):
                seed = self._bytes("again", line["round"], str(again))
                sketches = {silo: self._sketch(seed, row) for silo, row in line["words"].items()}
                verdict = self.judge(sketches)
                honest["sketches"] += len(sketches)
                honest["excluded"] += len(verdict.excluded)
                for silo in self.silos:
                    norms[silo].append(round(verdict.norms[silo], 3))
                    for name, factor in REPLAYED.items():
                        attacked = sketches | {silo: (sketches[silo] * factor).astype(np.int64)}
                        excluded = self.judge(attacked).excluded
                        count = found.setdefault(name, {}).setdefault(
                            silo, {"tries": 0, "caught": 0, "honest_excluded": 0}
                        )
                        count["tries"] += 1
                        count["caught"] += silo in excluded
                        count["honest_excluded"] += bool(set(excluded) - {silo})
        return {"attacks": found, "honest": honest, "norms": norms}

    def evaluate(self, state: ModelState) -> dict[str, Any]:
        """auc: site -> AUC, mean: over them, success: share of label 1 that the backdoor's patch turns to 0."""
        if state.digest not in self._seen:
            auc = dict(self.federation.aucs(state))
            turned, called = 0, 0
            for held in self.federation.test.values():
                sick = held.part(held.labels == 1)
                plain = self.federation.scores(state, sick) > 0
                patched = self.federation.scores(state, Held(with_patch(sick.pixels), sick.labels)) > 0
                turned, called = turned + int((plain & ~patched).sum()), called + int(plain.sum())
            self._seen[state.digest] = {
                "auc": {site: round(value, 4) for site, value in auc.items()},
                "mean": float(np.mean(list(auc.values()))),
                "success": turned / called if called else 0.0,
            }
        return self._seen[state.digest]

    def _words(
        self,
        state: ModelState,
        number: int,
        present: Sequence[str],
        attack: Attack | None,
        earlier: list[NDArray[np.float64]],
    ) -> tuple[dict[str, NDArray[np.int32]], dict[str, str]]:
        attacker, words, excluded = self.settings.attacker, {}, {}
        for silo in present:
            if attack is None or silo != attacker:
                words[silo] = self._quantised(self._update(state, silo, number, None), silo, number)
        if attack is None or attacker not in present:
            return words, excluded
        earlier.append(self._update(state, attacker, number, None).astype(np.float64))
        turn = Turn(
            honest=lambda change: self._update(state, attacker, number, change).astype(np.float64),
            earlier=earlier[:-1],
            clip_norm=self.settings.clip,
            rng=np.random.default_rng(list(self._bytes("attacker", number, attack.name))),
        )
        if number < self.settings.start:
            words[attacker] = self._quantised(earlier[-1].astype(np.float32), attacker, number)
        elif attack.quiet:
            try:
                words[attacker] = self._quantised(attack.make(turn).astype(np.float32), attacker, number)
            except QuantisationError:
                excluded[attacker] = REFUSED
        else:
            words[attacker] = self._unchecked(attack.make(turn), turn.rng)
        return {silo: words[silo] for silo in sorted(words)}, excluded

    def _quantised(self, update: NDArray[np.float32], silo: str, number: int) -> NDArray[np.int32]:
        """As an honest silo does it."""
        words = quantise(
            clip(update, self.settings.clip),
            self.fixed,
            self.segments,
            weight=1,
            rng=np.random.default_rng(list(self._bytes("rounding", number, silo))),
        )
        return signed(words, self.settings.word_bits)

    def _unchecked(self, update: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int32]:
        """As a silo does it that clips and checks nothing: modulo 2^w."""
        words = np.floor(update * 2.0**self.fraction_bits + rng.random(update.shape)).astype(np.int64)
        return _wrapped(words, self.settings.word_bits)

    def _step(
        self,
        state: ModelState,
        words: dict[str, NDArray[np.int32]],
        sketches: dict[str, Sketch],
        members: Sequence[str],
        seed: bytes,
    ) -> tuple[ModelState, str | None]:
        """The next model, and why the sum was thrown away if it was."""
        summed = _wrapped(np.sum([words[silo] for silo in members], axis=0, dtype=np.int64), self.settings.word_bits)
        size = lane(self.settings.word_bits)
        lanes = summed.astype(f"<i{size.itemsize}").view(size)
        bounds = self.fixed.word_bounds(self.segments, [1] * len(members))
        try:
            server_step.check_range(lanes, self.segments, bounds, word_bits=self.settings.word_bits)
        except server_step.ServerStepError:
            return state, "OUT_OF_RANGE"
        total = np.sum([sketches[silo] for silo in members], axis=0)
        if not np.array_equal(total, self._sketch(seed, summed)):
            raise AssertionError("the sum of the sketches is not the sketch of the sum")
        vector = server_step.apply(
            state.vector,
            lanes,
            self.segments,
            total_weight=len(members),
            word_bits=self.settings.word_bits,
        )
        return ModelState(state.table, vector), None

    def _present(self, number: int, drawn: int | None) -> list[str]:
        if drawn is None:
            return list(self.silos)
        rng = np.random.default_rng(list(self._bytes("participation", number, None)))
        return sorted(rng.choice(self.silos, drawn, replace=False).tolist())

    def _update(
        self, state: ModelState, silo: str, number: int, change: Callable[[Held], Held] | None
    ) -> NDArray[np.float32]:
        key = (state.digest, silo, number, change.__name__ if change else "")
        if key not in self._updates:
            self._updates[key] = self.federation.update(
                state, silo, round_seed(self.seed, "st-poisoning", number, silo), change
            )
        return self._updates[key]

    def _sketch(self, seed: bytes, words: NDArray[np.int32]) -> Sketch:
        return sketch(seed, self.segments, [words], word_bits=self.settings.word_bits)

    def _bytes(self, use: str, number: int, name: str | None) -> bytes:
        return hashlib.sha256(f"{use}\n{self.seed}\n{number}\n{name}".encode()).digest()


def largest_fraction_bits(n: int, clip_norm: float, word_bits: int) -> int:
    """The most binary places, up to 20, with which the sum of n updates fits."""
    for bits in range(20, 0, -1):
        try:
            FixedPoint(word_bits=word_bits, fraction_bits=bits, clip_norm=clip_norm, silos=n)
        except ScalesError:
            continue
        return bits
    raise SystemExit("no fixed point fits: take a smaller clip")


def _wrapped(words: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    half = 1 << (bits - 1)
    return ((words + half) % (1 << bits) - half).astype("<i4")
