"""From cached pictures to the network's input.

Every picture is brought to mean 0 and spread 1 by itself, after the random transforms: makers, doses and windows differ
between hospitals, and a picture's own scale is the one thing that all of them have.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from silo_node.imaging.cache import Pictures
from silo_node.training.plan import Plan


def raw(pictures: Pictures, indices: NDArray[np.int64], plan: Plan) -> Tensor:
    """[B, C, H, W] float32 in 0..1; a plan with 3 channels gets the grey picture three times."""
    batch = torch.from_numpy(pictures.batch(indices))[:, None]
    return batch.expand(-1, plan.channels, -1, -1) if plan.channels > 1 else batch


def standardised(batch: Tensor) -> Tensor:
    """Each picture with mean 0 and spread 1, in the memory layout that convolutions like. An even picture becomes 0."""
    spread, mean = torch.std_mean(batch, dim=(1, 2, 3), keepdim=True, correction=0)
    return ((batch - mean) / spread.clamp_min(1e-3)).contiguous(memory_format=torch.channels_last)


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices of all `count` pictures in random order, in batches of `size`.

    A last batch of one is left out where there are others: normalisation over a batch has no spread there.
    """
    order = torch.randperm(count, generator=generator).numpy()
    for start in range(0, count, size):
        part = order[start : start + size]
        if len(part) > 1 or count <= size:
            yield part


def in_order(count: int, size: int = 64) -> Iterator[NDArray[np.int64]]:
    """Indices of all pictures, in order."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
