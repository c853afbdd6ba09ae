"""Batch transforms mean what MONAI's of the same name mean."""

from __future__ import annotations

import math
from typing import Any

import monai.transforms
import pytest
import torch

from silo_node.training import transforms
from silo_node.training.plan import Step

GENERATOR = torch.Generator()


def _batch(count: int = 4) -> torch.Tensor:
    """Smooth pictures, so that two interpolations of the same point agree."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 48), indexing="ij")
    return torch.stack([torch.sin(2 * x + phase) * torch.cos(y - phase) / 2 + 0.5 for phase in range(count)])[:, None]


def _apply(name: str, batch: torch.Tensor, seed: int = 1, **args: Any) -> torch.Tensor:
    return transforms.build([Step(name, args)])(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axis", [0, 1, [0, 1]])
def test_flip_is_monais(axis: Any) -> None:
    batch = _batch()
    expected = torch.stack([monai.transforms.Flip(axis)(picture) for picture in batch])
    assert torch.equal(_apply("RandFlip", batch, prob=1.0, spatial_axis=axis), expected)


@pytest.mark.parametrize(
    "args",
    [
        {"rotate_range": [[0.3, 0.3]]},
        {"translate_range": [[3, 3], [-5, -5]]},
        {"scale_range": [[0.2, 0.2], [-0.1, -0.1]]},
        {"shear_range": [[0.2, 0.2], [-0.1, -0.1]]},
        {
            "rotate_range": [[0.3, 0.3]],
            "translate_range": [[3, 3], [-5, -5]],
            "scale_range": [[0.2, 0.2], [-0.1, -0.1]],
        },
    ],
)
def test_affine_is_monais(args: dict[str, Any]) -> None:
    """Ranges of one value leave nothing to chance."""
    batch = _batch()
    theirs = monai.transforms.RandAffine(prob=1.0, padding_mode="border", **args)
    expected = torch.stack([torch.as_tensor(theirs(picture)) for picture in batch])
    ours = _apply("RandAffine", batch, prob=1.0, padding_mode="border", **args)
    assert (ours - expected).abs()[..., 8:-8, 10:-10].max() < 0.01


def test_rotate_and_zoom_are_monais() -> None:
    batch = _batch()
    theirs = monai.transforms.RandRotate(range_x=[0.4, 0.4], prob=1.0)
    expected = torch.stack([torch.as_tensor(theirs(picture)) for picture in batch])
    ours = _apply("RandRotate", batch, range_x=[0.4, 0.4], prob=1.0)
    assert (ours - expected).abs()[..., 8:-8, 10:-10].max() < 0.02
    zoomed = _apply("RandZoom", batch, prob=1.0, min_zoom=1.5, max_zoom=1.5)
    expected = torch.stack([torch.as_tensor(monai.transforms.Zoom(1.5, mode="bilinear")(picture)) for picture in batch])
    assert (zoomed - expected).abs()[..., 6:-6, 6:-6].max() < 0.03


def test_intensities_are_monais() -> None:
    batch = _batch()
    scaled = _apply("RandScaleIntensity", batch, factors=[0.3, 0.3], prob=1.0)
    assert torch.allclose(scaled, batch * 1.3)
    assert torch.allclose(_apply("RandShiftIntensity", batch, offsets=[0.2, 0.2], prob=1.0), batch + 0.2)
    curved = _apply("RandAdjustContrast", batch, prob=1.0, gamma=[2.0, 2.0])
    expected = torch.stack([torch.as_tensor(monai.transforms.AdjustContrast(2.0)(picture)) for picture in batch])
    assert (curved - expected).abs().max() < 1e-4


def test_noise_has_the_spread_that_was_asked_for() -> None:
    noise = _apply("RandGaussianNoise", torch.zeros(8, 1, 64, 64), prob=1.0, std=0.1, mean=0.5, sample_std=False)
    assert math.isclose(float(noise.std()), 0.1, rel_tol=0.03) and math.isclose(float(noise.mean()), 0.5, rel_tol=0.03)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("RandFlip", {"spatial_axis": 0}), ("RandAffine", {"rotate_range": 0.5}), ("RandRotate", {"range_x": 0.5}),
        ("RandZoom", {"min_zoom": 0.7}), ("RandGaussianNoise", {}), ("RandScaleIntensity", {"factors": 0.5}),
        ("RandShiftIntensity", {"offsets": 0.5}), ("RandAdjustContrast", {}),
    ],
)  # fmt: skip
def test_about_prob_of_the_pictures_change_each_by_itself_and_by_the_seed(name: str, args: dict[str, Any]) -> None:
    batch = _batch(2)[1:].expand(400, -1, -1, -1)
    out = _apply(name, batch, prob=0.5, **args)
    changed = (out - batch).abs().amax((1, 2, 3)) > 1e-3
    assert 0.35 < float(changed.float().mean()) < 0.65
    assert torch.equal(out, _apply(name, batch, prob=0.5, **args))
    assert not torch.equal(out, _apply(name, batch, seed=2, prob=0.5, **args))
    untouched = _apply(name, batch, prob=0.0, **args)
    assert (untouched - batch).abs().max() < 1e-4
    assert out.shape == batch.shape and torch.isfinite(out).all()


def test_every_transform_of_the_list_is_monais_by_name() -> None:
    assert all(hasattr(monai.transforms, name) for name in transforms.TRANSFORMS)
