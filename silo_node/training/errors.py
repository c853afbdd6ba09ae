"""What can go wrong in training. Codes: PLAN_REFUSED, STATE_DIFFERS, LOSS_NOT_FINITE, OUT_OF_MEMORY, GPU_MISSING."""

from __future__ import annotations

from silo_node.imaging.errors import DataError


class TrainingError(DataError):
    """The plan is refused or training failed; the round goes on without this hospital."""

    exit_code = 3


def refused(sentence: str) -> TrainingError:
    """The hospital does not run this plan."""
    return TrainingError("PLAN_REFUSED", sentence)
