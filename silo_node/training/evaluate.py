"""The incoming model on the hospital's own test patients. Scores never leave: only bins, inside a masked sum."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from protocol import evaluation
from silo_node.imaging.cache import Pictures
from silo_node.training import batches, networks
from silo_node.training.errors import TrainingError
from silo_node.training.plan import Plan

_STATISTICS_IMAGES = 512


@dataclass(frozen=True, eq=False)
class Scored:
    """loss: mean cross-entropy, None without images. auc: None without both classes. histograms: [2, bins], total 2^20."""

    loss: float | None
    auc: float | None
    histograms: NDArray[np.int64] = field(repr=False)


def score(network: nn.Module, pictures: Pictures, labels: NDArray[np.int64], plan: Plan) -> Scored:
    """Score `pictures`; `labels` int64[n] of 0 and 1. Raises TrainingError LOSS_NOT_FINITE where a score is NaN."""
    if not len(pictures):
        return Scored(None, None, np.zeros((2, plan.bins), dtype=np.int64))
    logits = outputs(network, pictures, plan)
    if not np.isfinite(logits).all():
        raise TrainingError("LOSS_NOT_FINITE", "The model that came in gives scores that are not finite numbers.")
    # log(1 + exp(-z)) with z the logit towards the true class, in double precision.
    loss = float(np.logaddexp(0.0, np.where(labels == 1, -logits, logits)).mean())
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
    counts = evaluation.histograms(labels, probabilities, plan.bins)
    return Scored(loss, evaluation.auc(labels, logits), evaluation.normalise(counts))


def outputs(network: nn.Module, pictures: Pictures, plan: Plan) -> NDArray[np.float64]:
    """One logit a picture, float64[n]."""
    network.eval()
    device = networks.device_of(network)
    with torch.inference_mode():
        parts = [
            network(batches.standardised(batches.raw(pictures, indices, plan)).to(device)).reshape(-1).cpu()
            for indices in batches.in_order(len(pictures))
        ]
    return torch.cat(parts).double().numpy()


def refresh_statistics(network: nn.Module, pictures: Pictures, plan: Plan) -> None:
    """Batch normalisation only: estimate the running statistics afresh from the hospital's own training pictures.

    They are local (not shared), so they do not come with the model; estimating them makes a round depend on nothing but
    the incoming model and the cohort, also after a crash. Those of frozen layers came with the model and stay.
    """
    layers = networks.batch_norms(network, plan, frozen=False)
    if not layers:
        return
    network.eval()
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    with torch.inference_mode():
        device = networks.device_of(network)
        count = min(len(pictures), _STATISTICS_IMAGES)
        for indices in batches.in_order(count):
            if len(indices) > 1 or count == 1:
                network(batches.standardised(batches.raw(pictures, indices, plan)).to(device))
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value
    network.eval()
