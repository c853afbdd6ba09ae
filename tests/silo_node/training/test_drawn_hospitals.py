"""Drawn data: DICOM as hospitals have it, the same for the same seed, quickly."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pydicom
import pytest

from demo import synthetic
from silo_node.imaging import index, labels


def test_four_hospitals_take_less_than_five_seconds_of_processor_time(tmp_path: Path) -> None:
    began = time.process_time()
    folders = synthetic.write(tmp_path / "data", hospitals=4, images=150)
    assert time.process_time() - began < 5
    assert [folder.name for folder in folders] == ["site_1", "site_2", "site_3", "site_4"]
    for folder in folders:
        listed = labels.load(folder / "labels.csv")
        report = index.scan(folder, tmp_path / f"{folder.name}.db", labels=listed)
        assert report.problems == {} and report.usable == len(listed.rows) >= 150
        assert {row.split for row in listed.rows} == {"train", "test"}
        for split in ("train", "test"):
            assert {row.label for row in listed.rows if row.split == split} == {0, 1}


def test_each_hospital_has_its_own_way_of_making_pictures(tmp_path: Path) -> None:
    folders = synthetic.write(tmp_path / "data", hospitals=5, images=3)
    headers = [pydicom.dcmread(next(folder.rglob("*.dcm"))) for folder in folders]
    for keyword in ("Manufacturer", "InstitutionName"):
        assert len({header[keyword].value for header in headers}) == 5
    assert len({header.file_meta.TransferSyntaxUID for header in headers}) == 5
    assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert {header.BitsStored for header in headers} == {8, 10, 12}
    assert any(header.Rows != header.Columns for header in headers)


def test_the_same_seed_draws_the_same_files_and_another_does_not(tmp_path: Path) -> None:
    one, two, three = (
        synthetic.write(tmp_path / name, hospitals=1, images=4, seed=seed)[0]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    bodies = [{path.name: path.read_bytes() for path in sorted(folder.rglob("*.dcm"))} for folder in (one, two, three)]
    assert bodies[0] == bodies[1] and bodies[0] != bodies[2]


def test_headers_carry_names_to_be_looked_for(tmp_path: Path) -> None:
    (folder,) = synthetic.write(tmp_path / "data", hospitals=1, images=5)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == synthetic.COLUMNS
    for row in rows:
        header = pydicom.dcmread(folder / row["file"])
        assert header.PatientID == row["PatientID"] and header.SOPInstanceUID == row["SOPInstanceUID"]
        for keyword in ("PatientName", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "StudyDate"):
            assert str(header[keyword].value)


def test_drawn_pictures_never_mix_with_others(tmp_path: Path) -> None:
    (tmp_path / "mine.dcm").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        synthetic.write(tmp_path)
