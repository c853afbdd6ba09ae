"""Frozen layers: in the model, never in the update, and no value of them moves in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocol.initial_model import initial_state, pretrained_state
from protocol.model_state import slices, update_words, words
from silo_node.imaging import cache
from silo_node.imaging.cohort import Cohort
from silo_node.training import evaluate, local_training, networks, trainer
from silo_node.training import plan as plans
from silo_node.training.errors import TrainingError

FIRST = "net.layer_0"


@pytest.fixture
def frozen(plan: dict[str, Any]) -> dict[str, Any]:
    plan["network"]["args"] |= {"norm": "batch", "channels": [8, 8, 16], "strides": [2, 2, 2]}
    plan["frozen"] = [FIRST]
    return plan


def test_a_frozen_layer_is_in_the_state_and_not_in_the_update(frozen: dict[str, Any]) -> None:
    table = trainer.build_table(frozen)
    kinds = {spec.name: spec.kind for spec in table}
    assert {kind for name, kind in kinds.items() if name.startswith(FIRST + ".")} == {"frozen"}
    assert {kind for name, kind in kinds.items() if not name.startswith(FIRST + ".")} == {"shared", "local"}
    assert any(name.endswith("running_mean") and kind == "frozen" for name, kind in kinds.items())
    assert 0 < update_words(table) < words(table)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_no_frozen_value_moves_in_training(
    frozen: dict[str, Any], cohort_of: Callable[..., Cohort], tmp_path: Path, optimiser: str
) -> None:
    frozen["optimiser"] = {"name": optimiser, "lr": 0.05, "weight_decay": 0.1}
    found = plans.parse(frozen)
    table = trainer.build_table(frozen)
    state = initial_state(table, 5)
    for spec, where in slices(table):
        if spec.kind == "frozen" and spec.name.endswith("running_mean"):
            state.vector[where] = 0.125  # statistics that came with a pretrained model
    cohort = cohort_of()
    pictures = cache.Cache(tmp_path, plans.pixels_digest(found), size=found.size, window=found.window)
    pictures.fill(cohort.train)
    train = pictures.open(cohort.train)
    network = networks.build(found)
    networks.load(network, state, found)
    evaluate.refresh_statistics(network, train, found)
    local_training.train(network, train, np.array([item.label for item in cohort.train]), found, seed=1)
    tensors = {**dict(network.named_buffers()), **dict(network.named_parameters())}
    for spec, _ in slices(table):
        value = tensors[spec.name].detach().numpy()
        assert np.array_equal(value, state.tensor(spec.name)) == (spec.kind == "frozen"), spec.name
    local = [spec.name for spec in table if spec.kind == "local" and spec.name.endswith("running_mean")]
    assert local and all(bool(torch.any(tensors[name] != 0)) for name in local)
    update = local_training.update_of(network, state)
    assert update.shape == (update_words(table),) and (update != 0).mean() > 0.9


def test_a_round_gives_an_update_of_the_trained_weights_only(
    frozen: dict[str, Any], cohort_of: Callable[..., Cohort], tmp_path: Path
) -> None:
    state = initial_state(trainer.build_table(frozen), 5)
    for purpose in ("train", "evaluate"):
        result = trainer.run(frozen, state, cohort_of(), folder=tmp_path / "cache", purpose=purpose, seed=1)
        assert result.update.shape == (update_words(state.table),)
        assert result.update.any() == (purpose == "train")


def test_a_pretrained_model_gives_the_frozen_layers_their_values_and_statistics(plan: dict[str, Any]) -> None:
    plan["network"]["args"]["norm"] = "batch"
    plan["frozen"] = []
    whole = tuple(
        type(spec)(spec.name, spec.shape, "shared")
        for spec in trainer.build_table(plan)
        if spec.kind == "shared" or spec.name.startswith(FIRST + ".")
    )
    given = initial_state(whole, 9)
    plan["frozen"] = [FIRST]
    state = pretrained_state(trainer.build_table(plan), given)
    for spec, _ in slices(state.table):
        assert np.array_equal(state.tensor(spec.name), given.tensor(spec.name))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["net.layer_9"], "freezes net.layer_9, which the network does not have"),
        (["net.layer"], "freezes net.layer, which the network does not have"),
        (["net", "final", "reshape"], "freezes reshape, which"),
        (["net", "final"], "freezes the whole network"),
        ([""], "frozen layers must be names"),
        ([7], "frozen layers must be names"),
    ],
)
def test_what_cannot_be_frozen_is_refused(plan: dict[str, Any], layers: list[Any], said: str) -> None:
    plan["frozen"] = layers
    with pytest.raises(TrainingError, match=said) as caught:
        trainer.build_table(plan)
    assert caught.value.code == "PLAN_REFUSED"


def test_a_plan_that_freezes_nothing_has_to_say_so(plan: dict[str, Any]) -> None:
    del plan["frozen"]
    with pytest.raises(TrainingError, match="lacks a part"):
        trainer.build_table(plan)


def test_the_constant_has_nothing_to_freeze(plan: dict[str, Any]) -> None:
    plan["network"], plan["frozen"] = {"name": "constant", "args": {"parameters": 5}}, ["constant"]
    with pytest.raises(TrainingError, match="nothing that could be frozen"):
        trainer.build_table(plan)
