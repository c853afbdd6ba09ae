"""MONAI's random transforms by allowlist, for a whole batch at once.

MONAI's own classes take one picture at a time and cost more than the training step of a small network. The functions
here have their names, arguments and meaning, draw one random value a picture, and run on [B, C, H, W] float32 in 0..1.
An argument that MONAI's class does not have is refused; one that has no meaning for a batch of pictures as well.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai import transforms as monai_transforms
from torch import Tensor
from torch.nn import functional

from silo_node.training.errors import refused
from silo_node.training.plan import Step

Transform = Callable[[Tensor, torch.Generator], Tensor]
_PADDING = ("zeros", "border", "reflection")


def build(steps: Sequence[Step]) -> Transform:
    """One function that applies all steps in order. Raises TrainingError PLAN_REFUSED."""
    functions = [_build(step) for step in steps]

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        for function in functions:
            batch = function(batch, generator)
        return batch

    return apply


def _build(step: Step) -> Transform:
    if step.name not in TRANSFORMS:
        raise refused(f"The plan's transform is not on this hospital's list: {', '.join(sorted(TRANSFORMS))}.")
    make = TRANSFORMS[step.name]
    try:
        inspect.signature(getattr(monai_transforms, step.name)).bind(**step.args)
        return make(**step.args)
    except (TypeError, ValueError, IndexError) as error:
        raise refused(f"The plan gives {step.name} an argument that is not allowed.") from error


def _flip(prob: float = 0.1, spatial_axis: int | Sequence[int] | None = None) -> Transform:
    prob = _probability(prob)
    if spatial_axis is None:
        spatial_axis = (0, 1)
    axes = [(2, 3)[axis] for axis in ([spatial_axis] if isinstance(spatial_axis, int) else spatial_axis)]

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        chosen = _chosen(batch, prob, generator)
        return torch.where(chosen[:, None, None, None], batch.flip(axes), batch)

    return apply


def _rotate(range_x: Any = 0.0, prob: float = 0.1, padding_mode: str = "border", keep_size: bool = True) -> Transform:
    if keep_size is not True:
        raise ValueError("keep_size")
    return _affine(prob=prob, rotate_range=range_x, padding_mode=padding_mode)


def _zoom(prob: float = 0.1, min_zoom: float = 0.9, max_zoom: float = 1.1, padding_mode: str = "edge") -> Transform:
    prob = _probability(prob)
    low, high = _number(min_zoom), _number(max_zoom)
    modes = {"edge": "border", "border": "border", "constant": "zeros", "zeros": "zeros", "reflect": "reflection"}
    if not 0.1 <= low <= high <= 10 or padding_mode not in modes:
        raise ValueError("zoom")

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        chosen = _chosen(batch, prob, generator)
        zoom = torch.where(chosen, _uniform(batch, low, high, generator), 1.0)
        matrix = torch.zeros(len(batch), 2, 3)
        matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / zoom
        return _resample(batch, matrix, modes[padding_mode])

    return apply


def _affine(
    prob: float = 0.1,
    rotate_range: Any = 0.0,
    translate_range: Any = (0.0, 0.0),
    scale_range: Any = (0.0, 0.0),
    shear_range: Any = (0.0, 0.0),
    padding_mode: str = "reflection",
) -> Transform:
    """Radians, pixels (rows, columns), fractions around 1, shear factors: each a range or the end of a symmetric one."""
    prob = _probability(prob)
    (turn,) = _ranges(rotate_range, 1)
    shifts, scales, shears = (_ranges(value, 2) for value in (translate_range, scale_range, shear_range))
    if padding_mode not in _PADDING or min(low for low, _ in scales) <= -1:
        raise ValueError("affine")

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        height, width = batch.shape[2:]
        on = _chosen(batch, prob, generator).float()
        angle, down, right, tall, wide, shear_0, shear_1 = (
            on * _uniform(batch, low, high, generator) for low, high in (turn, *shifts, *scales, *shears)
        )
        cos, sin = angle.cos(), angle.sin()
        # In rows and columns (y, x), as MONAI composes them: rotate, then shear, then scale, then translate.
        rotate = _matrices(cos, -sin, sin, cos)
        shear = _matrices(torch.ones_like(cos), shear_0, shear_1, torch.ones_like(cos))
        scale = _matrices(1 + tall, torch.zeros_like(cos), torch.zeros_like(cos), 1 + wide)
        linear = rotate @ shear @ scale
        shift = (rotate @ torch.stack([down, right], dim=1)[:, :, None])[:, :, 0]
        # From pixels in (y, x) to torch's (x, y) in -1..1.
        matrix = torch.stack(
            [
                torch.stack([linear[:, 1, 1], linear[:, 1, 0] * height / width, shift[:, 1] * 2 / width], dim=1),
                torch.stack([linear[:, 0, 1] * width / height, linear[:, 0, 0], shift[:, 0] * 2 / height], dim=1),
            ],
            dim=1,
        )
        return _resample(batch, matrix, padding_mode)

    return apply


def _noise(prob: float = 0.1, mean: float = 0.0, std: float = 0.1, sample_std: bool = True) -> Transform:
    prob, mean, std = _probability(prob), _number(mean), _number(std)
    if std < 0:
        raise ValueError("std")

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        on = _chosen(batch, prob, generator).float()
        sigma = _uniform(batch, 0.0, std, generator) if sample_std else torch.full_like(on, std)
        noise = torch.randn(batch.shape, generator=generator) * sigma[:, None, None, None] + mean
        return batch + noise * on[:, None, None, None]

    return apply


def _scale_intensity(factors: Any, prob: float = 0.1) -> Transform:
    prob = _probability(prob)
    ((low, high),) = _ranges(factors, 1)

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        factor = _chosen(batch, prob, generator).float() * _uniform(batch, low, high, generator)
        return batch * (1 + factor)[:, None, None, None]

    return apply


def _shift_intensity(offsets: Any, prob: float = 0.1) -> Transform:
    prob = _probability(prob)
    ((low, high),) = _ranges(offsets, 1)

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        offset = _chosen(batch, prob, generator).float() * _uniform(batch, low, high, generator)
        return batch + offset[:, None, None, None]

    return apply


def _contrast(prob: float = 0.1, gamma: Any = (0.5, 4.5)) -> Transform:
    prob = _probability(prob)
    low, high = (0.5, _number(gamma)) if isinstance(gamma, (int, float)) else (_number(end) for end in gamma)
    if not 0 < low <= high:
        raise ValueError("gamma")

    def apply(batch: Tensor, generator: torch.Generator) -> Tensor:
        on = _chosen(batch, prob, generator)
        power = torch.where(on, _uniform(batch, low, high, generator), 1.0)[:, None, None, None]
        least, most = batch.amin((1, 2, 3), keepdim=True), batch.amax((1, 2, 3), keepdim=True)
        span = (most - least).clamp_min(1e-7)
        return torch.where(on[:, None, None, None], ((batch - least) / span).pow(power) * span + least, batch)

    return apply


TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    "RandFlip": _flip,
    "RandRotate": _rotate,
    "RandZoom": _zoom,
    "RandAffine": _affine,
    "RandGaussianNoise": _noise,
    "RandScaleIntensity": _scale_intensity,
    "RandShiftIntensity": _shift_intensity,
    "RandAdjustContrast": _contrast,
}


def _resample(batch: Tensor, matrix: Tensor, padding_mode: str) -> Tensor:
    grid = functional.affine_grid(matrix, list(batch.shape), align_corners=False)
    return functional.grid_sample(batch, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def _matrices(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], dim=1), torch.stack([c, d], dim=1)], dim=1)


def _chosen(batch: Tensor, prob: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(batch), generator=generator) < prob


def _uniform(batch: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(batch), generator=generator) * (high - low) + low


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _probability(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError("not a probability")
    return float(value)


def _ranges(value: Any, count: int) -> list[tuple[float, float]]:
    """MONAI's ways to write a range: 0.1 is (-0.1, 0.1); a pair is (low, high); for two axes, a value or pair each."""
    if isinstance(value, (int, float)):
        return [_range(value)] * count
    if count == 1:
        inner = value[0] if len(value) == 1 else value
        return [_range(inner)]
    if len(value) != count:
        raise ValueError("a range a side")
    return [_range(side) for side in value]


def _range(value: Any) -> tuple[float, float]:
    if isinstance(value, (int, float)):
        end = abs(_number(value))
        return -end, end
    low, high = (_number(end) for end in value)
    return min(low, high), max(low, high)
