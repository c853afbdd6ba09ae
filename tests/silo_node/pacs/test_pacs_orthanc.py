"""A real Orthanc with 200 chest films: found, fetched or sent, scanned, trained on; stopped in the middle."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from protocol.initial_model import initial_state
from silo_node import scanning
from silo_node.config import Config
from silo_node.imaging import cohort, labels
from silo_node.pacs import fetch
from silo_node.training import trainer
from tests.silo_node.pacs.conftest import ROOT, Hospital, Orthanc, chest_labels
from tests.silo_node.training.conftest import SMALL

pytestmark = pytest.mark.timeout(180)


def trains(config: Config, hospital: Hospital, films: list[Path]) -> trainer.TrainResult:
    """Scan, build the cohort of all films, run one epoch with the real training code."""
    (hospital.data / "labels.csv").write_text(chest_labels(films))
    report = scanning.scan(config)
    assert (report.usable, report.problems) == (len(films), {})
    study: Any = SimpleNamespace(cohort=SimpleNamespace(modalities=("CR", "DX"), min_patients=5))
    people = cohort.build(study, config.index_db, labels.load(config.labels), None)
    assert len(people.train) + len(people.test) == len(films)
    assert {item.path for item in people.train} <= set(hospital.inbox())
    state = initial_state(trainer.build_table(SMALL), 1)
    return trainer.run(SMALL, state, people, folder=config.cache, purpose="train", seed=1, threads=1)


def test_200_films_of_a_pacs_are_found_fetched_and_trained_on(
    orthanc: Orthanc, hospital: Hospital, chest: list[Path]
) -> None:
    orthanc.store(chest)
    config = hospital.asks_orthanc(orthanc, 'query = { Modality = ["CR", "DX"] }')
    report, error = fetch.fetch(config)
    assert (error, report.state, report.got, report.missing, report.refused) == (None, "done", 200, 0, {})
    files = hospital.inbox()
    assert len(files) == 200
    # As it is stored: the same object, the same transfer syntax (RLE among them), nothing decoded on the way.
    stored = {dcmread(path).SOPInstanceUID: dcmread(path) for path in chest}
    for path in files:
        found = dcmread(path)
        assert found == stored[found.SOPInstanceUID]
        assert found.file_meta.TransferSyntaxUID == stored[found.SOPInstanceUID].file_meta.TransferSyntaxUID
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and found.PatientID not in str(path)
    assert stat.S_IMODE(config.inbox.stat().st_mode) == 0o700
    result = trains(config, hospital, chest)
    assert result.update.any() and np.isfinite(result.update).all() and result.problems == {}
    again, _ = fetch.fetch(config)
    assert again.got == 0


def test_a_pacs_that_stops_in_the_middle_leaves_a_clear_state_and_the_next_run_goes_on(
    orthanc: Orthanc, hospital: Hospital, chest: list[Path]
) -> None:
    orthanc.store(chest[:60])
    config = hospital.asks_orthanc(orthanc)
    report, error = fetch.fetch(config, say=lambda done, of: orthanc.kill() if done == 20 else None)
    assert error is not None and error.code == "PACS_UNREACHABLE" and error.exit_code == 4
    assert report.state == "partly" and 20 <= report.got <= 21 and report.missing == 60 - report.got
    kept = fetch.last(config)
    assert kept is not None and kept["sentence"] == report.sentence
    assert f"Got {report.got}; {report.missing} known images are missing. `silo run` tries again at" in kept["sentence"]
    assert not fetch.is_due(config, datetime.now(UTC)) and fetch.is_due(config, datetime.now(UTC) + timedelta(hours=1))
    written = {path: path.stat().st_mtime_ns for path in hospital.inbox()}
    still_away, error = fetch.fetch(config)
    assert error is not None and (still_away.got, still_away.missing, still_away.failures) == (0, report.missing, 2)
    orthanc.start()
    rest, error = fetch.fetch(config)
    assert error is None and (rest.got, rest.missing, rest.failures) == (60 - report.got, 0, 0)
    assert len(hospital.inbox()) == 60
    assert {path: path.stat().st_mtime_ns for path in written} == written, "fetched twice"


def test_the_command_says_in_json_what_it_did_and_what_is_missing(
    orthanc: Orthanc, hospital: Hospital, chest: list[Path]
) -> None:
    orthanc.store(chest[:5])
    hospital.asks_orthanc(orthanc)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "silo_node.cli", "fetch", str(hospital.folder), *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    done = command("--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and (facts["state"], facts["studies"], facts["got"]) == ("done", 5, 5)
    orthanc.kill()
    away = command()
    assert away.returncode == 4 and "PACS_UNREACHABLE" in away.stderr and "is it running?" in away.stderr
    error = json.loads(command("--json").stdout)["error"]
    assert error["code"] == "PACS_UNREACHABLE" and "`silo run` tries again at" in error["sentence"]
    for film in (dcmread(path) for path in chest[:5]):
        for secret in (str(film.PatientID), str(film.PatientName), str(film.SOPInstanceUID)):
            assert secret not in done.stdout + away.stdout + away.stderr


def test_who_opted_out_is_not_fetched_and_what_was_fetched_of_them_is_deleted(
    orthanc: Orthanc, hospital: Hospital, chest: list[Path]
) -> None:
    orthanc.store(chest[:6])
    patients = [str(dcmread(path).PatientID) for path in chest[:6]]
    hospital.opts_out(patients[0])
    config = hospital.asks_orthanc(orthanc)
    report, error = fetch.fetch(config)
    of_first = patients.count(patients[0])
    assert error is None and report.got == 6 - of_first and report.skipped == {"OPTED_OUT": 1}
    (hospital.data / "labels.csv").write_text(chest_labels(chest[:6]))
    assert scanning.scan(config).usable == 6 - of_first, "whose an image of the inbox is must be known unopened"
    hospital.opts_out(*patients[:2])
    assert scanning.erase_wanted(config)
    assert scanning.erase_opted_out(config) == patients.count(patients[1])
    fetch.fetch(config)
    assert {str(dcmread(path).PatientID) for path in hospital.inbox()} == set(patients[2:]) - set(patients[:2])
    hospital.opts_out(patients[0])  # the second has thought better of it
    report, _ = fetch.fetch(config)
    assert report.got == patients.count(patients[1])


def test_a_wrong_password_ends_the_run_with_what_to_correct(orthanc: Orthanc, hospital: Hospital) -> None:
    config = hospital.asks(orthanc.url, user=orthanc.user, password="wrong")
    _, error = fetch.fetch(config)
    assert error is not None and error.code == "PACS_DENIED" and "password_file" in error.sentence
