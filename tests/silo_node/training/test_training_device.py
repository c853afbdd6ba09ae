"""Which device trains: as set, said clearly where it is missing, and out of memory is a refusal on a card as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocol.initial_model import initial_state
from silo_node.training import device, networks, trainer
from silo_node.training.errors import TrainingError

NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")


@pytest.mark.parametrize(
    ("setting", "cards", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_the_device_is_the_one_that_is_set(monkeypatch: Any, setting: str, cards: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert device.choose(setting) == torch.device(expected)


@pytest.mark.parametrize(("setting", "cards"), [("cuda", 0), ("cuda:1", 1)])
def test_a_card_that_is_set_and_missing_is_named_with_what_to_do(monkeypatch: Any, setting: str, cards: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(
        TrainingError, match=rf"graphics card {setting}, and the driver shows {cards}: .*auto or cpu"
    ) as caught:
        device.choose(setting)
    assert caught.value.code == "GPU_MISSING"


def test_a_round_on_a_missing_card_decodes_no_picture(
    plan: dict[str, Any], cohort_of: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = initial_state(trainer.build_table(plan), 1)
    with pytest.raises(TrainingError) as caught:
        trainer.run(plan, state, cohort_of(), folder=tmp_path / "cache", purpose="train", seed=1, device="cuda")
    assert caught.value.code == "GPU_MISSING"
    assert not (tmp_path / "cache").exists()


def test_a_card_out_of_memory_is_a_refusal_with_its_reason(
    plan: dict[str, Any], cohort_of: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """As the driver says it while the network is put on the card."""

    def full(network: torch.nn.Module, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(networks, "load", full)
    state = initial_state(trainer.build_table(plan), 1)
    with pytest.raises(TrainingError, match="more memory than this node's graphics card has") as caught:
        trainer.run(plan, state, cohort_of(), folder=tmp_path / "cache", purpose="train", seed=1)
    assert caught.value.code == "OUT_OF_MEMORY"


@NO_CARD
def test_a_card_gives_about_the_update_of_the_cpu_and_the_same_one_each_time(
    plan: dict[str, Any], cohort_of: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    state = initial_state(trainer.build_table(plan), 1)
    run = lambda where: trainer.run(  # noqa: E731
        plan, state, cohort_of(), folder=tmp_path / "cache", purpose="train", seed=1, device=where
    )
    cpu, card, again = run("cpu"), run("cuda"), run("cuda")
    assert np.array_equal(card.update, again.update)
    assert np.linalg.norm(card.update - cpu.update) < 0.05 * np.linalg.norm(cpu.update)
    assert torch.cuda.memory_reserved() < 100_000_000
