"""High-throughput JPEG 2000 (PS3.5 A.4.4, syntaxes .201 to .203), from code streams that OpenJPH wrote: see htj2k/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from silo_node.imaging import decode, header
from silo_node.imaging.errors import PixelError
from tests.silo_node.imaging.conftest import write_dicom

STREAMS = Path(__file__).with_name("htj2k")
SYNTAXES = [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K]
Y, X = np.mgrid[:24, :32]
WAVE = (np.sin(Y / 5) + np.cos(X / 7) + 2) / 4
GREY8 = np.rint(WAVE * 255)
COLOUR = np.stack([GREY8, np.rint(X / 31 * 255), np.rint(Y / 23 * 255)], axis=-1)


def _file(path: Path, name: str, syntax: uid.UID, *, bits: int, signed: bool = False, frames: int = 1) -> Path:
    kind = np.dtype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    write_dicom(path, np.zeros((24, 32), kind), bits=bits)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    if frames > 1:
        dataset.NumberOfFrames = frames
    if name == "colour":
        dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "YBR_RCT"
    dataset.PixelData = encapsulate([(STREAMS / f"{name}.j2c").read_bytes()] * frames)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


def _white(path: Path) -> np.ndarray:
    picture = decode.read(path, size=(24, 32))
    return picture.astype(np.float64) / np.iinfo(picture.dtype).max


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("name", "bits"), [("grey8", 8), ("grey12", 12), ("grey16", 16), ("signed16", 16)])
def test_high_throughput_files_are_read_exactly(tmp_path: Path, syntax: uid.UID, name: str, bits: int) -> None:
    for frames in (1, 3):
        path = _file(tmp_path / "1.dcm", name, syntax, bits=bits, signed="signed" in name, frames=frames)
        assert header.read(path).problem is None
        values = np.rint(WAVE * (2**bits - 1))
        wanted = (values - values.min()) / np.ptp(values)
        assert np.abs(_white(path) - wanted).max() <= 1 / (255 if bits == 8 else 65535)


def test_a_lossy_high_throughput_file_is_read_nearly(tmp_path: Path) -> None:
    path = _file(tmp_path / "1.dcm", "grey16_lossy", uid.HTJ2K, bits=16)
    wanted = (WAVE - WAVE.min()) / np.ptp(WAVE)
    assert 1 / 65535 < np.abs(_white(path) - wanted).max() < 0.002


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_colour_in_high_throughput_is_its_luminance(tmp_path: Path, syntax: uid.UID) -> None:
    path = _file(tmp_path / "1.dcm", "colour", syntax, bits=8)
    assert np.abs(_white(path) - COLOUR @ [0.299, 0.587, 0.114] / 255).max() < 1 / 255


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_high_throughput_file_that_is_cut_off_or_of_another_size_is_refused(tmp_path: Path, syntax: uid.UID) -> None:
    path = _file(tmp_path / "1.dcm", "grey16", syntax, bits=16)
    stream = (STREAMS / "grey16.j2c").read_bytes()
    for wrong, rows in ((stream[: len(stream) // 2], 24), (stream[:30], 24), (b"", 24), (stream, 32)):
        dataset = pydicom.dcmread(path)
        dataset.Rows, dataset.PixelData = rows, encapsulate([wrong or b"\0\0"])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
        with pytest.raises(PixelError) as caught:
            decode.read(path, size=(24, 32))
        assert caught.value.code == "PIXELS_CORRUPT"
