"""Networks: the table that all silos agree on, and the vector in its order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from protocol.initial_model import initial_state
from protocol.model_state import ModelState, TensorSpec, words
from silo_node.training import local_training, networks, trainer
from silo_node.training import plan as plans
from silo_node.training.errors import TrainingError

GROUP = ["group", {"num_groups": 4}]
EXAMPLES: dict[str, dict[str, Any]] = {
    "DenseNet": {"init_features": 8, "growth_rate": 8, "block_config": [2, 2], "bn_size": 2, "norm": GROUP},
    "EfficientNetBN": {"model_name": "efficientnet-b0", "norm": GROUP},
    "ResNet": {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 8, 8, 8]},
    "ResNet18": {"widen_factor": 0.125},
    "Classifier": {"channels": [8, 8], "strides": [2, 2], "norm": GROUP},
    "Regressor": {"channels": [8, 8], "strides": [2, 2], "norm": GROUP},
    "DenseNet121": {"norm": GROUP},
}


def _with(plan: dict[str, Any], name: str, args: dict[str, Any] | None = None) -> dict[str, Any]:
    plan["network"] = {"name": name, "args": EXAMPLES[name] if args is None else args}
    plan["input"]["size"] = [32, 32]
    return plan


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_network_of_the_list_gives_one_logit_a_picture(plan: dict[str, Any], name: str) -> None:
    found = plans.parse(_with(plan, name))
    network = networks.build(found)
    networks.load(network, initial_state(trainer.build_table(plan), 1), found)
    network.eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 1, 32, 32)).reshape(-1).shape == (2,)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_vector_goes_in_and_comes_out_in_the_tables_order(plan: dict[str, Any], name: str) -> None:
    found = plans.parse(_with(plan, name))
    table = trainer.build_table(plan)
    state = initial_state(table, 7)
    network = networks.build(found)
    networks.load(network, state, found)
    assert not local_training.update_of(network, state).any()
    other = ModelState(table, np.zeros(words(table), dtype="<f4"))
    assert np.array_equal(local_training.update_of(network, other), state.vector)
    for spec in table:
        if spec.kind == "shared":
            parameter = dict(network.named_parameters())[spec.name]
            assert np.array_equal(parameter.detach().numpy(), state.tensor(spec.name))


def test_running_statistics_stay_local_and_counters_are_not_in_the_table(plan: dict[str, Any]) -> None:
    table = trainer.build_table(_with(plan, "Classifier", {"channels": [8, 8], "strides": [2, 2], "norm": "batch"}))
    local = {spec.name.rsplit(".", 1)[1] for spec in table if spec.kind == "local"}
    assert local == {"running_mean", "running_var"}
    assert not any("num_batches" in spec.name for spec in table)


def test_a_table_of_a_billion_weights_takes_no_memory(plan: dict[str, Any]) -> None:
    args = {"channels": [6000, 6000], "strides": [2, 2]}
    assert words(trainer.build_table(_with(plan, "Classifier", args))) > 10**9


def test_a_model_of_another_network_is_refused(plan: dict[str, Any]) -> None:
    found = plans.parse(plan)
    network = networks.build(found)
    state = ModelState((TensorSpec("weight", (3,)),), np.zeros(3, dtype="<f4"))
    with pytest.raises(TrainingError) as caught:
        networks.load(network, state, found)
    assert caught.value.code == "STATE_DIFFERS"
