"""The header scan: every file is a row, a bad one a row with its reason."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from silo_node.consent.opt_out import OptOut
from silo_node.imaging import bounded, header, index, labels
from silo_node.imaging.errors import ScanError

Dicom = Callable[..., Path]


def _opt_out(*patients: str) -> OptOut:
    return OptOut(frozenset(patients), "sha256:" + "0" * 64, datetime.now(UTC))


def _problems(db: Path) -> dict[str, str | None]:
    return {file.path.name: file.problem for file in index.files(db)}


def test_a_scan_keeps_what_the_cohort_needs(tmp_path: Path, dicom: Dicom) -> None:
    dicom(
        tmp_path / "data/1.dcm",
        np.zeros((40, 30), dtype=np.uint16),
        patient="P1 ",
        sop="1.2.3",
        modality="DX",
        syntax=uid.RLELossless,
    )
    report = index.scan(tmp_path / "data", tmp_path / "index.db")
    (file,) = index.files(tmp_path / "index.db")
    assert (file.sop, file.patient, file.modality, file.rows, file.columns) == ("1.2.3", "P1", "DX", 40, 30)
    assert file.transfer_syntax == uid.RLELossless and file.problem is None
    assert (report.files, report.usable, report.patients, report.opened) == (1, 1, 1, 1)
    assert (tmp_path / "index.db").stat().st_mode & 0o777 == 0o600


def test_bad_files_are_rows_with_reasons_and_nothing_is_lost(tmp_path: Path, dicom: Dicom) -> None:
    data = tmp_path / "data"
    good = dicom(data / "good.dcm", patient="P1")
    (data / "cut.dcm").write_bytes(good.read_bytes()[:300])
    (data / "noise.dcm").write_bytes(bytes(range(256)) * 4)
    (data / "empty.dcm").touch()
    dicom(data / "no_patient.dcm", patient=None)
    dicom(data / "same.dcm", sop=str(pydicom.dcmread(good).SOPInstanceUID))
    dicom(data / "huge.dcm", Rows=65000, Columns=65000)
    report_like = pydicom.dcmread(good)
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report_like, keyword)
    report_like.save_as(data / "report.dcm")
    report = index.scan(data, tmp_path / "index.db")
    assert _problems(tmp_path / "index.db") == {
        "cut.dcm": "NO_IMAGE",
        "empty.dcm": "NOT_DICOM",
        "good.dcm": None,
        "huge.dcm": "TOO_LARGE",
        "no_patient.dcm": "NO_PATIENT",
        "noise.dcm": "NOT_DICOM",
        "report.dcm": "NO_IMAGE",
        "same.dcm": "DUPLICATE",
    }
    assert report.files == 8 and report.usable == 1
    assert set(report.problems) <= set(index.PROBLEMS)


def test_a_file_that_cannot_be_read_is_tried_again(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data/1.dcm")
    (tmp_path / "data/2.dcm").symlink_to(".later.dcm")
    index.scan(tmp_path / "data", tmp_path / "index.db")
    assert _problems(tmp_path / "index.db")["2.dcm"] == "UNREADABLE"
    dicom(tmp_path / "data/.later.dcm", patient="P2")
    index.scan(tmp_path / "data", tmp_path / "index.db")
    assert _problems(tmp_path / "index.db")["2.dcm"] is None


def test_a_second_scan_opens_only_what_changed(tmp_path: Path, dicom: Dicom) -> None:
    for number in range(3):
        dicom(tmp_path / f"data/{number}.dcm", patient=f"P{number}")
    index.scan(tmp_path / "data", tmp_path / "index.db")
    dicom(tmp_path / "data/1.dcm", np.zeros((9, 9), np.uint8), patient="P9")
    (tmp_path / "data/2.dcm").unlink()
    report = index.scan(tmp_path / "data", tmp_path / "index.db")
    assert (report.opened, report.unchanged, report.gone) == (1, 1, 1)
    assert [file.patient for file in index.files(tmp_path / "index.db")] == ["P0", "P9"]


def test_a_duplicate_takes_over_when_the_first_file_goes(tmp_path: Path, dicom: Dicom) -> None:
    for name in ("a", "b"):
        dicom(tmp_path / f"data/{name}.dcm", sop="1.2")
    index.scan(tmp_path / "data", tmp_path / "index.db")
    assert _problems(tmp_path / "index.db") == {"a.dcm": None, "b.dcm": "DUPLICATE"}
    (tmp_path / "data/a.dcm").unlink()
    index.scan(tmp_path / "data", tmp_path / "index.db")
    assert _problems(tmp_path / "index.db") == {"b.dcm": None}


def test_files_of_opted_out_patients_are_not_opened_by_a_first_or_later_scan(hospital: Path, watched: Callable) -> None:
    listed = labels.load(hospital / "labels.csv")
    db = hospital.parent / "index.db"
    with watched() as opened:
        report = index.scan(hospital, db, labels=listed, opt_out=_opt_out("P3"))
    assert hospital / "images/3.dcm" not in opened and hospital / "images/4.dcm" in opened
    assert report.problems == {"OPTED_OUT": 1} and report.opened == 9
    # The patient of a changed file is known from the index alone.
    os.utime(hospital / "images/4.dcm", ns=(1, 1))
    with watched() as opened:
        index.scan(hospital, db, opt_out=_opt_out("P3", "P4"))
    assert not {hospital / "images/3.dcm", hospital / "images/4.dcm"} & opened
    # And one who comes back is read again.
    index.scan(hospital, db, labels=listed, opt_out=_opt_out())
    assert set(_problems(db).values()) == {None}


def test_a_folder_that_is_away_does_not_empty_the_index(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data/1.dcm")
    index.scan(tmp_path / "data", tmp_path / "index.db")
    (tmp_path / "data/1.dcm").rename(tmp_path / "1.dcm")
    with pytest.raises(ScanError) as caught:
        index.scan(tmp_path / "data", tmp_path / "index.db")
    assert caught.value.code == "DATA_FOLDER_EMPTY"
    assert len(index.files(tmp_path / "index.db")) == 1
    with pytest.raises(ScanError) as caught:
        index.scan(tmp_path / "gone", tmp_path / "index.db")
    assert caught.value.code == "DATA_FOLDER_MISSING"


def test_a_damaged_or_missing_index_says_what_to_do(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data/1.dcm")
    with pytest.raises(ScanError, match="silo scan"):
        index.files(tmp_path / "index.db")
    (tmp_path / "index.db").write_bytes(b"not a database, and long enough to be looked at" * 30)
    with pytest.raises(ScanError) as caught:
        index.scan(tmp_path / "data", tmp_path / "index.db")
    assert caught.value.code == "INDEX_DAMAGED"


def _sqlite(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(name)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (_sqlite("SQLITE_CORRUPT_INDEX"), "INDEX_DAMAGED"),
        (_sqlite("SQLITE_FULL"), "DISK_FULL"),
        (_sqlite("SQLITE_IOERR_READ"), "INDEX_IO"),
        (_sqlite("SQLITE_IOERR_FSYNC"), "INDEX_IO"),
        (_sqlite("SQLITE_NOMEM"), "INDEX_IO"),
        (_sqlite("SQLITE_BUSY_SNAPSHOT"), "INDEX_BUSY"),
        (_sqlite("SQLITE_LOCKED_SHAREDCACHE"), "INDEX_BUSY"),
        (_sqlite("SQLITE_READONLY_DBMOVED"), "INDEX_READ_ONLY"),
        (_sqlite("SQLITE_CANTOPEN_ISDIR"), "INDEX_READ_ONLY"),
        (OSError(errno.EIO, "x"), "INDEX_IO"),
        (OSError(errno.ENOSPC, "x"), "DISK_FULL"),
        (PermissionError(errno.EACCES, "x"), "INDEX_READ_ONLY"),
    ],
)
def test_deleting_the_index_is_advised_for_damage_only(error: Exception, code: str) -> None:
    found, sentence = index.why(error)
    assert found == code
    assert ("delete index.db" in sentence) == (code == "INDEX_DAMAGED")


def test_a_scan_that_another_holds_up_is_told(tmp_path: Path, dicom: Dicom, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom(tmp_path / "data/1.dcm")
    index.scan(tmp_path / "data", tmp_path / "index.db")
    monkeypatch.setattr(index, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(tmp_path / "index.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(ScanError) as caught:
        index.scan(tmp_path / "data", tmp_path / "index.db")
    assert caught.value.code == "INDEX_BUSY"
    holder.close()


def test_names_and_dates_are_not_even_parsed(tmp_path: Path, dicom: Dicom) -> None:
    path = dicom(tmp_path / "1.dcm")
    with bounded.opened(path) as source:
        assert "PatientName" not in header.dataset_of(source)
    found = header.read(path)
    assert "P1" not in repr(found) and found.patient == "P1"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_to_a_header_is_a_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    body = bytearray(_example(tmp_path_factory))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(128, len(body) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "1.dcm"
    path.write_bytes(bytes(body[: data.draw(st.integers(0, len(body)))]))
    found = header.read(path)
    assert found.problem is None or found.problem in index.PROBLEMS


def _example(factory: pytest.TempPathFactory) -> bytes:
    if not hasattr(_example, "body"):
        from pydicom.data import get_testdata_file

        path = Path(str(get_testdata_file("MR_small.dcm", download=False)))
        _example.body = path.read_bytes()[:2200]  # type: ignore[attr-defined]
    return _example.body  # type: ignore[attr-defined, no-any-return]
