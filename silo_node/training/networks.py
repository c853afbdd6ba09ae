"""MONAI networks by allowlist, for grey or RGB pictures and one output (a logit), and their tensor tables.

A hospital builds only what stands here, with only the arguments that stand here: none of them downloads or executes.
The number of dimensions, inputs and outputs comes from the plan's input and task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.networks import nets
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from protocol.initial_model import initial_tensor
from protocol.model_state import MAX_WORDS, ModelState, StateError, Table, TensorSpec, check_table, slices
from silo_node.training.errors import TrainingError, refused
from silo_node.training.plan import Plan, inside

_DENSE = frozenset({"act", "norm", "dropout_prob"})
_CONVOLUTIONS = frozenset(
    {"channels", "strides", "kernel_size", "num_res_units", "act", "norm", "dropout", "bias"}
)  # fmt: skip
# Not norm: MONAI 1.6 gives it to the first layer only, so a study would get batch normalisation unawares.
_RESNET = frozenset({"conv1_t_size", "conv1_t_stride", "no_max_pool", "shortcut_type", "widen_factor"})


def _densenet(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda plan, args: make(spatial_dims=2, in_channels=plan.channels, out_channels=1, **args)


def _resnet(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda plan, args: make(spatial_dims=2, n_input_channels=plan.channels, num_classes=1, **args)


def _efficientnet(plan: Plan, args: dict[str, Any]) -> nn.Module:
    return nets.EfficientNetBN(**args, pretrained=False, spatial_dims=2, in_channels=plan.channels, num_classes=1)


def _classifier(plan: Plan, args: dict[str, Any]) -> nn.Module:
    return nets.Classifier(in_shape=(plan.channels, *plan.size), classes=1, last_act=None, **args)


def _regressor(plan: Plan, args: dict[str, Any]) -> nn.Module:
    return nets.Regressor(in_shape=(plan.channels, *plan.size), out_shape=(1,), **args)


NETWORKS: Mapping[str, tuple[frozenset[str], Callable[[Plan, dict[str, Any]], nn.Module]]] = {
    "DenseNet": (
        _DENSE | {"init_features", "growth_rate", "block_config", "bn_size"}, _densenet(nets.DenseNet)),
    "DenseNet121": (_DENSE, _densenet(nets.DenseNet121)),
    "DenseNet169": (_DENSE, _densenet(nets.DenseNet169)),
    "DenseNet201": (_DENSE, _densenet(nets.DenseNet201)),
    "EfficientNetBN": (frozenset({"model_name", "norm"}), _efficientnet),
    "ResNet": (_RESNET | {"block", "layers", "block_inplanes"}, _resnet(nets.ResNet)),
    "ResNet10": (_RESNET, _resnet(nets.resnet10)),
    "ResNet18": (_RESNET, _resnet(nets.resnet18)),
    "ResNet34": (_RESNET, _resnet(nets.resnet34)),
    "ResNet50": (_RESNET, _resnet(nets.resnet50)),
    "Classifier": (_CONVOLUTIONS, _classifier),
    "Regressor": (_CONVOLUTIONS, _regressor),
}  # fmt: skip


def build(plan: Plan) -> nn.Module:
    """The plan's network, float32, on the default device, with MONAI's own (not the study's) weights.

    Raises TrainingError PLAN_REFUSED for a name or argument that is not allowed, or that MONAI does not accept.
    """
    name, args = plan.network.name, plan.network.args
    if name not in NETWORKS:
        raise refused(f"The plan's network is not on this hospital's list: {', '.join(sorted(NETWORKS))}.")
    allowed, make = NETWORKS[name]
    unknown = sorted(set(args) - allowed)
    if unknown:
        raise refused(
            f"The plan gives {name} an argument that is not allowed; allowed are: {', '.join(sorted(allowed))}."
        )
    try:
        network = make(plan, {key: _tuples(value) for key, value in args.items()})
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError) as error:
        raise refused(f"MONAI's {name} does not accept the plan's arguments.") from error
    except (RuntimeError, MemoryError, OverflowError, ZeroDivisionError) as error:
        raise refused(f"MONAI's {name} cannot be built with the plan's arguments.") from error
    for found, value in network.named_parameters():
        value.requires_grad_(not plan.freezes(found))
    return network.to(memory_format=torch.channels_last)  # a quarter faster on processors


def table_of(plan: Plan) -> Table:
    """The tensor table, without allocating a weight: parameters are shared, float buffers local, integers left out.

    What the plan freezes is frozen, parameters and float buffers alike: a frozen normalisation keeps its statistics.
    """
    with torch.device("meta"):
        return _table(build(plan), plan)


def _table(network: nn.Module, plan: Plan) -> Table:
    named = [(name, value, "shared") for name, value in network.named_parameters()]
    named += [(name, value, "local") for name, value in network.named_buffers() if value.is_floating_point()]
    unknown = [layer for layer in plan.frozen if not any(inside(layer, name) for name, _, _ in named)]
    if unknown:
        raise refused(f"The plan freezes {unknown[0]}, which the network does not have.")
    kinds = {name: "frozen" if plan.freezes(name) else kind for name, _, kind in named}
    if "shared" not in kinds.values():
        raise refused("The plan freezes the whole network: nothing would be trained.")
    try:
        return check_table(tuple(TensorSpec(name, tuple(value.shape), kinds[name]) for name, value, _ in named))
    except StateError as error:
        raise refused(
            f"The plan's network has a layer of no size, shares no weight, or more than {MAX_WORDS}."
        ) from error


def load(network: nn.Module, state: ModelState, plan: Plan) -> None:
    """Write the state's shared and frozen tensors into the network; local buffers start afresh.

    Raises TrainingError STATE_DIFFERS where the state is not one of this network.
    """
    if _table(network, plan) != state.table:
        raise TrainingError("STATE_DIFFERS", "The model that came in does not fit the plan's network.")
    buffers = dict(network.named_buffers())
    tensors = {**buffers, **dict(network.named_parameters())}
    with torch.no_grad():
        for spec, where in slices(state.table):
            # A copy: the vector may be a read-only memory map.
            tensors[spec.name].copy_(torch.from_numpy(state.vector[where].copy()).reshape(spec.shape))
        for spec in state.table:
            if spec.kind == "local":
                buffers[spec.name].copy_(torch.from_numpy(initial_tensor(spec, 0)))


def device_of(network: nn.Module) -> torch.device:
    """Where the network's weights are."""
    return next(network.parameters()).device


def batch_norms(network: nn.Module, plan: Plan, *, frozen: bool) -> list[_BatchNorm]:
    """The layers with running statistics that the plan freezes, or does not."""
    return [
        layer
        for name, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.track_running_stats
        and plan.freezes(f"{name}.running_mean") is frozen
    ]


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, which MONAI expects: ["group", {"num_groups": 4}]."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(inner) for inner in value)
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return value
