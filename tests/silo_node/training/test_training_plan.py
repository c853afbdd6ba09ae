"""A plan is data: nothing in it is executed, and only allowed things are built."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.plan import demo_plan
from protocol.manifest_schema import Plan as ManifestPlan
from silo_node.training import plan as plans
from silo_node.training import trainer
from silo_node.training.errors import TrainingError

Change = Callable[[dict[str, Any]], object]


def _refused(plan: object) -> str:
    with pytest.raises(TrainingError) as caught:
        trainer.build_table(plan)
    assert caught.value.code == "PLAN_REFUSED"
    return caught.value.sentence


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["network"]["args"].update(act="$__import__('os').system('touch /tmp/executed')"),
        lambda plan: plan["network"]["args"].update(act={"_target_": "os.system", "command": "true"}),
        lambda plan: plan["network"].update(name="@network"),
        lambda plan: plan["transforms"].append({"name": "RandFlip", "args": {"prob": "$1"}}),
        lambda plan: plan["transforms"].append({"name": "RandFlip", "args": {"$x": 1}}),
        lambda plan: plan["input"].update(window="%file.json"),
    ],
)
def test_expressions_and_references_are_refused_anywhere(plan: dict[str, Any], change: Change) -> None:
    change(plan)
    assert "never run" in _refused(plan) or "only plain values" in _refused(plan)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["network"].update(name="UNet"),
        lambda plan: plan["network"].update(name="__class__"),
        lambda plan: plan["network"]["args"].update(pretrained=True),
        lambda plan: plan["network"]["args"].update(channels=[0, 8]),
        lambda plan: plan["network"]["args"].update(channels=["a", "b"]),
        lambda plan: plan["network"]["args"].update(norm=["group", {"num_groups": 3}]),
        lambda plan: plan["network"]["args"].update(norm="nonsense"),
        lambda plan: plan["transforms"].append({"name": "Lambda", "args": {}}),
        lambda plan: plan["transforms"].append({"name": "RandLambda", "args": {"func": "print"}}),
        lambda plan: plan["transforms"].append({"name": "RandFlip", "args": {"prob": 2.0}}),
        lambda plan: plan["transforms"].append({"name": "RandFlip", "args": {"probability": 0.5}}),
        lambda plan: plan["transforms"].append({"name": "RandAffine", "args": {"rotate_range": "x"}}),
        lambda plan: plan["transforms"].append({"name": "RandFlip", "args": {"spatial_axis": 7}}),
        lambda plan: plan.update(task="segmentation"),
        lambda plan: plan.update(loss="mse"),
        lambda plan: plan.update(batch=0),
        lambda plan: plan.update(batch=True),
        lambda plan: plan.update(local_epochs=1.5),
        lambda plan: plan["input"].update(size=[24]),
        lambda plan: plan["input"].update(size=[100_000, 24]),
        lambda plan: plan["input"].update(channels=2),
        lambda plan: plan["optimiser"].update(name="lbfgs"),
        lambda plan: plan["optimiser"].update(lr=float("nan")),
        lambda plan: plan["optimiser"].update(lr=-1.0),
        lambda plan: plan["optimiser"].update(weight_decay=object()),
        lambda plan: plan.pop("optimiser"),
        lambda plan: plan.pop("evaluation"),
    ],
)
def test_what_is_not_allowed_is_refused_before_anything_is_trained(plan: dict[str, Any], change: Change) -> None:
    change(plan)
    assert len(_refused(plan)) > 20


@pytest.mark.parametrize("plan", [None, [], "plan", {}, 3])
def test_what_is_no_plan_is_refused(plan: object) -> None:
    _refused(plan)


def test_the_manifests_model_and_plain_values_are_the_same_plan(plan: dict[str, Any]) -> None:
    model = ManifestPlan.model_validate_json(__import__("json").dumps(plan))
    assert plans.parse(model) == plans.parse(plan)
    assert trainer.build_table(model) == trainer.build_table(plan)


def test_the_demos_plan_is_a_valid_manifest_plan_of_some_ten_thousand_weights() -> None:
    plan = demo_plan(max_rounds=7, seed=5)
    ManifestPlan.model_validate_json(__import__("json").dumps(plan))
    table = trainer.build_table(plan)
    assert 10_000 < sum(spec.size for spec in table if spec.kind == "shared") < 60_000
    assert {spec.kind for spec in table} == {"shared"}  # nothing stays local: normalisation is by groups
    assert plan["stopping"]["max_rounds"] == 7 and plan["initial"]["seed"] == 5


def test_pictures_are_shared_between_plans_that_see_the_same_pixels(plan: dict[str, Any]) -> None:
    other = copy.deepcopy(plan)
    other["optimiser"]["lr"], other["local_epochs"], other["transforms"] = 0.1, 9, []
    assert plans.pixels_digest(plans.parse(plan)) == plans.pixels_digest(plans.parse(other))
    for change in ({"size": [24, 25]}, {"window": "dicom"}):
        other["input"] = {**plan["input"], **change}
        assert plans.pixels_digest(plans.parse(plan)) != plans.pixels_digest(plans.parse(other))


def test_neither_the_trainer_nor_a_constant_round_imports_torch() -> None:
    code = (
        "import sys; from silo_node.training import trainer; from protocol.initial_model import initial_state; from demo.plan"
        " import demo_plan; p = demo_plan(); p['network'] = {'name': 'constant', 'args': {'parameters': 5}};"
        " s = initial_state(trainer.build_table(p), 1);"
        " r = trainer.run(p, s, None, folder='/nonexistent', purpose='train', seed=1);"
        " assert r.update.tolist() == [2**-10] * 5, r.update;"
        " assert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["network", "input", "transforms", "optimiser", "evaluation", "batch", "loss"]), _JSON)
def test_no_value_whatever_in_a_plan_is_anything_but_a_plan_or_a_refusal(part: str, value: object) -> None:
    plan = demo_plan()
    plan[part] = value
    try:
        plans.parse(plan)
    except TrainingError as error:
        assert error.code == "PLAN_REFUSED"
