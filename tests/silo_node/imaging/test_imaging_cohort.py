"""Who may take part: labelled, indexed, of the right modality, and not opted out."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.transparency import tree
from silo_node.consent.opt_out import OptOut
from silo_node.imaging import cohort, index, labels
from silo_node.imaging.errors import CohortError, TableError

Study = Callable[..., object]
Dicom = Callable[..., Path]
Table = Callable[..., Path]


def _opt_out(*patients: str) -> OptOut:
    return OptOut(frozenset(patients), "sha256:" + "0" * 64, datetime.now(UTC))


def _build(folder: Path, study: object, opt_out: OptOut | None = None, **options: int) -> cohort.Cohort:
    listed = labels.load(folder / "labels.csv")
    index.scan(folder, folder.parent / "index.db", labels=listed, opt_out=opt_out)
    return cohort.build(study, folder.parent / "index.db", listed, opt_out, **options)


def test_labelled_patients_of_the_modality_take_part(hospital: Path, study: Study) -> None:
    found = _build(hospital, study())
    assert len(found.patients) == 10 and found.excluded == {}
    assert {item.patient for item in found.test} == {"P8", "P9"}
    assert [item.label for item in found.train] == [0, 1] * 4
    assert all(item.path.is_file() for item in found.train)


def test_a_patient_who_opts_out_is_gone_and_named_nowhere(hospital: Path, study: Study) -> None:
    found = _build(hospital, study(), _opt_out("P3", "unknown"))
    assert "P3" not in found.patients and found.excluded == {"OPTED_OUT": 1}
    assert found.withdrawn == ("P3", "unknown")
    assert "P3" not in repr(found) and "P4" not in repr(found) and "P4" not in repr(found.train[0])


def test_opting_out_counts_under_the_id_of_the_header_and_of_the_list(
    tmp_path: Path, study: Study, dicom: Dicom, table: Table
) -> None:
    folder = tmp_path / "h"
    dicom(folder / "1.dcm", patient="HEADER")
    dicom(folder / "2.dcm", patient="P2")
    table(folder / "labels.csv", [("LIST", 1, "1.dcm"), ("P2", 0, "2.dcm")], "PatientID,label,file")
    for patient in ("HEADER", "LIST"):
        found = _build(folder, study(), _opt_out(patient))
        assert found.patients == ("P2",) and found.excluded == {"OPTED_OUT": 1}
    assert _build(folder, study()).excluded == {"PATIENT_DIFFERS": 1}


def test_every_exclusion_has_its_reason(tmp_path: Path, study: Study, dicom: Dicom, table: Table) -> None:
    folder = tmp_path / "h"
    for name, options in {
        "good": {"patient": "P1", "sop": "1.1"},
        "ct": {"patient": "P2", "sop": "1.2", "modality": "CT"},
        "unlabelled": {"patient": "P3", "sop": "1.3"},
        "differs": {"patient": "P4", "sop": "1.4"},
        "nobody": {"patient": None, "sop": "1.5"},
    }.items():
        dicom(folder / f"{name}.dcm", **options)
    rows = [("1.1", 1, "good.dcm"), ("1.2", 1, "ct.dcm"), ("1.9", 0, "differs.dcm"), ("1.5", 0, "nobody.dcm")]
    table(folder / "labels.csv", rows, "SOPInstanceUID,label,file")
    found = _build(folder, study())
    assert found.patients == ("P1",)
    assert found.excluded == {"INSTANCE_DIFFERS": 1, "MODALITY": 1, "NO_LABEL": 1, "NO_PATIENT": 1}


def test_a_listed_file_that_cannot_be_read_stays_out_and_the_other_lines_count(
    tmp_path: Path, study: Study, dicom: Dicom, table: Table
) -> None:
    folder = tmp_path / "h"
    for number in (1, 2):
        dicom(folder / f"{number}.dcm", patient=f"P{number}")
    os.mkfifo(folder / "pipe.dcm")
    (folder / "loop.dcm").symlink_to("loop.dcm")
    (folder / "nowhere.dcm").symlink_to("gone.dcm")
    (folder / "outside.dcm").symlink_to("/etc/hostname")
    (folder / "folder.dcm").mkdir()
    names = ["1", "2", "pipe", "loop", "nowhere", "outside", "folder"]
    table(
        folder / "labels.csv",
        [(f"P{number}", number % 2, f"{name}.dcm") for number, name in enumerate(names, 1)],
        "PatientID,label,file",
    )
    found = _build(folder, study())
    assert found.patients == ("P1", "P2")
    assert found.excluded == {"LINK_OUTSIDE": 1, "NOT_A_FILE": 1, "NOT_IN_INDEX": 1, "UNREADABLE": 2}


def test_a_folder_that_cannot_be_searched_costs_only_the_lines_that_lead_there(
    hospital: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = hospital / "labels.csv"
    listed.write_text(listed.read_text() + "P99,1,train,closed/1.dcm\n")
    real = os.lstat

    def lstat(path: Path, **more: Any) -> os.stat_result:
        if "closed" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, **more)

    # Whoever runs the tests as root may search everything.
    monkeypatch.setattr(os, "lstat", lstat)
    found = _build(hospital, study())
    assert len(found.patients) == 10 and found.excluded == {"NOT_IN_INDEX": 1}


def test_who_opted_out_stays_closed_by_a_list_that_names_what_cannot_be_read(
    tmp_path: Path, study: Study, dicom: Dicom, table: Table
) -> None:
    """Also when the file can be read again: the line went on saying whose it is."""
    folder = tmp_path / "h"
    dicom(folder / "1.dcm", patient="P1")
    os.mkfifo(folder / "2.dcm")
    table(folder / "labels.csv", [("P1", 1, "1.dcm"), ("P2", 0, "2.dcm")], "PatientID,label,file")
    assert _build(folder, study(), _opt_out("P2")).patients == ("P1",)
    (folder / "2.dcm").unlink()
    dicom(folder / "2.dcm", patient="somebody else, by the header")
    found = _build(folder, study(), _opt_out("P2"))
    assert found.patients == ("P1",) and found.excluded == {"OPTED_OUT": 1}
    [row] = [file for file in index.files(tmp_path / "index.db") if file.path.name == "2.dcm"]
    assert row.problem == "OPTED_OUT" and row.sop is None, "not opened"


def test_a_label_by_patient_counts_for_all_pictures_and_the_split_is_by_patient(
    tmp_path: Path, study: Study, dicom: Dicom, table: Table
) -> None:
    folder = tmp_path / "h"
    for patient in range(20):
        for film in range(2):
            dicom(folder / f"{patient}_{film}.dcm", patient=f"P{patient}")
    table(folder / "labels.csv", [(f"P{patient}", patient % 2) for patient in range(21)], "PatientID,label")
    found = _build(folder, study())
    assert len(found.train) + len(found.test) == 40 and found.excluded == {"NOT_IN_INDEX": 1}
    assert {item.patient for item in found.test} == {"P4", "P11", "P16"}
    assert not {item.patient for item in found.test} & {item.patient for item in found.train}


def test_a_split_that_parts_a_patient_is_seen_even_where_only_the_index_shows_it(
    tmp_path: Path, study: Study, dicom: Dicom, table: Table
) -> None:
    folder = tmp_path / "h"
    for name in ("1.1", "1.2"):
        dicom(folder / f"{name}.dcm", patient="SECRET", sop=name)
    table(folder / "labels.csv", [("1.1", 1, "train"), ("1.2", 1, "test")], "SOPInstanceUID,label,split")
    with pytest.raises(TableError, match="lines 2 and 3") as caught:
        _build(folder, study())
    assert caught.value.code == "LABELS_SPLIT" and "SECRET" not in str(caught.value)


def test_too_few_patients_is_a_refusal_without_a_count(hospital: Path, study: Study) -> None:
    for options in ({"min_patients": 11}, {}):
        with pytest.raises(CohortError) as caught:
            _build(hospital, study(min_patients=11 if not options else 1), **options)
        assert caught.value.code == "COHORT_TOO_SMALL"
        assert "11" in caught.value.sentence and "10" not in caught.value.sentence


def test_nobody_is_a_refusal(hospital: Path, study: Study) -> None:
    with pytest.raises(CohortError) as caught:
        _build(hospital, study(("MG",)))
    assert caught.value.code == "COHORT_EMPTY"
    with pytest.raises(CohortError) as caught:  # test patients alone cannot train
        _build(hospital, study(), _opt_out(*(f"P{number}" for number in range(8))))
    assert caught.value.code == "COHORT_EMPTY"


def test_a_cohort_survives_its_file_and_the_file_is_private(hospital: Path, study: Study, tmp_path: Path) -> None:
    found = _build(hospital, study(), _opt_out("P3"))
    found.save(tmp_path / "cohort.json")
    assert cohort.Cohort.load(tmp_path / "cohort.json") == found
    assert (tmp_path / "cohort.json").stat().st_mode & 0o777 == 0o600


def test_the_root_is_a_merkle_root_over_sorted_pseudonyms() -> None:
    key = bytes(range(32))
    leaves = sorted(hmac.new(key, patient, hashlib.sha256).digest() for patient in (b"A", b"B", b"C"))
    one, two, three = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves)
    expected = hashlib.sha256(b"\x01" + hashlib.sha256(b"\x01" + one + two).digest() + three).digest()
    assert cohort.cohort_root(["B", "C", "A", "A"], key) == expected
    assert cohort.cohort_root(["A", "B", "C"], bytes(32)) != expected
    with pytest.raises(ValueError, match="16 bytes"):
        cohort.cohort_root(["A"], b"short")


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=20), st.data())
def test_membership_of_each_patient_can_be_proved(patients: set[str], data: st.DataObject) -> None:
    key = b"k" * 32
    root = cohort.cohort_root(patients, key)
    leaves = [tree.leaf_hash(leaf) for leaf in cohort.pseudonyms(patients, key)]
    patient = data.draw(st.sampled_from(sorted(patients)))
    at = cohort.pseudonyms(patients, key).index(cohort.pseudonyms([patient], key)[0])
    tree.verify_inclusion(leaves[at], at, len(leaves), tree.inclusion_proof(leaves, at, len(leaves)), root)


def test_the_folder_may_be_reached_by_two_names(
    hospital: Path, study: Study, tmp_path: Path, watched: Callable
) -> None:
    """A label list under one name and the data under another must still keep a patient's file closed."""
    (tmp_path / "link").symlink_to(hospital)
    listed = labels.load(tmp_path / "hospital/../link/labels.csv")
    with watched() as opened:
        index.scan(hospital, tmp_path / "index.db", labels=listed, opt_out=_opt_out("P3"))
    assert hospital.resolve() / "images/3.dcm" not in opened and hospital.resolve() / "images/4.dcm" in opened
    found = cohort.build(study(), tmp_path / "index.db", listed, _opt_out("P3"))
    assert len(found.patients) == 9
