"""One DICOM header: only the elements that the index needs, and never the pixels.

`specific_tags` keeps names, birth dates and the like from being parsed at all.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from dataclasses import astuple, dataclass, field
from pathlib import Path

import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

MAX_PIXELS = 64 * 2**20  # 8,192 x 8,192: larger than any mammogram
# Everything that pydicom was seen to raise on damaged bytes; anything else is a fault of ours and must show.
PARSE_ERRORS = (
    InvalidDicomError, BytesLengthException, EOFError, struct.error, zlib.error, ValueError, TypeError, KeyError,
    IndexError, AttributeError, NotImplementedError, OverflowError, RecursionError, MemoryError, AssertionError,
)  # fmt: skip
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows",
    "Columns", "NumberOfFrames",
]  # fmt: skip

# pydicom's warnings and log lines quote header values: they may name a patient.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


@dataclass(frozen=True)
class Header:
    """What the index keeps. `problem` is a code of index.PROBLEMS or None."""

    sop: str | None = field(default=None, repr=False)
    patient: str | None = field(default=None, repr=False)
    study: str | None = field(default=None, repr=False)
    series: str | None = field(default=None, repr=False)
    modality: str | None = None
    rows: int | None = None
    columns: int | None = None
    frames: int | None = None
    transfer_syntax: str | None = None
    problem: str | None = None

    def as_row(self) -> tuple[str | int | None, ...]:
        return astuple(self)


def read(path: Path) -> Header:
    """The header of one file. Never raises for what is in the file: the problem is in the answer."""
    try:
        dataset = open_dataset(path, pixels=False)
        return _header(dataset)
    except OSError:
        return Header(problem="UNREADABLE")
    except InvalidDicomError:
        return Header(problem="NOT_DICOM")
    except PARSE_ERRORS:
        return Header(problem="CORRUPT")


def open_dataset(path: Path, *, pixels: bool) -> Dataset:
    """Read a file; old files without the 128-byte preamble are taken where they hold an image.

    Raises OSError, InvalidDicomError (no DICOM file) and what PARSE_ERRORS lists.
    """
    options = {} if pixels else {"stop_before_pixels": True, "specific_tags": _TAGS}
    try:
        return pydicom.dcmread(path, **options)
    except InvalidDicomError:
        if path.stat().st_size < 132:
            raise
        dataset = pydicom.dcmread(path, force=True, **options)
        if "SOPInstanceUID" not in dataset or "Rows" not in dataset:
            raise
        return dataset


def transfer_syntax(dataset: Dataset) -> str:
    """The UID; a file without a file meta group is in the encoding by which it could be read."""
    given = getattr(dataset, "file_meta", None)
    if given is not None and "TransferSyntaxUID" in given:
        return str(given.TransferSyntaxUID)
    implicit, little = dataset.original_encoding
    if implicit:
        return str(pydicom.uid.ImplicitVRLittleEndian)
    return str(pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)


def _header(dataset: Dataset) -> Header:
    def text(name: str) -> str | None:
        value = dataset.get(name)
        return (str(value).strip(" \x00") or None) if value is not None else None

    def number(name: str) -> int | None:
        value = dataset.get(name)
        return int(value) if value not in (None, "") else None

    rows, columns, frames = number("Rows"), number("Columns"), number("NumberOfFrames")
    found = Header(
        sop=text("SOPInstanceUID"), patient=text("PatientID"), study=text("StudyInstanceUID"),
        series=text("SeriesInstanceUID"), modality=text("Modality"), rows=rows, columns=columns, frames=frames or 1,
        transfer_syntax=transfer_syntax(dataset),
    )  # fmt: skip
    return Header(**{**found.__dict__, "problem": _problem(found)})


def _problem(header: Header) -> str | None:
    if not header.rows or not header.columns or (header.frames or 0) < 1:
        return "NO_IMAGE"
    if header.sop is None:
        return "NO_INSTANCE"
    if header.patient is None:
        return "NO_PATIENT"
    if header.rows * header.columns > MAX_PIXELS:
        return "TOO_LARGE"
    return None
