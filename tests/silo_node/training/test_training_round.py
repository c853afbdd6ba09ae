"""One hospital's round: evaluate what came in, train, answer the difference; the same bits every time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from protocol import evaluation
from protocol.initial_model import initial_state
from protocol.model_state import ModelState
from silo_node.imaging import index
from silo_node.imaging.cohort import Cohort
from silo_node.imaging.errors import CohortError
from silo_node.training import trainer
from silo_node.training.errors import TrainingError
from silo_node.training.result import TrainResult
from tests.silo_node.imaging.awkward import NO_RLE

CohortOf = Callable[..., Cohort]


@pytest.fixture
def run(plan: dict[str, Any], cohort_of: CohortOf, tmp_path: Path) -> Callable[..., TrainResult]:
    def call(cohort: Cohort | None = None, **options: Any) -> TrainResult:
        state = options.pop("state", None) or initial_state(trainer.build_table(plan), 1)
        arguments = {"folder": tmp_path / "cache", "purpose": "train", "seed": 4, "threads": 1, **options}
        return trainer.run(plan, state, cohort or cohort_of(), **arguments)

    return call


def test_a_round_gives_an_update_and_an_evaluation(run: Callable[..., TrainResult]) -> None:
    epochs: list[tuple[int, int]] = []
    result = run(progress=lambda epoch, of: epochs.append((epoch, of)))
    assert result.update.dtype == np.float32 and result.update.any() and np.isfinite(result.update).all()
    assert result.loss is not None and result.auc is not None and 0 <= result.auc <= 1
    assert result.histograms.shape == (2, 64) and result.histograms.sum() == evaluation.TOTAL
    tail = evaluation.encode_tail(loss=result.loss, auc=result.auc, histograms=result.histograms)
    assert evaluation.decode_tail(tail, 1).silos == 1
    assert result.train_seconds > 0 and result.evaluate_seconds > 0 and epochs == [(1, 1)]


def test_the_same_arguments_give_the_same_bits_with_or_without_cache(
    run: Callable[..., TrainResult], tmp_path: Path
) -> None:
    first, second = run(), run()
    shutil.rmtree(tmp_path / "cache")
    third = run()
    assert np.array_equal(first.update, second.update) and np.array_equal(first.update, third.update)
    assert first.loss == second.loss == third.loss
    assert not np.array_equal(first.update, run(seed=5).update)


def test_drop_out_draws_from_the_rounds_seed(plan: dict[str, Any], run: Callable[..., TrainResult]) -> None:
    plan["network"]["args"]["dropout"] = 0.3
    assert np.array_equal(run().update, run().update)


def test_evaluation_is_of_the_model_that_came_in_and_changes_nothing(run: Callable[..., TrainResult]) -> None:
    trained, evaluated = run(), run(purpose="evaluate")
    assert not evaluated.update.any() and evaluated.train_loss is None
    assert (evaluated.loss, evaluated.auc) == (trained.loss, trained.auc)
    assert np.array_equal(evaluated.histograms, trained.histograms)


def test_the_second_round_opens_no_picture(run: Callable[..., TrainResult], cohort_of: CohortOf, watched: Any) -> None:
    cohort = cohort_of()
    with watched() as opened:
        run(cohort)
    assert {item.path for item in (*cohort.train, *cohort.test)} <= opened
    with watched() as opened:
        run(cohort)
    assert not [path for path in opened if path.suffix == ".dcm"]


def test_no_file_of_a_patient_who_opted_out_is_opened_and_the_cached_pixels_are_gone(
    run: Callable[..., TrainResult], cohort_of: CohortOf, watched: Any, tmp_path: Path
) -> None:
    before = cohort_of()
    run(before)
    patient = before.train[0].patient
    files = {item.path for item in before.train if item.patient == patient}
    shutil.rmtree(tmp_path / "cache")  # so that the others' files have to be opened
    run(before)
    with watched() as opened:
        after = cohort_of(opted_out=(patient,))
        run(after)
    assert not files & opened and patient not in after.patients
    from silo_node.imaging import cache

    assert cache.forget(tmp_path / "cache", [patient]) == 0
    assert cache.forget(tmp_path / "cache", [after.patients[0]]) > 0


def test_a_first_round_opens_no_file_of_a_patient_who_opted_out(
    run: Callable[..., TrainResult], cohort_of: CohortOf, watched: Any, drawn: Path
) -> None:
    with watched() as opened:
        run(cohort_of(opted_out=("S1-0003",)))
    assert not [path for path in opened if "S1-0003" in path.parts]
    assert [path for path in opened if "S1-0001" in path.parts]


@pytest.mark.parametrize("loss", ["bce", "bce_logit_adjusted"])
@pytest.mark.parametrize("label", [0, 1])
def test_a_hospital_with_one_class_takes_part_without_an_auc(
    plan: dict[str, Any],
    run: Callable[..., TrainResult],
    cohort_of: CohortOf,
    drawn: Path,
    tmp_path: Path,
    loss: str,
    label: int,
) -> None:
    lines = (drawn / "site_1/labels.csv").read_text().splitlines()
    site = tmp_path / "one/site_1"
    shutil.copytree(drawn / "site_1", site)
    kept = [line for line in lines[1:] if line.split(",")[2] == str(label)]
    (site / "labels.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    plan["loss"] = loss
    result = run(cohort_of(data=tmp_path / "one"))
    assert result.auc is None and result.loss is not None
    assert np.isfinite(result.update).all() and result.update.any()
    assert result.histograms[1 - label].sum() == 0


def test_logit_adjustment_keeps_a_hospital_with_one_class_from_pushing(
    plan: dict[str, Any], cohort_of: CohortOf, drawn: Path, tmp_path: Path, run: Callable[..., TrainResult]
) -> None:
    lines = (drawn / "site_1/labels.csv").read_text().splitlines()
    shutil.copytree(drawn / "site_1", tmp_path / "one/site_1")
    kept = [line for line in lines[1:] if line.split(",")[2] == "1"]
    (tmp_path / "one/site_1/labels.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    plan["optimiser"] = {"name": "sgd", "lr": 0.01, "weight_decay": 0.0}
    cohort = cohort_of(data=tmp_path / "one")
    plan["loss"] = "bce"
    plain = np.linalg.norm(run(cohort).update)
    plan["loss"] = "bce_logit_adjusted"
    assert np.linalg.norm(run(cohort).update) < plain / 5


def test_files_that_cannot_be_decoded_become_rows_with_a_reason_and_the_round_goes_on(
    run: Callable[..., TrainResult], cohort_of: CohortOf, drawn: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn / "site_1", tmp_path / "bad/site_1")
    broken = cohort_of(data=tmp_path / "bad").train[0].path
    dataset = pydicom.dcmread(broken)
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    dataset.PixelData = pydicom.encaps.encapsulate([NO_RLE])
    dataset.save_as(broken)
    cohort = cohort_of(data=tmp_path / "bad")
    assert run(cohort).problems == {"PIXELS_CORRUPT": 1}
    problems = {file.path: file.problem for file in index.files(cohort.index_db)}
    assert problems[broken] == "PIXELS_CORRUPT" and sum(problem is not None for problem in problems.values()) == 1


def test_a_file_that_was_exchanged_after_the_cohort_was_built_takes_no_part_and_the_round_goes_on(
    run: Callable[..., TrainResult], cohort_of: CohortOf, drawn: Path, tmp_path: Path
) -> None:
    """By another patient's file with the size and time of the one that was scanned, put there by a link in the folder."""
    shutil.copytree(drawn / "site_1", tmp_path / "bad/site_1")
    cohort = cohort_of(data=tmp_path / "bad")
    gone, other = cohort.train[0], next(item for item in cohort.train if item.patient != cohort.train[0].patient)
    linked = shutil.copy(other.path, gone.root / "another.dcm")
    os.truncate(linked, gone.size)
    os.utime(linked, ns=(gone.mtime_ns, gone.mtime_ns))
    gone.path.unlink()
    gone.path.symlink_to(linked)
    found = run(cohort)
    assert found.problems == {"FILE_CHANGED": 1}
    assert {file.path: file.problem for file in index.files(cohort.index_db)}[gone.path] == "FILE_CHANGED"
    assert np.array_equal(found.update, run(replace(cohort, train=cohort.train[1:])).update)


def test_too_few_patients_after_broken_files_is_a_refusal(
    run: Callable[..., TrainResult], cohort_of: CohortOf, drawn: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn / "site_1", tmp_path / "bad/site_1")
    cohort = cohort_of(data=tmp_path / "bad")
    for item in (*cohort.train[3:], *cohort.test):
        item.path.write_bytes(b"")
    with pytest.raises(CohortError) as caught:
        run(cohort)
    assert caught.value.code == "COHORT_TOO_SMALL"
    for item in cohort.train:
        item.path.unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CohortError) as caught:
        run(cohort)
    assert caught.value.code == "COHORT_EMPTY"


def test_a_loss_that_is_no_number_is_a_refusal(plan: dict[str, Any], run: Callable[..., TrainResult]) -> None:
    plan["optimiser"] = {"name": "sgd", "lr": 1e30, "weight_decay": 0.0}
    plan["local_epochs"] = 3
    with pytest.raises(TrainingError) as caught:
        run()
    assert caught.value.code == "LOSS_NOT_FINITE"


def test_a_model_that_gives_no_numbers_is_a_refusal(plan: dict[str, Any], run: Callable[..., TrainResult]) -> None:
    state = initial_state(trainer.build_table(plan), 1)
    wild = ModelState(state.table, np.where(np.arange(state.vector.size) % 2, 3e38, -3e38).astype("<f4"))
    with pytest.raises(TrainingError) as caught:
        run(state=wild)
    assert caught.value.code == "LOSS_NOT_FINITE"


def test_too_little_memory_is_a_refusal(plan: dict[str, Any], run: Callable[..., TrainResult]) -> None:
    """A layer whose gradient does not fit into any machine: the allocator refuses at once."""
    plan["network"] = {"name": "Classifier", "args": {"channels": [16], "strides": [1]}}
    plan["batch"] = 4096
    import torch

    real = torch.nn.Module.__call__

    def call(module: Any, *args: Any, **options: Any) -> Any:
        if isinstance(module, torch.nn.Conv2d) and module.training:
            torch.empty(2**50)
        return real(module, *args, **options)

    torch.nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        with pytest.raises(TrainingError) as caught:
            run()
    finally:
        torch.nn.Module.__call__ = real  # type: ignore[method-assign]
    assert caught.value.code == "OUT_OF_MEMORY"


def test_batch_normalisation_shares_no_statistics_and_still_scores(
    plan: dict[str, Any], run: Callable[..., TrainResult]
) -> None:
    plan["network"]["args"]["norm"] = "batch"
    result = run()
    table = trainer.build_table(plan)
    assert result.update.size == sum(spec.size for spec in table if spec.kind == "shared")
    assert result.loss is not None and result.loss < 5
    assert np.array_equal(result.update, run().update)


def test_three_channels_repeat_the_picture(plan: dict[str, Any], run: Callable[..., TrainResult]) -> None:
    plan["input"]["channels"] = 3
    assert run().auc is not None


def test_a_few_rounds_of_averaging_learn_the_finding(plan: dict[str, Any], cohort_of: CohortOf, tmp_path: Path) -> None:
    """Three drawn hospitals, plain federated averaging through the same functions as a silo uses."""
    from demo import synthetic

    synthetic.write(tmp_path / "three", hospitals=3, images=80, seed=5)
    cohorts = [cohort_of(f"site_{number}", data=tmp_path / "three") for number in (1, 2, 3)]
    plan["local_epochs"] = 2
    plan["input"]["size"] = [32, 32]
    state = initial_state(trainer.build_table(plan), 1)
    scores = []
    for number in range(7):
        results = [
            trainer.run(
                plan, state, cohort, folder=tmp_path / f"cache{site}", purpose="train",
                seed=trainer.round_seed(1, "st-test", number, str(site)),
            )
            for site, cohort in enumerate(cohorts)
        ]  # fmt: skip
        scores.append(np.mean([result.auc for result in results]))
        mean = np.mean([result.update for result in results], axis=0, dtype=np.float32)
        state = ModelState(state.table, (state.vector + mean).astype("<f4"))
    assert scores[-1] > 0.75 and scores[-1] > scores[0] + 0.1, scores


def test_seeds_differ_between_hospitals_rounds_and_studies() -> None:
    seeds = {
        trainer.round_seed(seed, study, number, silo)
        for seed in (1, 2)
        for study in ("st-a", "st-b")
        for number in (1, 2)
        for silo in ("site-1", "site-2")
    }
    assert len(seeds) == 16 and all(0 <= seed < 2**63 for seed in seeds)
