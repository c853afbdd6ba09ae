"""A folder of awkward and hostile files, each with what must become of it. `NAME` is planted in all of them."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence

from tests.silo_node.imaging.conftest import write_dicom

NAME = "Plantedsson^Ada"
PATIENT = "PLANTED-7731"
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
UNDEFINED = 0xFFFFFFFF
NO_RLE = b"\1\0\0\0\x40\0\0\0" + bytes(56) + b"\5ab\0"
"""Begins as RLE does, and is no picture."""


def image(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    """A file with the planted name in the usual and in private places."""
    write_dicom(path, RAMP if pixels is None else pixels, **{"patient": PATIENT, "PatientName": NAME, **options})
    return path


def element(tag: int, kind: bytes, value: bytes) -> bytes:
    """Explicit little endian."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind
    if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + b"\0\0" + struct.pack("<L", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def before_pixels(path: Path, extra: bytes, at: bytes = b"\x28\x00\x02\x00") -> Path:
    """`extra` put into the data set before the element whose tag is `at`."""
    body = path.read_bytes()
    place = body.index(at)
    path.write_bytes(body[:place] + extra + body[place:])
    return path


def refused(folder: Path) -> dict[str, str]:
    """Files that no round may use; name -> the code that the header scan must give."""
    made: dict[str, str] = {}

    def add(name: str, code: str, make: Callable[[Path], Any]) -> None:
        make(folder / name)
        made[name] = code

    add("empty.dcm", "NOT_DICOM", Path.touch)
    add("text.dcm", "NOT_DICOM", lambda path: path.write_text(f"{NAME}\n" * 50))
    add("zip.dcm", "NOT_DICOM", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(1000)))
    add("only_magic.dcm", "NO_IMAGE", lambda path: path.write_bytes(bytes(128) + b"DICM"))
    add("no_pixels.dcm", "NO_PIXELS", lambda path: _without(path, "PixelData"))
    add("report.dcm", "NO_IMAGE", lambda path: _without(path, "PixelData", "Rows", "Columns"))
    add("no_patient.dcm", "NO_PATIENT", lambda path: image(path, patient=None))
    add("huge.dcm", "TOO_LARGE", lambda path: image(path, Rows=65535, Columns=65535))
    add("many_frames.dcm", "PIXELS_CUT", lambda path: image(path, NumberOfFrames="2000000000"))
    add("endless_frames.dcm", "CORRUPT", lambda path: image(path, NumberOfFrames="999999999999"))
    add("minus_frames.dcm", "CORRUPT", lambda path: image(path, NumberOfFrames="-3"))
    add("cut.dcm", "PIXELS_CUT", lambda path: path.write_bytes(image(path).read_bytes()[:-10]))
    add("no_delimiter.dcm", "PIXELS_CUT", lambda path: path.write_bytes(_rle(path).read_bytes()[:-8]))
    add("cut_fragment.dcm", "PIXELS_CUT", lambda path: path.write_bytes(_rle(path).read_bytes()[:-20]))
    add("few_fragments.dcm", "PIXELS_CUT", lambda path: _edit(_rle(path), NumberOfFrames="40"))
    add("unknown_syntax.dcm", "PIXELS_UNSUPPORTED", lambda path: _syntax(_rle(path), "1.2.840.10008.1.2.4.102"))
    add("private_syntax.dcm", "PIXELS_UNSUPPORTED", lambda path: _syntax(_rle(path), "1.2.3.4"))
    add("deep.dcm", "HEADER_TOO_LARGE", lambda path: before_pixels(image(path), _deep(4000)))
    add("wide.dcm", "HEADER_TOO_LARGE", lambda path: before_pixels(image(path), _wide(700_000)))
    add("bomb.dcm", "HEADER_TOO_LARGE", _bomb)
    add("not_deflated.dcm", "CORRUPT", lambda path: _syntax(image(path), uid.DeflatedExplicitVRLittleEndian))
    add("endless_patient.dcm", "HEADER_TOO_LARGE", _endless_patient)
    add("long_patient.dcm", "CORRUPT", lambda path: image(path, patient=PATIENT * 500))
    add("rows_as_text.dcm", "CORRUPT", lambda path: _wrong_kind(image(path), b"\x28\x00\x10\x00US", b"AE"))
    add("pipe.dcm", "NOT_A_FILE", os.mkfifo)
    add("socket.dcm", "NOT_A_FILE", _socket)
    outside = folder.parent / f"{NAME}.dcm"
    image(outside)
    add("link.dcm", "LINK_OUTSIDE", lambda path: path.symlink_to(outside))
    add("link_folder", "LINK_OUTSIDE", lambda path: path.symlink_to("/etc"))
    add("link_device.dcm", "LINK_OUTSIDE", lambda path: path.symlink_to("/dev/zero"))
    add("link_loop.dcm", "UNREADABLE", lambda path: path.symlink_to(path))
    return made


def damaged(folder: Path) -> list[Path]:
    """Files whose header looks right and whose pixels are not: decoding must refuse them."""
    return [
        _edit(_rle(folder / "noise.dcm"), PixelData=encapsulate([NO_RLE])),
        _edit(_j2k(folder / "wide_j2k.dcm"), PixelData=encapsulate([_huge_j2k(folder / "made.dcm")])),
        _edit(image(folder / "no_bits.dcm"), BitsAllocated=0),
        _edit(image(folder / "twelve.dcm"), BitsAllocated=12, BitsStored=12, HighBit=11),
        _edit(image(folder / "high_bit.dcm", RAMP.astype(np.uint16)), BitsStored=8, HighBit=30),
        _edit(
            image(folder / "seven_samples.dcm", RAMP.repeat(7)[None].reshape(16, 112)), Columns=16, SamplesPerPixel=7
        ),
        _edit(image(folder / "no_meaning.dcm"), PhotometricInterpretation="NONSENSE"),
        _edit(image(folder / "half_palette.dcm"), PhotometricInterpretation="PALETTE COLOR"),
    ]


def depths(folder: Path) -> dict[Path, np.ndarray]:
    """Bit depths 1 to 32, signed and not, at two places in a pixel; file -> its values as int64 [h, w]."""
    made: dict[Path, np.ndarray] = {}
    rng = np.random.default_rng(4)
    for bits in range(1, 33):
        allocated = 8 if bits <= 8 else 16 if bits <= 16 else 32
        for signed in (False, True):
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
            values = rng.integers(low, high, (8, 10), dtype=np.int64)
            for high_bit in {bits - 1, allocated - 1}:
                raw = (values % 2**bits) << (high_bit + 1 - bits)
                rest = rng.integers(0, 2**allocated, values.shape, dtype=np.int64)  # what old files keep beside
                mask = (2**bits - 1) << (high_bit + 1 - bits)
                pixels = (raw | rest & ~mask).astype(f"<u{allocated // 8}")
                path = folder / f"{bits}_{high_bit}_{signed}.dcm"
                image(path, pixels, bits=bits, PixelRepresentation=int(signed), HighBit=high_bit)
                made[path] = values
    return made


def films(folder: Path) -> dict[Path, np.ndarray]:
    """Multi-frame files; file -> the values of the frame that counts, the middle one."""
    rng = np.random.default_rng(5)
    grey = rng.integers(0, 4096, (5, 7, 9), dtype=np.uint16)
    made = {
        image(folder / "native.dcm", grey, bits=12): grey[2],
        image(folder / "big_endian.dcm", grey.astype(">u2"), bits=12, syntax=uid.ExplicitVRBigEndian): grey[2],
        image(folder / "deflated.dcm", grey, bits=12, syntax=uid.DeflatedExplicitVRLittleEndian): grey[2],
        image(folder / "rle.dcm", grey, bits=12, syntax=uid.RLELossless): grey[2],
    }
    frames = [
        bytes(frame)
        for frame in pydicom.encaps.generate_frames(_read(folder / "rle.dcm").PixelData, number_of_frames=5)
    ]
    table = encapsulate_extended(frames)
    path = image(folder / "extended.dcm", grey, bits=12, syntax=uid.RLELossless)
    _edit(path, PixelData=table[0], ExtendedOffsetTable=table[1], ExtendedOffsetTableLengths=table[2])
    made[path] = grey[2]
    path = image(folder / "no_table.dcm", grey, bits=12, syntax=uid.RLELossless)
    made[_edit(path, PixelData=encapsulate(frames, has_bot=False))] = grey[2]
    single = rng.integers(0, 2, (3, 5, 5), dtype=np.uint8)
    packed = np.packbits(single.reshape(-1), bitorder="little").tobytes()
    path = image(folder / "single_bits.dcm", single)
    made[_edit(path, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed + bytes(len(packed) % 2))] = single[1]
    for name, kind in (("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)):
        values = rng.normal(size=(3, 6, 4)).astype(kind)
        path = _edit(image(folder / f"{name}.dcm", np.zeros((3, 6, 4), np.uint8)), BitsAllocated=values.itemsize * 8)
        dataset = _read(path)
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, keyword)
        setattr(dataset, name, values.tobytes())
        dataset.save_as(path)
        made[path] = values[1]
    return made


def _read(path: Path) -> Dataset:
    return pydicom.dcmread(path)


def _edit(path: Path, **elements: Any) -> Path:
    dataset = _read(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    if "PixelData" in elements and dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


def _without(path: Path, *keywords: str) -> None:
    dataset = _read(image(path))
    for keyword in keywords:
        delattr(dataset, keyword)
    dataset.save_as(path)


def _rle(path: Path) -> Path:
    return image(path, syntax=uid.RLELossless)


def _j2k(path: Path) -> Path:
    return image(path, np.kron(RAMP, np.ones((4, 4), np.uint8)), syntax=uid.JPEG2000Lossless)


def _huge_j2k(path: Path) -> bytes:
    """A code stream whose own header says 60,000 x 60,000 pixels."""
    frame = bytearray(next(pydicom.encaps.generate_frames(_read(_j2k(path)).PixelData, number_of_frames=1)))
    path.unlink()
    at = frame.index(b"\xff\x51")
    for place in (at + 6, at + 10, at + 22, at + 26):  # size of the picture, size of its tiles
        frame[place : place + 4] = struct.pack(">L", 60_000)
    return bytes(frame)


def _syntax(path: Path, syntax: str) -> None:
    dataset = _read(path)
    old = str(dataset.file_meta.TransferSyntaxUID)
    body = path.read_bytes()
    group = bytes(dataset.file_meta[0x00020010].value, "ascii")
    place = body.index(b"\x02\x00\x10\x00UI")
    length = struct.unpack_from("<H", body, place + 6)[0]
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    assert old.encode() == group
    size = struct.unpack_from("<L", body, 140)[0] + len(new) - length
    path.write_bytes(
        body[:140] + struct.pack("<L", size) + body[144 : place + 6] + struct.pack("<H", len(new)) + new
        + body[place + 8 + length :]
    )  # fmt: skip


def _wrong_kind(path: Path, at: bytes, kind: bytes) -> None:
    body = path.read_bytes()
    path.write_bytes(body.replace(at, at[:4] + kind))


def _deep(levels: int) -> bytes:
    sequence = struct.pack("<HH2s2sL", 0x0009, 0x1010, b"SQ", b"\0\0", UNDEFINED)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
    return (sequence + item) * levels


def _wide(items: int) -> bytes:
    head = struct.pack("<HH2s2sL", 0x0009, 0x1010, b"SQ", b"\0\0", UNDEFINED)
    return head + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * items + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def _bomb(path: Path) -> None:
    """300 MB in 300 kB."""
    dataset = _read(image(path, syntax=uid.DeflatedExplicitVRLittleEndian))
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    head = path.read_bytes()[: 144 + dataset.file_meta[0x00020000].value]
    out = [stream.compress(struct.pack("<HH2s2sL", 0x0009, 0x1010, b"OB", b"\0\0", 300 * 2**20))]
    out += [stream.compress(bytes(2**20)) for _ in range(300)]
    path.write_bytes(head + b"".join(out) + stream.flush())


def _endless_patient(path: Path) -> None:
    """A patient id of a gigabyte, in a file that takes no room."""
    image(path)
    body = path.read_bytes()
    place = body.index(b"\x10\x00\x20\x00LO")
    with path.open("wb") as file:
        file.write(body[:place] + b"\x10\x00\x20\x00UT\0\0" + struct.pack("<L", 2**30) + NAME.encode())
        file.truncate(place + 12 + 2**30)


def _socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # the address of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def enhanced(path: Path) -> Path:
    """Three frames, each with its own slope, intercept and window: 0..200 of the middle one is stored 50..150."""
    pixels = np.stack([RAMP] * 3)
    image(path, pixels)
    dataset = _read(path)
    groups = []
    for slope, intercept in ((1, 0), (2, -100), (7, 3)):
        values, window, group = Dataset(), Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "US"
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 100, 200, "LINEAR_EXACT"
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = Sequence([values]), Sequence([window])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.save_as(path)
    return path
