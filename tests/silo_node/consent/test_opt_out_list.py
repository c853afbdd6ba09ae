"""The opt-out list is believed as a whole or not at all."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from silo_node.consent import opt_out
from silo_node.imaging.errors import TableError


def _load(tmp_path: Path, body: bytes) -> opt_out.OptOut:
    path = tmp_path / "opt_out.csv"
    path.write_bytes(body)
    return opt_out.load(path)


def test_listed_patients_are_out_whatever_the_date(tmp_path: Path) -> None:
    found = _load(tmp_path, b"PatientID,date\nP1,2020-01-31\n P2 ,2999-12-31\n\n")
    assert "P1" in found and "P2" in found and "P3" not in found
    assert len(found) == 2 and found.unknown(["P1", "P3"]) == 1


@pytest.mark.parametrize("header", ["patient id,date", "patient_id,opt_out_date", "patient;date", "date,PatientID"])
def test_usual_headers_are_understood(tmp_path: Path, header: str) -> None:
    line = "2020-01-31,P1" if header.startswith("date") else "P1,2020-01-31".replace(",", ";" if ";" in header else ",")
    assert "P1" in _load(tmp_path, f"{header}\n{line}\n".encode())


def test_a_list_with_only_its_header_is_an_empty_list(tmp_path: Path) -> None:
    assert len(_load(tmp_path, b"PatientID,date\n")) == 0


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (1, b"SECRET,2020-01-01\n"),
        (1, b"PatientID\nSECRET\n"),
        (2, b"PatientID,date\nSECRET\n"),
        (3, b"PatientID,date\nP1,2020-01-01\nSECRET,2020-13-01\n"),
        (2, b"PatientID,date\nSECRET,yesterday\n"),
        (2, b"PatientID,date\nSECRET,\n"),
        (2, b"PatientID,date\n,2020-01-01\n"),
        (2, b"PatientID,date\nSEC\xffRET,2020-01-01\n"),
        (2, b'PatientID,date\n"SECRET,2020-01-01\n'),
        (2, b"PatientID,date\nSEC\x00RET,2020-01-01\n"),
    ],
)
def test_a_malformed_list_is_refused_with_its_line_and_no_patient(tmp_path: Path, line: int, body: bytes) -> None:
    with pytest.raises(TableError) as caught:
        _load(tmp_path, body)
    assert caught.value.code == "OPT_OUT_MALFORMED"
    assert f"opt_out.csv, line {line} " in caught.value.sentence
    assert "SEC" not in str(caught.value)


def test_an_empty_file_is_no_list_because_it_may_be_a_write_cut_off(tmp_path: Path) -> None:
    with pytest.raises(TableError) as caught:
        _load(tmp_path, b"")
    assert caught.value.code == "OPT_OUT_MALFORMED"


def test_a_list_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError) as caught:
        opt_out.load(tmp_path / "gone.csv")
    assert caught.value.code == "OPT_OUT_MISSING"


def test_digest_and_time_of_reading_are_told(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    (tmp_path / "a.csv").write_bytes(b"PatientID,date\n")
    found = opt_out.load(tmp_path / "a.csv", now=now)
    assert found.loaded_at == now
    # sha256 of the fifteen bytes above, from coreutils' sha256sum
    assert found.digest == "sha256:f621e3841021a4617b89a851f8a91fe3292103e30a15e7b27808c4eabf01c85d"
    assert "P1" not in repr(_load(tmp_path, b"PatientID,date\nP1,2020-01-01\n"))


@settings(max_examples=200, deadline=None)
@given(st.sets(st.text("abcXYZ019 -_.", min_size=1, max_size=12).map(str.strip).filter(bool), max_size=20))
def test_every_listed_patient_is_out(tmp_path_factory: pytest.TempPathFactory, patients: set[str]) -> None:
    body = "PatientID,date\n" + "".join(f"{patient},2024-02-29\n" for patient in sorted(patients))
    assert _load(tmp_path_factory.mktemp("list"), body.encode()).patients == patients
