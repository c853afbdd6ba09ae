"""Where header and pixel data contradict each other, nobody knows which picture was meant: the file is refused."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from silo_node.imaging import codestream, decode, header, index
from silo_node.imaging.errors import PixelError
from tests.silo_node.imaging.conftest import write_dicom

PICTURE = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.ones((10, 10), np.uint8))


def _compressed(path: Path, kind: str) -> Path:
    if kind == "j2k":
        return write_dicom(path, PICTURE, syntax=uid.JPEG2000Lossless)
    program = shutil.which("gdcmconv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("gdcmconv, which writes these encodings, is neither beside Python nor on the path")
    plain = write_dicom(path.with_name("plain.dcm"), PICTURE)
    subprocess.run([program, f"--{kind}", str(plain), str(path)], check=True, timeout=60)
    return path


def _edited(path: Path, **elements: Any) -> Path:
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def _code(path: Path) -> str:
    with pytest.raises(PixelError) as caught:
        decode.read(path, size=(16, 16))
    return caught.value.code


@pytest.mark.parametrize("kind", ["j2k", "jpeg", "jpegls"])
@pytest.mark.parametrize(
    "said", [{"Rows": 40, "Columns": 160}, {"Rows": 20, "Columns": 20}, {"Rows": 2000}, {"SamplesPerPixel": 3}]
)
def test_a_compressed_picture_of_another_size_than_said_is_refused(
    tmp_path: Path, kind: str, said: dict[str, int]
) -> None:
    path = _compressed(tmp_path / "1.dcm", kind)
    frame = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    assert codestream.size(frame) == (80, 80, 1)
    assert (decode.read(path, size=(80, 80)) == np.rint(PICTURE / 252 * 255)).all()
    assert _code(_edited(path, **said)) == "PIXELS_CORRUPT"


def test_a_code_stream_in_boxes_says_its_size_and_half_of_one_says_nothing() -> None:
    stream = b"\xff\x4f\xff\x51" + struct.pack(">HH4L4LH", 47, 0, 110, 60, 10, 20, 100, 40, 0, 0, 3)
    assert codestream.size(stream) == (40, 100, 3)
    assert codestream.size(struct.pack(">L", 12) + b"jP  " + bytes(40) + stream) == (40, 100, 3)
    for cut in range(len(stream)):
        assert codestream.size(stream[:cut]) is None
    jpeg = b"\xff\xd8\xff\xff\xe0\x00\x04ab" + b"\xff\xc0\x00\x0b\x08\x00\x28\x00\x64\x01\x01\x11\x00"
    assert codestream.size(jpeg) == (40, 100, 1)
    for cut in range(len(jpeg) - 3):
        assert codestream.size(jpeg[:cut]) is None
    assert codestream.size(b"\xff\xd8\xff\xe0\x00\x00" * 50) is None


def test_fragments_under_a_syntax_without_compression_are_not_taken_for_pixels(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "1.dcm", PICTURE)
    body = path.read_bytes()
    end = body.index(b"\xe0\x7f\x10\x00")
    value = encapsulate([PICTURE.tobytes()]) + b"\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(body[:end] + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + value)
    assert header.read(path).problem == "PIXELS_CORRUPT"
    assert header.read(path).problem in index.PROBLEMS
    assert _code(path) == "PIXELS_CORRUPT"


@pytest.mark.parametrize("stored", [0, 9, 99])
def test_more_stored_bits_than_a_pixel_has_or_none_are_refused(tmp_path: Path, stored: int) -> None:
    assert _code(_edited(write_dicom(tmp_path / "1.dcm", PICTURE), BitsStored=stored)) == "PIXELS_CORRUPT"


@pytest.mark.parametrize(("slope", "intercept"), [("1", "1e308"), ("nan", "0"), ("1e400", "0")])
def test_a_rescale_that_gives_no_numbers_is_refused(tmp_path: Path, slope: str, intercept: str) -> None:
    path = write_dicom(tmp_path / "1.dcm", PICTURE)
    body = path.read_bytes()
    at = body.index(b"\xe0\x7f\x10\x00")
    extra = b"".join(
        struct.pack("<HH2sH", 0x28, element, b"DS", len(text) + len(text) % 2) + (text + " " * (len(text) % 2)).encode()
        for element, text in ((0x1052, intercept), (0x1053, slope))
    )
    path.write_bytes(body[:at] + extra + body[at:])
    assert header.read(path).problem is None
    assert _code(path) == "PIXELS_CORRUPT"


def test_a_patient_id_that_is_a_sequence_names_nobody(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "1.dcm", PICTURE, patient=None)
    body = path.read_bytes()
    at = body.index(b"\x20\x00\x0d\x00")
    name = b"\x10\x00\x10\x00PN\x0c\x00Planted^Name"
    value = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(name)) + name
    path.write_bytes(body[:at] + b"\x10\x00\x20\x00SQ\0\0" + struct.pack("<L", len(value)) + value + body[at:])
    found = header.read(path)
    assert (found.problem, found.patient) == ("CORRUPT", None)


@pytest.mark.parametrize("modality", ["OTTO GEHEIM", "GEHEIM", "geheim", "19480101", "4711"])
def test_a_name_or_number_in_place_of_the_modality_is_not_shown(tmp_path: Path, modality: str) -> None:
    assert header.read(write_dicom(tmp_path / "1.dcm", PICTURE, modality=modality)).modality == "other"


def test_of_two_modalities_in_one_header_neither_is_shown(tmp_path: Path) -> None:
    found = header.read(write_dicom(tmp_path / "1.dcm", PICTURE, modality="CR\\GEHEIM"))
    assert (found.problem, found.modality) == ("CORRUPT", None)


def test_a_modality_of_the_standard_is_shown_and_a_missing_one_is_none(tmp_path: Path) -> None:
    for number, modality in enumerate(["CR", "DX", "RTSEGANN", "ST"]):
        assert header.read(write_dicom(tmp_path / f"{number}.dcm", PICTURE, modality=modality)).modality == modality
    assert header.read(write_dicom(tmp_path / "none.dcm", PICTURE, Modality=None)).modality is None


@pytest.mark.parametrize("syntax", ["1.2.3.19480101", "4711", "1.2.840.10008.1.1", "1.2.840.113619.5.2"])
def test_a_transfer_syntax_that_the_standard_does_not_know_is_not_shown(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "1.dcm", PICTURE)
    plain = str(uid.ExplicitVRLittleEndian).encode() + b"\0"
    path.write_bytes(path.read_bytes().replace(plain, syntax.encode().ljust(len(plain), b"\0")))
    found = header.read(path)
    assert (found.transfer_syntax, found.problem) == ("other", "PIXELS_UNSUPPORTED")


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_sequence_without_an_end_is_damage_and_not_a_matter_of_rights(tmp_path: Path, length: int) -> None:
    path = write_dicom(tmp_path / "1.dcm", PICTURE)
    body = path.read_bytes()
    at = body.index(b"\x28\x00\x02\x00")
    head = struct.pack("<HH2s2sLHHL", 0x09, 0x1140, b"SQ", b"\0\0", 0xFFFFFFFF, 0xFFFE, 0xE000, length)
    path.write_bytes(body[:at] + head + body[at:])
    assert header.read(path).problem == "CORRUPT"
    assert _code(path) == "PIXELS_CORRUPT"


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_picture_without_a_number_is_refused_and_not_black(tmp_path: Path, kind: Any, value: float) -> None:
    """Two numbers among them are enough to be a picture: the rest of it is black."""
    values = np.full((6, 4), value, dtype=kind)
    path = _edited(write_dicom(tmp_path / "1.dcm", np.zeros((6, 4), np.uint8)), BitsAllocated=values.itemsize * 8)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        dataset = pydicom.dcmread(path)
        delattr(dataset, keyword)
        dataset.save_as(path)
    name = {4: "FloatPixelData", 8: "DoubleFloatPixelData"}[values.itemsize]
    _edited(path, **{name: values.tobytes()})
    with pytest.raises(PixelError) as refused:
        decode.read(path, size=(6, 4))
    assert refused.value.code == "PIXELS_NO_VALUE" and refused.value.code in index.PROBLEMS
    values[2, 2:] = 3, 7
    assert decode.read(_edited(path, **{name: values.tobytes()}), size=(6, 4)).max() == 65535


@pytest.mark.parametrize(
    "garbage", [bytes(300), b"Planted^Name" * 20, b"\xff\xd8", b"\x10" + bytes(3) + b"\x40" + bytes(200)]
)
@pytest.mark.parametrize("kind", ["j2k", "jpeg", "jpegls", "rle"])
def test_what_begins_as_no_picture_is_refused_by_the_header_scan(tmp_path: Path, kind: str, garbage: bytes) -> None:
    path = _compressed(tmp_path / "1.dcm", kind)
    assert header.read(path).problem is None
    assert header.read(_edited(path, PixelData=encapsulate([garbage]))).problem == "PIXELS_CORRUPT"


@pytest.mark.parametrize("kind", ["j2k", "jpeg", "jpegls"])
def test_a_compressed_picture_of_another_size_is_refused_by_the_header_scan(tmp_path: Path, kind: str) -> None:
    path = _compressed(tmp_path / "1.dcm", kind)
    assert header.read(_edited(path, Rows=81)).problem == "PIXELS_CORRUPT"


def test_frames_in_several_fragments_are_left_to_decoding(tmp_path: Path) -> None:
    """Also a first fragment without a byte in it."""
    path = _compressed(tmp_path / "1.dcm", "j2k")
    frame = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    parts = encapsulate([frame[:60], frame[60:], frame[:60], frame[60:]], has_bot=False)
    assert header.read(_edited(path, NumberOfFrames=2, PixelData=parts)).problem is None
    empty = struct.pack("<HHL", 0xFFFE, 0xE000, 0)  # as the table of offsets before it
    parts = empty + encapsulate([frame], has_bot=False)
    assert header.read(_edited(path, NumberOfFrames=1, PixelData=parts)).problem is None
