"""Six silos from four hospitals' chest images, trained in one process: what the poisoning and word size benchmarks share.

site_1 and site_3 are halved by patient (a, b); site_2 and site_4 stay whole. Test images stay with the four sites. All
pictures are decoded once and lie in memory (9 KiB each at 64 pixels as float32: 40 MB).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated_learning import cohorts
from protocol.initial_model import initial_state
from protocol.model_state import ModelState
from silo_node.imaging import cache
from silo_node.training import plan as plans
from silo_node.training import trainer

HALVED = ("site_1", "site_3")


@dataclass(frozen=True, eq=False)
class Held:
    """Pictures in memory, as `silo_node.imaging.cache.Pictures` gives them. pixels: float32[n, H, W] in 0..1."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.pixels[indices]

    def part(self, chosen: NDArray[np.bool_]) -> Held:
        return Held(self.pixels[chosen], self.labels[chosen])


class Federation:
    """The silos' training pictures, the sites' test pictures, and training and scoring of a model on them."""

    def __init__(self, data: Path, plan: dict[str, Any]) -> None:
        trainer.preload(1)
        self.use(plan)
        self.train: dict[str, Held] = {}
        self.test: dict[str, Held] = {}
        with tempfile.TemporaryDirectory() as work:
            for site, found in cohorts(data, Path(work)).items():
                pictures = cache.Cache(
                    Path(work) / site, plans.pixels_digest(self.plan), size=self.plan.size, window=self.plan.window
                )
                if pictures.fill((*found.train, *found.test)):
                    raise SystemExit(f"{site}: a file cannot be decoded")
                train, self.test[site] = _hold(pictures, found.train), _hold(pictures, found.test)
                if site in HALVED:
                    second = np.array([_second_half(item.patient) for item in found.train])
                    self.train |= {f"{site}a": train.part(~second), f"{site}b": train.part(second)}
                else:
                    self.train[site] = train

    def use(self, plan: dict[str, Any]) -> None:
        """Train by another plan from now on, for pictures of the same size."""
        self.plan, self.table = plans.parse(plan), trainer.build_table(plan)

    @property
    def silos(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(sorted(self.train))

    def first(self, seed: int) -> ModelState:
        """The first model."""
        return initial_state(self.table, seed)

    def update(
        self, state: ModelState, silo: str, seed: int, change: Callable[[Held], Held] | None = None
    ) -> NDArray[np.float32]:
        """What training at a silo gives; `change` alters its pictures first (an attacker's)."""
        from silo_node.training import local_training, networks

        held = self.train[silo] if change is None else change(self.train[silo])
        network = networks.build(self.plan)
        networks.load(network, state, self.plan)
        local_training.train(network, held, held.labels, self.plan, seed=seed)  # type: ignore[arg-type]
        return local_training.update_of(network, state)

    def scores(self, state: ModelState, held: Held) -> NDArray[np.float64]:
        """One logit a picture."""
        from silo_node.training import evaluate, networks

        network = networks.build(self.plan)
        networks.load(network, state, self.plan)
        return evaluate.outputs(network, held, self.plan)  # type: ignore[arg-type]

    def aucs(self, state: ModelState) -> Mapping[str, float]:
        """AUC on the test pictures of each site that has both classes."""
        from protocol.evaluation import auc

        found = {site: auc(held.labels, self.scores(state, held)) for site, held in self.test.items()}
        return {site: value for site, value in found.items() if value is not None}


def _hold(pictures: cache.Cache, items: Any) -> Held:
    return Held(
        pictures.open(items).batch(np.arange(len(items))), np.array([item.label for item in items], dtype=np.int64)
    )


def _second_half(patient: str) -> bool:
    return bool(hashlib.sha256(f"half\n{patient}".encode()).digest()[0] & 1)
