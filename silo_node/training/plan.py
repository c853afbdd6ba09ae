"""What a manifest's `plan` says, checked once more by the hospital that is going to run it. Knows no torch.

A plan is data. Text that MONAI would take for an expression or a reference (`$`, `@`, `%`, names with `_` in front) is
refused anywhere in it, although nothing here would execute it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocol import canonical
from silo_node.imaging import decode
from silo_node.training.errors import refused

CONSTANT = "constant"
LOSSES = ("bce", "bce_logit_adjusted")
OPTIMISERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True)
class Step:
    """A network or a transform: its MONAI name and arguments (plain JSON values)."""

    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The part of a plan that a hospital runs. `size` (H, W) in pixels; `batch` in images; `bins` a class; `frozen`: names
    of layers that are not trained."""

    network: Step
    size: tuple[int, int]
    channels: int
    window: str
    transforms: tuple[Step, ...]
    loss: str
    optimiser: str
    lr: float
    weight_decay: float
    batch: int
    local_epochs: int
    bins: int
    frozen: tuple[str, ...]

    def freezes(self, tensor: str) -> bool:
        """Whether a tensor of this name stays as the first model has it."""
        return any(inside(layer, tensor) for layer in self.frozen)


def inside(layer: str, tensor: str) -> bool:
    """Whether `layer` is the tensor's name, or what stands before one of its dots."""
    return tensor == layer or tensor.startswith(layer + ".")


def parse(plan: Any) -> Plan:
    """Read a plan: the manifest's model (pydantic) or the same as plain JSON values.

    Raises TrainingError PLAN_REFUSED. Whether the network and the transforms are allowed, their builders decide.
    """
    body = plan.model_dump(mode="json") if hasattr(plan, "model_dump") else plan
    _plain(body)
    try:
        entry = body["input"]
        height, width = entry["size"]
        found = Plan(
            network=Step(body["network"]["name"], dict(body["network"]["args"])),
            size=(height, width),
            channels=entry["channels"],
            window=entry["window"],
            transforms=tuple(Step(step["name"], dict(step["args"])) for step in body["transforms"]),
            loss=body["loss"],
            optimiser=body["optimiser"]["name"],
            lr=float(body["optimiser"]["lr"]),
            weight_decay=float(body["optimiser"]["weight_decay"]),
            batch=body["batch"],
            local_epochs=body["local_epochs"],
            bins=body["evaluation"]["bins"],
            frozen=tuple(body["frozen"]),
        )
        task = body["task"]
    except (KeyError, TypeError, ValueError) as error:
        raise refused("The plan lacks a part, or one is of the wrong kind.") from error
    _check(found, task)
    return found


def pixels_digest(plan: Plan) -> str:
    """Names what decides a cached picture's bits: plans that differ elsewhere share their decoded pictures."""
    return canonical.digest(
        canonical.encode({"size": list(plan.size), "window": plan.window, "decoder": decode.VERSION})
    )


def _check(plan: Plan, task: Any) -> None:
    whole = {"size": plan.size[0], "size ": plan.size[1], "batch": plan.batch, "local_epochs": plan.local_epochs}
    for name, value in {**whole, "bins": plan.bins, "channels": plan.channels}.items():
        if type(value) is not int or value < 1:
            raise refused(f"The plan's {name.strip()} must be a whole number from 1 on.")
    if not all(isinstance(layer, str) and layer for layer in plan.frozen):
        raise refused("The plan's frozen layers must be names.")
    if max(plan.size) > 4096:
        raise refused("The plan's pictures may have 4096 pixels a side at most.")
    if plan.channels not in (1, 3):
        raise refused("The plan's input must have 1 channel, or 3 that repeat it.")
    for name, value, allowed in (
        ("task", task, ("binary",)),
        ("window", plan.window, decode.WINDOWS),
        ("loss", plan.loss, LOSSES),
        ("optimiser", plan.optimiser, OPTIMISERS),
    ):
        if value not in allowed:
            raise refused(f"The plan's {name} must be one of: {', '.join(allowed)}.")
    if not (math.isfinite(plan.lr) and plan.lr > 0 and math.isfinite(plan.weight_decay) and plan.weight_decay >= 0):
        raise refused("The plan's learning rate must be above 0 and its weight decay not below 0.")


def _plain(value: Any, depth: int = 0) -> None:
    if depth > 12:
        raise refused("The plan is nested too deeply.")
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise refused("The plan holds text that MONAI would execute or follow ($, @, %): only plain values are run.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or key.startswith("_"):
                raise refused("The plan holds a name from which MONAI would build an object (_): never run.")
            _plain(key, depth + 1)
            _plain(inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _plain(inner, depth + 1)
    elif not (value is None or isinstance(value, (str, int, float, bool))):
        raise refused("The plan holds something that is not a plain value.")
