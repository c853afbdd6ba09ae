"""What one round's training gives. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TrainResult:
    """One hospital's part of a round; all of it stays inside but what is masked.

    update: float32[d], trained minus incoming weights, in the table's order (zeros where only evaluated).
    loss: mean cross-entropy of the incoming model over the test images; None without test images.
    auc: of the incoming model on the test images; None where one class is missing.
    histograms: int64[2, bins] of its scores, normalised to a total of 2^20 (all zero without test images).
    train_seconds: decoding and training; evaluate_seconds: scoring.
    train_loss: mean loss of the last local epoch; None where nothing was trained.
    problems: code -> files that could not be decoded in this round and were left out.
    """

    update: NDArray[np.float32] = field(repr=False)
    loss: float | None
    auc: float | None
    histograms: NDArray[np.int64] = field(repr=False)
    train_seconds: float
    evaluate_seconds: float
    train_loss: float | None = None
    problems: Mapping[str, int] = field(default_factory=dict)
