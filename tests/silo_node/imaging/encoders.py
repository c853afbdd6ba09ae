"""Real encoders (DCMTK, GDCM, pydicom) and every way in which the standard lets a film's frames be laid out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, encapsulate_extended, fragment_frame, generate_frames

from tests.silo_node.imaging.conftest import write_dicom

# name -> (program, its options, transfer syntax, largest error as a share of the values' range)
ENCODERS: dict[str, tuple[str, tuple[str, ...], uid.UID, float]] = {
    "jpeg_baseline": ("dcmcjpeg", ("+eb", "+q", "95"), uid.JPEGBaseline8Bit, 0.03),
    "jpeg_extended": ("dcmcjpeg", ("+ee", "+q", "95"), uid.JPEGExtended12Bit, 0.03),
    "jpeg_sv1": ("dcmcjpeg", ("+e1",), uid.JPEGLosslessSV1, 0),
    **{f"jpeg_14_{sv}": ("dcmcjpeg", ("+el", "+sv", str(sv)), uid.JPEGLossless, 0) for sv in range(1, 8)},
    "jpeg_ls": ("dcmcjpls", ("+el",), uid.JPEGLSLossless, 0),
    "jpeg_ls_near": ("dcmcjpls", ("+en", "+md", "2"), uid.JPEGLSNearLossless, 0.02),
    "rle": ("dcmcrle", (), uid.RLELossless, 0),
    "gdcm_jpeg": ("gdcmconv", ("--jpeg",), uid.JPEGLosslessSV1, 0),
    "gdcm_jpeg_ls": ("gdcmconv", ("--jpegls",), uid.JPEGLSLossless, 0),
    "gdcm_j2k": ("gdcmconv", ("--j2k",), uid.JPEG2000Lossless, 0),
    "gdcm_j2k_lossy": ("gdcmconv", ("--j2k", "--lossy", "-r", "4", "--irreversible"), uid.JPEG2000, 0.03),
    "gdcm_rle": ("gdcmconv", ("--rle",), uid.RLELossless, 0),
}


def encoded(source: Path, target: Path, name: str) -> Path:
    """`source` in another transfer syntax. Skips the test where the program is not on this machine."""
    program, options, syntax, _ = ENCODERS[name]
    run(program, options, source, target)
    assert pydicom.dcmread(target, specific_tags=[]).file_meta.TransferSyntaxUID == syntax
    return target


def run(program: str, options: tuple[str, ...], source: Path, target: Path) -> Path:
    found = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program}, which writes this encoding, is neither beside Python nor on the path")
    done = subprocess.run([found, *options, str(source), str(target)], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def film(path: Path, bits: int, *, signed: bool = False) -> tuple[Path, np.ndarray]:
    """Five smooth frames, no two alike, the last darker than all others; and their values."""
    y, x = np.mgrid[:48, :41]
    waves = [np.sin(y / (4 + k) + k) + np.cos(x / (7 - k)) for k in range(5)]
    values = np.stack([(wave + 2) / 4 * (2**bits - 1) for wave in waves]).astype(np.int64)
    values[4] //= 2
    values -= 2 ** (bits - 1) if signed else 0
    kind = np.dtype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    # GDCM writes no signed values under computed radiography
    write_dicom(path, values.astype(kind), bits=bits, PixelRepresentation=int(signed), SOPClassUID=uid.CTImageStorage)
    return path, values


def frames_of(path: Path) -> list[bytes]:
    dataset = pydicom.dcmread(path)
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))


def _split_at_odd_places(frame: bytes) -> list[bytes]:
    """Fragments of very different lengths, all even."""
    return [frame[:2], frame[2:20], frame[20:]]


def laid_out(path: Path, layout: str, frames: list[bytes]) -> Path:
    """These frames in the file, fragmented and listed as `layout` says."""
    dataset = pydicom.dcmread(path)
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            delattr(dataset, keyword)
    if layout == "extended table":
        _, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    dataset.PixelData = LAYOUTS[layout](frames)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


def pixels(path: Path, data: bytes) -> None:
    """Put these encapsulated pixels into the file."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = data
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)


def items(fragments: list[list[bytes]], *, table: list[int] | None = None) -> bytes:
    """Encapsulated pixel data with these fragments by frame. table: offsets; None gives the right ones."""
    out, offsets = b"", []
    for frame in fragments:
        offsets.append(len(out))
        for fragment in frame:
            fragment += b"\0" * (len(fragment) % 2)
            out += b"\xfe\xff\x00\xe0" + len(fragment).to_bytes(4, "little") + fragment
    listed = b"".join(at.to_bytes(4, "little") for at in (offsets if table is None else table))
    return b"\xfe\xff\x00\xe0" + len(listed).to_bytes(4, "little") + listed + out


LAYOUTS: dict[str, Callable[[list[bytes]], bytes]] = {
    "basic table": lambda frames: encapsulate(frames, has_bot=True),
    "no table": lambda frames: encapsulate(frames, has_bot=False),
    "extended table": lambda frames: encapsulate_extended(frames)[0],
    "fragments": lambda frames: items([list(fragment_frame(frame, 3)) for frame in frames]),
    "fragments of odd places": lambda frames: items([_split_at_odd_places(frame) for frame in frames]),
    "fragments, no table": lambda frames: items([list(fragment_frame(frame, 4)) for frame in frames], table=[]),
    "some fragments, no table": lambda frames: items(
        [list(fragment_frame(frame, 1 + number % 2)) for number, frame in enumerate(frames)], table=[]
    ),
}
