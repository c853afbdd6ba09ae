"""Where a training runs: the CPU or a graphics card, by `[training] device`."""

from __future__ import annotations

import torch

from silo_node.training.errors import TrainingError


def choose(setting: str) -> torch.device:
    """setting: "cpu", "cuda", "cuda:N", or "auto" (the first card, or the CPU where there is none).

    Raises: TrainingError GPU_MISSING where the card that is set is not there: the CPU would take hours for it.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cpu" or (setting == "auto" and not cards):
        return torch.device("cpu")
    device = torch.device("cuda:0" if setting in ("auto", "cuda") else setting)
    if (device.index or 0) >= cards:
        raise TrainingError(
            "GPU_MISSING",
            f"The settings name the graphics card {setting}, and the driver shows {cards}: check the driver, or set "
            "`[training] device` to auto or cpu.",
        )
    return device
