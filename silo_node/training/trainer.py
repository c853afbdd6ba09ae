"""The way into training: `build_table`, `run`, `preload`. Importing this module does not import torch.

`run` is a function of its arguments: the same plan, state, cohort, seed and threads give the same bits, so a task that is
killed can simply run again.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.model_state import ModelState, Table, update_words
from silo_node.imaging import cache, index
from silo_node.imaging import cohort as cohorts
from silo_node.training import constant
from silo_node.training import plan as plans
from silo_node.training.errors import TrainingError
from silo_node.training.plan import Plan
from silo_node.training.result import TrainResult

if TYPE_CHECKING:
    from torch import nn

PURPOSES = ("train", "evaluate")


def preload(threads: int = 1) -> None:
    """Import torch and MONAI (seconds) and fix the number of threads. For the training child, before its first task.

    Only in the process that trains: a child that is forked from a process which ran threaded torch operations hangs.
    """
    import torch

    from silo_node.training import evaluate, local_training, networks  # noqa: F401

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor with NaN is for finding faults, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def build_table(plan: Any) -> Table:
    """The tensors of the plan's network, for the first model. Raises TrainingError PLAN_REFUSED."""
    found = plans.parse(plan)
    if found.network.name == plans.CONSTANT:
        return constant.table_of(found)
    from silo_node.training import networks, transforms

    transforms.build(found.transforms)  # refused now, not in the first round
    return networks.table_of(found)


def round_seed(seed: int, study: str, number: int, silo: str) -> int:
    """A seed of 0..2^63-1 for one hospital's round, from the plan's or the hospital's own seed."""
    text = f"consilium/training-seed/1\n{seed}\n{study}\n{number}\n{silo}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def run(
    plan: Any,
    state: ModelState,
    cohort: cohorts.Cohort | None,
    *,
    folder: Path,
    purpose: str,
    seed: int,
    threads: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Evaluate the incoming model and, for purpose "train", train it further.

    Parameters: plan: the manifest's plan (model or plain values). state: the model that came in. cohort: this round's
    pictures; None only for the network "constant". folder: where decoded pictures are kept (all plans' caches; those of
    withdrawn patients are deleted from all of them first). purpose: "train" or "evaluate". seed: 0..2^63-1, new in each
    round (`round_seed`). threads: torch's; they, and the device (device.py), change the last bits. progress: called with
    (epoch, of).
    Raises: TrainingError PLAN_REFUSED, STATE_DIFFERS, LOSS_NOT_FINITE, OUT_OF_MEMORY, GPU_MISSING; CohortError where too
    few patients are left after files that cannot be decoded (they are marked in the index); StorageError DISK_FULL.
    """
    if purpose not in PURPOSES:
        raise ValueError("purpose must be train or evaluate")
    found = plans.parse(plan)
    try:
        if found.network.name == plans.CONSTANT:
            return constant.run(found, state, purpose=purpose)
        if cohort is None:
            raise ValueError("a network that learns needs a cohort")
        return _run(found, state, cohort, Path(folder), purpose, seed, threads, device, progress)
    except MemoryError as error:
        raise _out_of_memory("node") from error
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, for a graphics card
            raise _out_of_memory("node's graphics card") from error
        if "memory" in str(error).lower():  # torch's CPU allocator has no exception of its own
            raise _out_of_memory("node") from error
        raise
    finally:
        torch = sys.modules.get("torch")  # the constant network never loads it
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # between rounds the card's memory is for others


def _run(
    plan: Plan,
    state: ModelState,
    cohort: cohorts.Cohort,
    folder: Path,
    purpose: str,
    seed: int,
    threads: int,
    device: str,
    progress: Callable[[int, int], None] | None,
) -> TrainResult:
    began = time.perf_counter()
    preload(threads)
    from silo_node.training import device as devices
    from silo_node.training import evaluate, local_training, networks

    place = devices.choose(device)
    # 1. Pictures: withdrawn ones go, missing ones are decoded, what cannot be decoded is left out.
    cache.forget(folder, cohort.withdrawn)
    pictures = cache.Cache(folder, plans.pixels_digest(plan), size=plan.size, window=plan.window)
    cohort, problems = _decodable(cohort, pictures)
    train, test = pictures.open(cohort.train), pictures.open(cohort.test)
    # 2. The model that came in.
    network: nn.Module = networks.build(plan)
    networks.load(network, state, plan)
    network.to(place)
    evaluate.refresh_statistics(network, train, plan)
    prepared = time.perf_counter()
    # 3. Its evaluation.
    scored = evaluate.score(network, test, _labels(cohort.test), plan)
    evaluated = time.perf_counter()
    # 4. Training.
    update, train_loss = np.zeros(update_words(state.table), dtype=np.float32), None
    if purpose == "train":
        train_loss = local_training.train(network, train, _labels(cohort.train), plan, seed=seed, progress=progress)
        update = local_training.update_of(network, state)
    ended = time.perf_counter()
    return TrainResult(
        update=update,
        loss=scored.loss,
        auc=scored.auc,
        histograms=scored.histograms,
        train_seconds=(prepared - began) + (ended - evaluated),
        evaluate_seconds=evaluated - prepared,
        train_loss=train_loss,
        problems=problems,
    )


def _decodable(cohort: cohorts.Cohort, pictures: cache.Cache) -> tuple[cohorts.Cohort, dict[str, int]]:
    """The cohort without files that cannot be decoded; they become rows with a reason in the index."""
    failed = pictures.fill((*cohort.train, *cohort.test))
    if not failed:
        return cohort, {}
    index.mark(cohort.index_db, failed)
    train = tuple(item for item in cohort.train if item.path not in failed)
    test = tuple(item for item in cohort.test if item.path not in failed)
    patients = tuple(sorted({item.patient for item in (*train, *test)}))
    cohorts.require(patients, train, cohort.min_patients)
    return replace(cohort, train=train, test=test, patients=patients), dict(Counter(failed.values()))


def _labels(items: tuple[cohorts.Item, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([item.label for item in items], dtype=np.int64)


def _out_of_memory(where: str) -> TrainingError:
    return TrainingError(
        "OUT_OF_MEMORY", f"Training needs more memory than this {where} has: a smaller batch or network helps."
    )
