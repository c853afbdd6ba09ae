"""Local training: the incoming model, `local_epochs` over the hospital's training pictures, and the difference.

The same plan, state, cohort, seed and number of threads give the same bits. Logit adjustment (Menon 2021) takes the
hospital's own share of classes out of the logits, so that all hospitals learn the same balanced scores; one with a single
class then hardly pushes the others' model (its gradient is divided by its number of pictures).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from protocol.model_state import ModelState, slices, update_words
from silo_node.imaging.cache import Pictures
from silo_node.training import batches, networks, transforms
from silo_node.training.errors import TrainingError
from silo_node.training.plan import Plan


def train(
    network: nn.Module,
    pictures: Pictures,
    labels: NDArray[np.int64],
    plan: Plan,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Train in place; `progress(epoch, of)` after each. Answers the mean loss of the last epoch.

    Raises TrainingError LOSS_NOT_FINITE.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # drop-out draws from torch's own generator
    transform = transforms.build(plan.transforms)
    loss_of = _loss(plan, labels)
    optimiser = _optimiser(network, plan)
    device = networks.device_of(network)
    truth = torch.from_numpy(labels.astype(np.float32))
    network.train()
    for layer in networks.batch_norms(network, plan, frozen=True):
        layer.eval()
    mean = math.nan
    for epoch in range(plan.local_epochs):
        total, seen = torch.zeros((), dtype=torch.float64, device=device), 0
        for indices in batches.shuffled(len(pictures), plan.batch, generator):
            batch = batches.standardised(transform(batches.raw(pictures, indices, plan), generator)).to(device)
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(network(batch).reshape(-1), truth[indices].to(device))
            loss.backward()
            optimiser.step()
            total += loss.detach().double() * len(indices)
            seen += len(indices)
        mean = float(total) / seen
        if not math.isfinite(mean):
            raise TrainingError(
                "LOSS_NOT_FINITE", "The loss became infinite or not a number: the plan's rate is too high."
            )
        if progress is not None:
            progress(epoch + 1, plan.local_epochs)
    return mean


def update_of(network: nn.Module, state: ModelState) -> NDArray[np.float32]:
    """Trained minus incoming, float32[d] of the shared tensors in the table's order. Raises TrainingError LOSS_NOT_FINITE."""
    parameters = dict(network.named_parameters())
    update = np.empty(update_words(state.table), dtype=np.float32)
    start = 0
    for spec, where in slices(state.table):
        if spec.kind == "shared":
            trained = parameters[spec.name].detach().contiguous().cpu().numpy().reshape(-1)
            np.subtract(trained, state.vector[where], out=update[start : start + spec.size])
            start += spec.size
    if not np.isfinite(update).all():
        raise TrainingError("LOSS_NOT_FINITE", "Training gave weights that are not finite numbers.")
    return update


def _loss(plan: Plan, labels: NDArray[np.int64]) -> Callable[[Tensor, Tensor], Tensor]:
    if plan.loss == "bce":
        return binary_cross_entropy_with_logits
    # One imagined picture of each class: a hospital with one class keeps a finite prior.
    positives, count = int(labels.sum()), len(labels)
    prior = math.log((positives + 1) / (count - positives + 1))
    return lambda logits, truth: binary_cross_entropy_with_logits(logits + prior, truth)


def _optimiser(network: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Fresh in each round: its moments would be an update's memory. sgd has Nesterov momentum 0.9."""
    parameters = [value for value in network.parameters() if value.requires_grad]
    rate, decay = plan.lr, plan.weight_decay
    if plan.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
