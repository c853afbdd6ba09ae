"""Scoring: what is binned, and what batch normalisation does without shared statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protocol import evaluation
from protocol.initial_model import initial_state
from silo_node.imaging.cache import Cache
from silo_node.imaging.cohort import Cohort
from silo_node.training import batches, evaluate, networks, trainer
from silo_node.training import plan as plans


def _ready(plan: dict[str, Any], cohort: Cohort, folder: Path) -> tuple[Any, torch.nn.Module, Any, np.ndarray]:
    found = plans.parse(plan)
    network = networks.build(found)
    networks.load(network, initial_state(trainer.build_table(plan), 3), found)
    store = Cache(folder, plans.pixels_digest(found), size=found.size, window=found.window)
    store.fill(cohort.train)
    labels = np.array([item.label for item in cohort.train])
    return found, network, store.open(cohort.train), labels


def test_scores_are_binned_as_probabilities_and_give_the_same_auc(
    plan: dict[str, Any], cohort_of: Callable[..., Cohort], tmp_path: Path
) -> None:
    plan["evaluation"]["bins"] = 1024
    found, network, pictures, labels = _ready(plan, cohort_of(), tmp_path / "cache")
    scored = evaluate.score(network, pictures, labels, found)
    logits = evaluate.outputs(network, pictures, found)
    assert scored.auc == evaluation.auc(labels, logits)
    binned = evaluation.auc_from_histograms(scored.histograms)
    assert binned is not None and scored.auc is not None and abs(binned - scored.auc) < 0.05
    probabilities = 1 / (1 + np.exp(-logits))
    expected = -np.mean(np.log(np.where(labels == 1, probabilities, 1 - probabilities)))
    assert scored.loss is not None and abs(scored.loss - expected) < 1e-9


def test_nothing_to_score_is_no_score(plan: dict[str, Any], cohort_of: Callable[..., Cohort], tmp_path: Path) -> None:
    found, network, *_ = _ready(plan, cohort_of(), tmp_path / "cache")
    nothing = Cache(tmp_path / "cache", plans.pixels_digest(found), size=found.size).open([])
    scored = evaluate.score(network, nothing, np.array([], dtype=np.int64), found)
    assert (scored.loss, scored.auc) == (None, None) and not scored.histograms.any()


def test_batch_statistics_are_those_of_the_hospitals_own_pictures(
    plan: dict[str, Any], cohort_of: Callable[..., Cohort], tmp_path: Path
) -> None:
    """With one batch of pictures, scoring with fresh statistics is scoring with the batch's own."""
    plan["network"]["args"]["norm"] = "batch"
    found, network, pictures, _ = _ready(plan, cohort_of(), tmp_path / "cache")
    evaluate.refresh_statistics(network, pictures, found)
    scored = evaluate.outputs(network, pictures, found)
    network.train()
    with torch.no_grad():
        whole = batches.standardised(batches.raw(pictures, np.arange(len(pictures)), found))
        expected = network(whole).reshape(-1).double().numpy()
    assert len(pictures) <= 64 and np.abs(scored - expected).max() < 1e-3
    assert all(layer.momentum == 0.1 for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d))
