"""While anybody has opted out, no scan opens a file of which nothing says whose it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from silo_node import scanning
from silo_node.config import Config
from silo_node.errors import Refused
from silo_node.imaging import index, labels


@pytest.fixture
def config(hospital: Path, tmp_path: Path) -> Config:
    """A silo over `hospital`; P3 has opted out, nothing was scanned yet."""
    folder = tmp_path / "silo"
    folder.mkdir()
    (folder / "silo.toml").write_text(f'name = "site-1"\nportal = "https://portal.example.org"\ndata = "{hospital}"\n')
    (folder / "opt_out.csv").write_text("PatientID,date\nP3,2026-01-01\n")
    return Config.load(folder, {})


def images(opened: set[Path]) -> set[str]:
    return {path.name for path in opened if path.suffix == ".dcm"}


@pytest.mark.parametrize("content", [None, "PatientID,split\nP3,train\n", "PatientID,label\nP3,1,1\n", "\xff"])
def test_a_first_scan_without_usable_labels_opens_nothing(
    config: Config, content: str | None, watched: Callable
) -> None:
    config.labels.unlink()
    if content is not None:
        config.labels.write_text(content, encoding="latin-1")
    with watched() as opened, pytest.raises(Refused) as caught:
        scanning.scan(config)
    assert images(opened) == set()
    assert caught.value.code == "LABELS_NEEDED"
    assert "opted out" in caught.value.sentence and "labels.csv" in caught.value.sentence
    assert "scan again" in caught.value.sentence and "P3" not in caught.value.sentence
    assert not config.index_db.exists()


def test_with_labels_the_others_are_opened(config: Config, watched: Callable) -> None:
    with watched() as opened:
        report = scanning.scan(config)
    assert images(opened) == {f"{number}.dcm" for number in range(10) if number != 3}
    assert report.problems == {"OPTED_OUT": 1}


@pytest.mark.parametrize("columns", ["PatientID,label,split", "SOPInstanceUID,label,split"])
def test_labels_that_name_no_file_open_nothing_either(config: Config, columns: str, watched: Callable) -> None:
    rows = [columns, *(f"P{number},{number % 2},train" for number in range(10))]
    config.labels.write_text("\n".join(rows) + "\n")
    with watched() as opened:
        report = scanning.scan(config)
    assert images(opened) == set()
    assert report.problems == {"PATIENT_UNKNOWN": 10}


def test_a_file_that_the_labels_do_not_name_is_opened_once_they_do(
    config: Config, hospital: Path, dicom: Callable, watched: Callable
) -> None:
    dicom(hospital / "images/new.dcm", patient="P3", sop="1.2.3")
    dicom(hospital / "images/other.dcm", patient="P77", sop="1.2.4")
    with watched() as opened:
        scanning.scan(config)
    assert not {"3.dcm", "new.dcm", "other.dcm"} & images(opened)
    with config.labels.open("a") as file:
        file.write("P77,1,train,images/other.dcm\n")
    with watched() as opened:
        report = scanning.scan(config)
    assert images(opened) == {"other.dcm"}
    assert report.problems == {"OPTED_OUT": 1, "PATIENT_UNKNOWN": 1}


def test_where_nobody_has_opted_out_a_scan_helps_without_labels(config: Config, watched: Callable) -> None:
    (config.folder / "opt_out.csv").write_text("PatientID,date\n")
    config.labels.unlink()
    with watched() as opened:
        assert scanning.scan(config).usable == 10
    assert len(images(opened)) == 10
    # Known from this scan: the first patient who opts out is not opened again, whatever the labels say.
    (config.folder / "opt_out.csv").write_text("PatientID,date\nP4,2026-01-01\n")
    (config.data / "images/4.dcm").touch()
    with watched() as opened, pytest.raises(Refused):
        scanning.scan(config)
    assert images(opened) == set()


def test_the_index_alone_keeps_unknown_files_closed(config: Config, hospital: Path, watched: Callable) -> None:
    from silo_node.consent import opt_out

    registry = opt_out.load(config.folder / "opt_out.csv")
    listed = labels.load(config.labels)
    with watched() as opened:
        index.scan(hospital, config.index_db, opt_out=registry)
    assert images(opened) == set()
    index.scan(hospital, config.index_db, labels=listed, opt_out=registry)
    assert [file.path.name for file in index.files(config.index_db) if file.problem] == ["3.dcm"]


def test_who_opts_out_after_a_scan_is_shown_so_and_shown_again_when_the_entry_goes(
    config: Config, watched: Callable
) -> None:
    scanning.scan(config)
    (config.folder / "opt_out.csv").write_text("PatientID,date\nP3,2026-01-01\nP5,2026-02-01\n")
    with watched() as opened:
        report = scanning.scan(config)
    assert images(opened) == set()
    assert (report.problems, report.patients) == ({"OPTED_OUT": 2}, 8)
    (config.folder / "opt_out.csv").write_text("PatientID,date\nP3,2026-01-01\n")
    report = scanning.scan(config)
    assert (report.problems, report.patients) == ({"OPTED_OUT": 1}, 9)
