"""Small hospitals of DICOM files, made for one test."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from silo_node.imaging import bounded, header
from silo_node.imaging.cohort import Item
from silo_node.imaging.header import PARSE_ERRORS
from tests.silo_node.opened_files import watched  # noqa: F401


def write_dicom(
    path: Path,
    pixels: np.ndarray | None = None,
    *,
    patient: str | None = "P1",
    sop: str | None = None,
    modality: str = "CR",
    syntax: uid.UID = uid.ExplicitVRLittleEndian,
    bits: int | None = None,
    **elements: Any,
) -> Path:
    """One file. `pixels` [h, w] or [frames, h, w], any integer type; `elements` by DICOM keyword, None removes one."""
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) if pixels is None else pixels
    dataset = Dataset()
    dataset.SOPClassUID = uid.ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = sop or uid.generate_uid(entropy_srcs=[str(path)])
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = uid.generate_uid(entropy_srcs=[str(path), "study"])
    if patient is not None:
        dataset.PatientID = patient
    dataset.PatientName = "Secretly^Known"
    dataset.Modality = modality
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = pixels.itemsize * 8
    dataset.BitsStored = bits or pixels.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def item_of(path: Path, label: int = 0, root: Path | None = None) -> Item:
    """The file as an index of its folder would name it now, whatever its header is worth."""
    sop = patient = None
    try:
        with bounded.opened(path) as source:
            dataset = header.dataset_of(source)
            sop, patient = header.text(dataset, "SOPInstanceUID"), header.text(dataset, "PatientID")
    except (OSError, *PARSE_ERRORS):
        pass
    status = path.stat()
    return Item(patient, sop, path, label, (root or path.parent).resolve(), status.st_size, status.st_mtime_ns)  # type: ignore[arg-type]


def write_table(path: Path, rows: Iterable[Iterable[Any]], header: str = "PatientID,label,split,file") -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


@pytest.fixture
def dicom() -> Callable[..., Path]:
    return write_dicom


@pytest.fixture
def table() -> Callable[..., Path]:
    return write_table


@pytest.fixture
def study() -> Callable[..., Any]:
    """What the cohort reads of a manifest."""

    def make(modalities: tuple[str, ...] = ("CR", "DX"), min_patients: int = 1) -> Any:
        return SimpleNamespace(cohort=SimpleNamespace(modalities=modalities, min_patients=min_patients))

    return make


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Ten patients, P0..P9, one picture each, labels 0 and 1 in turn; P8 and P9 are test patients."""
    folder = tmp_path / "hospital"
    rows = []
    rng = np.random.default_rng(1)
    for number in range(10):
        pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
        write_dicom(folder / f"images/{number}.dcm", pixels, patient=f"P{number}")
        rows.append((f"P{number}", number % 2, "test" if number > 7 else "train", f"images/{number}.dcm"))
    write_table(folder / "labels.csv", rows)
    return folder
