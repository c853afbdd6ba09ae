"""The gate with real images: opt-out, the 24 hours, too few patients; and that no identity gets into any log."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from silo_node import scanning
from silo_node.errors import Refused
from silo_node.evidence import records
from silo_node.steward.reasons import reason
from tests.silo_node.test_gate import Door

PATIENTS = [f"PAT-{number:04d}" for number in range(12)]
PLAN_NETWORK = {"name": "DenseNet", "args": {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}}


def write_image(path, patient):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.PatientID, image.PatientName, image.Modality = patient, f"Musterfrau^{patient}", "CR"
    image.Rows = image.Columns = 16
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = np.zeros((16, 16), np.uint8).tobytes()
    image.save_as(path, enforce_file_format=True)
    return str(image.SOPInstanceUID)


@pytest.fixture
def door(silo, portal):
    data = silo.config.data
    lines = ["PatientID,SOPInstanceUID,label,split,file"]
    for number, patient in enumerate(PATIENTS):
        name = f"image{number}.dcm"
        uid = write_image(data / name, patient)
        lines.append(f"{patient},{uid},{number % 2},{'test' if number % 4 == 0 else 'train'},{name}")
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    (silo.folder / "opt_out.csv").write_text("PatientID,date\nPAT-0001,2026-01-01\n")
    scanning.scan(silo.config)
    portal.make_study(cohort={"modalities": ["CR"], "min_patients": 5})
    document = __import__("json").loads(portal.manifest_bytes)
    document["plan"]["network"] = PLAN_NETWORK
    portal.make_study(cohort=document["cohort"], plan=document["plan"])
    silo.decide()
    door = Door(silo, portal)
    yield door
    door.node.close()


def test_who_opted_out_is_not_in_the_cohort(door):
    cohort = door.ask().cohort
    assert "PAT-0001" not in cohort.patients
    assert len(cohort.patients) == 11
    assert cohort.excluded["OPTED_OUT"] == 1


def test_an_opt_out_counts_from_the_next_round(door):
    door.ask()
    with (door.silo.folder / "opt_out.csv").open("a") as file:
        file.write("PAT-0002,2026-02-02\n")
    assert not {"PAT-0001", "PAT-0002"} & set(door.ask().cohort.patients)


def test_too_few_patients_decline_without_saying_how_many(door):
    with (door.silo.folder / "opt_out.csv").open("a") as file:
        file.writelines(f"{patient},2026-02-02\n" for patient in PATIENTS[:9])
    with pytest.raises(Refused) as caught:
        door.ask()
    assert caught.value.code == "COHORT_TOO_SMALL"
    assert "3" not in caught.value.sentence


def test_the_stewards_minimum_holds_where_it_is_stricter(door):
    door.silo.decide("revoke", "More patients.")
    door.silo.decide(min_cohort=11)
    assert door.ask()
    with (door.silo.folder / "opt_out.csv").open("a") as file:
        file.write("PAT-0002,2026-02-02\n")
    assert door.refused() == "COHORT_TOO_SMALL"


def test_a_list_that_is_away_for_an_hour_is_replaced_by_its_last_good_reading(door):
    door.ask()
    (door.silo.folder / "opt_out.csv").unlink()
    assert "PAT-0001" not in door.ask().cohort.patients


def test_a_list_that_is_away_for_a_day_stops_the_rounds(door):
    door.ask()
    (door.silo.folder / "opt_out.csv").write_text("no header\n")
    kept = door.silo.folder / "consent" / "opt_out.csv"
    os.utime(kept, (time.time() - 25 * 3600,) * 2)
    assert door.refused() == "OPT_OUT_STALE"


def test_a_list_that_was_never_read_well_stops_the_rounds(door):
    (door.silo.folder / "consent" / "opt_out.csv").unlink()
    (door.silo.folder / "opt_out.csv").write_text("PatientID,date\nPAT-0003,soon\n")
    assert door.refused() == "OPT_OUT_MALFORMED"


def test_a_folder_that_was_never_scanned_stops_the_rounds(door):
    door.silo.config.index_db.unlink()
    assert door.refused().startswith("INDEX")


def test_labels_that_lack_a_column_stop_the_rounds(door):
    (door.silo.config.data / "labels.csv").write_text("PatientID,split\nPAT-0001,train\n")
    assert door.refused() == "LABELS_COLUMN"


def test_no_image_is_opened_by_the_gate(door, monkeypatch):
    door.ask()
    import builtins
    import io

    opened = []
    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        original = getattr(module, name)

        def watching(path, *arguments, original=original, **more):
            opened.append(str(path))
            return original(path, *arguments, **more)

        monkeypatch.setattr(module, name, watching)
    door.ask()
    assert opened
    assert not [path for path in opened if path.endswith(".dcm")]


def test_the_audit_log_holds_a_root_and_no_patient(door):
    announcement = door.announcement()
    permission = door.ask(announcement)
    records.note_cohort(door.node, announcement, permission)
    door.node.evidence.sequence()
    [cohort] = door.node.evidence.records("round.cohort")
    [accessed] = door.node.evidence.records("data.accessed")
    assert cohort["data"]["patients"] == 0  # 11, rounded down to a multiple of 50
    assert cohort["refs"]["cohort_root"] == accessed["refs"]["cohort_root"]
    assert accessed["private"].startswith("sha256:")
    logs = b"".join(path.read_bytes() for path in (door.silo.folder / "log").rglob("*") if path.is_file())
    for identity in (b"PAT-", b"Musterfrau", b"image", b"1.2.826"):
        assert identity not in logs


def test_the_cohorts_root_differs_from_study_to_study(door):
    cohort = door.ask().cohort
    keys = [door.node.keys.study_key(study) for study in ("st-a", "st-b")]
    assert cohort.root(keys[0]) != cohort.root(keys[1])


def test_a_foreign_errors_text_never_leaves():
    said = reason(ValueError("could not read PAT-0001 Musterfrau"))
    assert "PAT" not in said.sentence
    assert "Musterfrau" not in said.sentence


def test_time_is_taken_from_the_clock(door):
    assert door.ask(now=datetime.now(UTC)).opt_out is not None
