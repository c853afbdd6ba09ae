"""What lies beside images in a folder, and headers that are odd but whole: a row with the right reason, or read right."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from silo_node.imaging import decode, header, terms
from silo_node.imaging.errors import PixelError
from tests.silo_node.imaging import awkward

VIDEOS = [f"1.2.840.10008.1.2.4.{number}" for number in (100, 101, 102, 103, 104, 105, 106, 107, 108)]
OTHERS = [
    "1.2.840.10008.1.2.4.52", "1.2.840.10008.1.2.4.66", "1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93",
    "1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.204",
    "1.2.840.10008.1.2.7.1", "1.2.840.10008.1.2.1.98", "1.2.840.113619.5.2",
]  # fmt: skip


@pytest.mark.parametrize("syntax", [*VIDEOS, *OTHERS])
def test_what_nothing_decodes_is_refused_and_its_syntax_named(tmp_path: Path, syntax: str) -> None:
    path = awkward.image(tmp_path / "1.dcm")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1080, 1920, 300
    dataset.PixelData = encapsulate([b"\0\0\1\xb3" + bytes(200)])
    dataset["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    found = header.read(path)
    assert (found.problem, found.transfer_syntax) == ("PIXELS_UNSUPPORTED", terms.transfer_syntax(syntax))
    with pytest.raises(PixelError):
        decode.read(path, size=(16, 16))


@pytest.mark.parametrize(
    "name", ["dicomdirtests/DICOMDIR", "test-SR.dcm", "reportsi.dcm", "waveform_ecg.dcm", "rtplan.dcm"]
)
def test_what_is_no_image_is_called_so(name: str) -> None:
    folder = Path(str(get_testdata_file("MR_small.dcm", download=False))).parent
    assert header.read(folder / name).problem == "NO_IMAGE"


def test_a_document_in_dicom_is_no_image(tmp_path: Path) -> None:
    path = awkward.image(tmp_path / "1.dcm")
    dataset = pydicom.dcmread(path)
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(dataset, keyword)
    dataset.EncapsulatedDocument, dataset.MIMETypeOfEncapsulatedDocument = b"%PDF-1.4", "application/pdf"
    dataset.save_as(path)
    assert header.read(path).problem == "NO_IMAGE"


def _read_right(path: Path) -> bool:
    found = header.read(path)
    assert (found.problem, found.patient, found.rows) == (None, awkward.PATIENT, 16)
    return np.array_equal(decode.read(path, size=(16, 16)), awkward.RAMP)


@pytest.mark.parametrize("length", [0, 10, 9999])
def test_a_wrong_length_of_a_group_changes_nothing(tmp_path: Path, length: int) -> None:
    path = awkward.image(tmp_path / "1.dcm")
    body = path.read_bytes()
    path.write_bytes(body[:140] + struct.pack("<L", length) + body[144:])
    assert _read_right(path)
    wrong = awkward.element(0x00280000, b"UL", struct.pack("<L", length))
    assert _read_right(awkward.before_pixels(awkward.image(path), wrong))


@pytest.mark.parametrize("charset", [b"NONSENSE", b"ISO_IR 999", b"\\ISO 2022 IR 87 ", b"\x1b$B ", b"utf-8 "])
def test_a_character_set_of_nonsense_changes_no_plain_patient_id(tmp_path: Path, charset: bytes) -> None:
    path = awkward.image(tmp_path / "1.dcm")
    charset += b" " * (len(charset) % 2)
    assert _read_right(awkward.before_pixels(path, awkward.element(0x00080005, b"CS", charset), at=b"\x08\x00\x16\x00"))


@pytest.mark.parametrize("kind", [b"PN", b"US", b"FD", b"AT", b"UI", b"ZZ"])
def test_a_wrong_kind_of_the_name_or_of_the_patient_id_changes_nothing(tmp_path: Path, kind: bytes) -> None:
    for tag, right in ((b"\x10\x00\x10\x00", b"PN"), (b"\x10\x00\x20\x00", b"LO")):
        path = awkward.image(tmp_path / "1.dcm")
        body = path.read_bytes()
        path.write_bytes(body.replace(tag + right, tag + kind))
        assert _read_right(path), tag


@pytest.mark.parametrize("kind", [b"SQ", b"UN", b"OB", b"\0\0"])
def test_a_kind_that_swallows_the_header_is_refused(tmp_path: Path, kind: bytes) -> None:
    for tag, right in ((b"\x10\x00\x10\x00", b"PN"), (b"\x10\x00\x20\x00", b"LO")):
        path = awkward.image(tmp_path / "1.dcm")
        path.write_bytes(path.read_bytes().replace(tag + right, tag + kind))
        found = header.read(path)
        assert found.problem in ("CORRUPT", "NO_IMAGE", "HEADER_TOO_LARGE") and "PLANTED" not in repr(found)


@pytest.mark.parametrize("levels", [200, 1000])
def test_sequences_nested_deeper_than_any_real_one_are_refused(tmp_path: Path, levels: int) -> None:
    """Each of undefined length, each closed: the file is whole."""
    end = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    path = awkward.before_pixels(awkward.image(tmp_path / "1.dcm"), awkward._deep(levels) + end * levels)
    assert header.read(path).problem == "HEADER_TOO_LARGE"
    assert _read_right(awkward.before_pixels(awkward.image(tmp_path / "2.dcm"), awkward._deep(30) + end * 30))


@pytest.mark.parametrize("keyword", ["PatientID", "SOPInstanceUID"])
def test_two_values_where_one_belongs_name_nobody(tmp_path: Path, keyword: str) -> None:
    """Either of the two patients may have opted out."""
    path = awkward.image(tmp_path / "1.dcm")
    dataset = pydicom.dcmread(path)
    setattr(dataset, keyword, ["1.2", "1.3"])
    dataset.save_as(path)
    found = header.read(path)
    assert (found.problem, found.patient) == ("CORRUPT", None)


@pytest.mark.parametrize("frames", [b"0 ", b"", b"01", b"+1", b" 1 ", b"1.0 "])
def test_a_number_of_frames_that_means_one_is_one(tmp_path: Path, frames: bytes) -> None:
    path = awkward.image(tmp_path / "1.dcm")
    frames += b" " * (len(frames) % 2)
    assert _read_right(awkward.before_pixels(path, awkward.element(0x00280008, b"IS", frames), at=b"\x28\x00\x10\x00"))


@pytest.mark.parametrize(
    "keyword", ["PixelRepresentation", "BitsStored", "PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated"]
)
def test_pixels_whose_meaning_is_missing_are_refused(tmp_path: Path, keyword: str) -> None:
    path = awkward.image(tmp_path / "1.dcm")
    dataset = pydicom.dcmread(path)
    delattr(dataset, keyword)
    dataset.save_as(path)
    with pytest.raises(PixelError) as caught:
        decode.read(path, size=(16, 16))
    assert caught.value.code == "PIXELS_CORRUPT"
