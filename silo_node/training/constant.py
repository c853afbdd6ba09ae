"""A trainer that trains nothing: it adds a constant to every weight. For benchmarks of everything else; numpy only.

A hospital has to allow it for itself (`allow_constant` in silo.toml): a study that trains nothing needs no image.
"""

from __future__ import annotations

import time

import numpy as np

from protocol.model_state import MAX_WORDS, ModelState, Table, TensorSpec
from silo_node.training.errors import TrainingError, refused
from silo_node.training.plan import Plan
from silo_node.training.result import TrainResult

STEP = np.float32(2.0**-10)
"""What is added to each weight: exact in float32 and in every fixed-point form with at least 10 fraction bits."""


def table_of(plan: Plan) -> Table:
    """One tensor of `parameters` weights. Raises TrainingError PLAN_REFUSED."""
    parameters = plan.network.args.get("parameters")
    if set(plan.network.args) != {"parameters"} or type(parameters) is not int or not 1 <= parameters <= MAX_WORDS:
        raise refused(f"The network constant takes one argument, parameters: a whole number from 1 to {MAX_WORDS}.")
    if plan.frozen:
        raise refused("The network constant has nothing that could be frozen.")
    return (TensorSpec("constant", (parameters,), "shared"),)


def run(plan: Plan, state: ModelState, *, purpose: str) -> TrainResult:
    """The constant for purpose "train", zeros for "evaluate"; there is nothing to score."""
    began = time.perf_counter()
    if state.table != table_of(plan):
        raise TrainingError("STATE_DIFFERS", "The model that came in does not fit the plan's network.")
    update = np.full(state.vector.shape, STEP if purpose == "train" else np.float32(0), dtype=np.float32)
    return TrainResult(
        update=update,
        loss=None,
        auc=None,
        histograms=np.zeros((2, plan.bins), dtype=np.int64),
        train_seconds=time.perf_counter() - began,
        evaluate_seconds=0.0,
    )
