"""Draws pictures that look a little like chest X-rays: two lungs, spine, heart, ribs; with a finding, hazy spots as well.

Nothing in them comes from a person. The finding can be learned within a few rounds, and not by brightness alone: chest
size, exposure and noise differ from picture to picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.float32]


def chest(rng: np.random.Generator, *, rows: int, columns: int, finding: bool, noise: float) -> Grey:
    """[rows, columns] float32 in 0..1, bone bright. `noise`: standard deviation of the grain."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    x = x * columns / max(rows, columns) + rng.normal(0, 0.05)
    y = y * rows / max(rows, columns) + rng.normal(0, 0.05)
    wide, tall = rng.uniform(0.85, 1.1, 2)
    x, y = x / wide, y / tall
    body = _soft(1 - (x / 0.95) ** 4 - (y / 1.3) ** 4, 0.15)
    picture = 0.15 + 0.5 * body
    lungs = np.zeros_like(x)
    for side in (-1, 1):
        lungs += _ellipse(x, y, side * rng.normal(0.43, 0.02), -0.05, rng.normal(0.27, 0.02), rng.normal(0.62, 0.03))
    lungs = np.clip(lungs, 0, 1)
    picture -= rng.uniform(0.28, 0.4) * lungs
    picture += 0.22 * np.exp(-((x / 0.09) ** 2))
    picture += 0.25 * _ellipse(x, y, 0.14, 0.3, rng.normal(0.27, 0.02), rng.normal(0.24, 0.02))
    ribs = np.cos((y + 0.35 * x**2) * rng.normal(24, 1) + rng.uniform(0, 6.28))
    picture += 0.04 * ribs * lungs
    if finding:
        picture += _opacities(rng, x, y) * (0.3 + 0.7 * lungs)
    picture += rng.normal(0, noise, picture.shape).astype(np.float32)
    return np.clip(picture * rng.uniform(0.85, 1.1) + rng.normal(0, 0.03), 0, 1).astype(np.float32)


def _opacities(rng: np.random.Generator, x: Grey, y: Grey) -> Grey:
    """One to three hazy spots, in either lung."""
    haze = np.zeros_like(x)
    for _ in range(rng.integers(1, 4)):
        side = rng.choice((-1, 1))
        size = rng.uniform(0.1, 0.22)
        distance = (x - side * rng.normal(0.43, 0.08)) ** 2 + (y - rng.uniform(-0.35, 0.45)) ** 2
        haze += rng.uniform(0.15, 0.32) * np.exp(-distance / (2 * size**2))
    return np.minimum(haze, 0.45)


def _ellipse(x: Grey, y: Grey, centre_x: float, centre_y: float, wide: float, tall: float) -> Grey:
    return _soft(1 - ((x - centre_x) / wide) ** 2 - ((y - centre_y) / tall) ** 2, 0.25)


def _soft(inside: Grey, edge: float) -> Grey:
    """0 outside, 1 inside, a soft edge between."""
    return np.clip(inside / edge, 0, 1)
