"""One DICOM header: only the elements that the index needs, and never the pixels.

`specific_tags` keeps names, birth dates and the like from being parsed at all. Whether the pixel data is whole is told
from its place and length, without reading it.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom import config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from silo_node.imaging import bounded, codestream, fragments, terms
from silo_node.imaging.bounded import Source, TooMuch

VERSION = 5  # kept in the index: raise it when the same file would get another row
MAX_PIXELS = 64 * 2**20  # 8,192 x 8,192: larger than any mammogram
MAX_TEXT = 1024  # characters of an identifier; the standard gives them 64
# Everything that pydicom was seen to raise on damaged bytes; anything else is a fault of ours and must show.
PARSE_ERRORS = (
    InvalidDicomError, BytesLengthException, EOFError, struct.error, zlib.error, ValueError, TypeError, KeyError,
    IndexError, AttributeError, NotImplementedError, OverflowError, RecursionError, MemoryError, AssertionError,
)  # fmt: skip
FLOAT, DOUBLE, INTEGER = 0x7FE00008, 0x7FE00009, 0x7FE00010
UNDEFINED = 0xFFFFFFFF
_FIRST = 2048  # bytes of compressed pixel data that are looked at
_PIXELS = {FLOAT: 32, DOUBLE: 64, INTEGER: 0}  # pixel elements and the bits of a sample, 0: BitsAllocated says
_TAGS = [
    "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows",
    "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation",
]  # fmt: skip
_BY_NAME = {name: Tag(name) for name in _TAGS}
_OPTIONS: dict[str, Any] = {"stop_before_pixels": True, "specific_tags": list(_BY_NAME.values())}
_PLAIN = re.compile(rb"[ -\[\]-~\x00]*")  # ASCII without backslash and escape
_UID = re.compile(r"[0-9.]{1,64}")

# pydicom's warnings and log lines quote header values: they may name a patient.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


@dataclass(frozen=True)
class Header:
    """What the index keeps, `size` and `mtime_ns` of the file that was opened. `problem`: a code of index.PROBLEMS or None.
    modality, transfer_syntax: as terms.py lets them be shown."""

    size: int | None = None
    mtime_ns: int | None = None
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
        return tuple(vars(self).values())


def read(path: Path | str, root: Path | str | None = None) -> Header:
    """The header of one file. Never raises for what is in the file: the problem is in the answer.

    root: real path of the folder in which the file must really lie; None only for a file that is of no folder yet.
    """
    size = mtime_ns = None
    try:
        with bounded.opened(path, root=root) as source:
            size, mtime_ns = source.seen
            return _header(dataset_of(source), source)
    except bounded.NotAFile:
        problem = "NOT_A_FILE"
    except bounded.Outside:
        problem = "LINK_OUTSIDE"
    except OSError as error:
        problem = "UNREADABLE"
        if (
            error.errno is None
        ):  # pydicom's own: a sequence without an end, or one so deep that it could read no further
            problem = "HEADER_TOO_LARGE" if isinstance(error.__context__, RecursionError) else "CORRUPT"
    except InvalidDicomError:
        problem = "NOT_DICOM"
    except (TooMuch, RecursionError, MemoryError):
        problem = "HEADER_TOO_LARGE"
    except PARSE_ERRORS:
        problem = "CORRUPT"
    return Header(size, mtime_ns, problem=problem)


def dataset_of(source: Source, **options: Any) -> Dataset:
    """What stands before the pixels; `source` is left where they begin, or at its end.

    Old files without the 128-byte preamble are taken where they hold an image. Raises OSError, InvalidDicomError (no
    DICOM file) and what PARSE_ERRORS lists.
    """
    options = options or _OPTIONS
    try:
        return pydicom.dcmread(source, **options)
    except InvalidDicomError:
        source.seek(0)
        start = source.read(132)
        if len(start) < 132 or start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
            raise
        source.seek(0)
        dataset = pydicom.dcmread(source, force=True, **options)
        if "SOPInstanceUID" not in dataset or "Rows" not in dataset:
            raise
        return dataset


def pixel_element(dataset: Dataset, source: Source) -> tuple[int, str, int] | None:
    """(tag, VR, length) of the pixel data that `source` stands before; then it stands at the value. UNDEFINED as the length:
    encapsulated. None where the file has ended."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    start = source.read(8)
    if len(start) < 8:
        return None
    group, element = struct.unpack(order + "HH", start[:4])
    tag = group << 16 | element
    if tag not in _PIXELS:
        return None
    if implicit or not start[4:6].isalpha():
        return tag, "OW", struct.unpack(order + "L", start[4:])[0]
    if start[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN", b"OL", b"OV"):
        return tag, start[4:6].decode(), struct.unpack(order + "L", source.read(4))[0]
    return tag, "OW", struct.unpack(order + "H", start[6:])[0]


def transfer_syntax(dataset: Dataset) -> str:
    """The UID; a file without a file meta group is in the encoding by which it could be read."""
    given = getattr(dataset, "file_meta", None)
    if given is not None and "TransferSyntaxUID" in given:
        return str(given.TransferSyntaxUID)
    implicit, little = dataset.original_encoding
    if implicit:
        return str(pydicom.uid.ImplicitVRLittleEndian)
    return str(pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)


def number(dataset: Dataset, name: str) -> int | None:
    """A whole number of the header, from 0 on; None where it is missing or empty. Raises ValueError for any other."""
    raw = dataset.get_item(_BY_NAME[name])
    if raw is None:
        return None
    short = isinstance(raw, RawDataElement) and raw.value is not None and len(raw.value) == 2
    if short and raw.VR in (None, "US") and name != "NumberOfFrames":
        return int.from_bytes(raw.value, "little" if raw.is_little_endian else "big")
    value = dataset.get(name)
    if value in (None, ""):
        return None
    if not 0 <= int(value) < 2**31:
        raise ValueError("no number that an image could have")
    return int(value)


def text(dataset: Dataset, name: str) -> str | None:
    """A text of the header, stripped; None where it is missing or empty. Raises ValueError where it is too long."""
    raw = dataset.get_item(_BY_NAME[name])
    if raw is None:
        return None
    # Converting costs more than reading: only what needs its character set, or has several values, goes through pydicom.
    if isinstance(raw, RawDataElement) and raw.value is not None and _PLAIN.fullmatch(raw.value):
        value = raw.value.decode("ascii")
    else:
        found = dataset.get(name)
        if isinstance(found, (Sequence, MultiValue)):
            raise ValueError("a text is a sequence, or several")
        value = str(found or "")
        value.encode()  # half a surrogate pair could be written nowhere
    if len(value) > MAX_TEXT:
        raise ValueError("a text is too long")
    return value.strip(" \x00") or None


def native_bits(dataset: Dataset, tag: int, rows: int, columns: int) -> int:
    """Bits of one frame that is not compressed; 0 where the header does not say."""
    bits = _PIXELS[tag] or number(dataset, "BitsAllocated") or 0
    bits *= rows * columns * (number(dataset, "SamplesPerPixel") or 1)
    return bits * 2 // 3 if text(dataset, "PhotometricInterpretation") == "YBR_FULL_422" else bits


def _header(dataset: Dataset, source: Source) -> Header:
    rows, columns, frames = (number(dataset, name) for name in ("Rows", "Columns", "NumberOfFrames"))
    syntax = transfer_syntax(dataset)
    if not _UID.fullmatch(syntax):
        raise ValueError("the transfer syntax is no UID")
    found = Header(
        *source.seen, sop=text(dataset, "SOPInstanceUID"), patient=text(dataset, "PatientID"),
        study=text(dataset, "StudyInstanceUID"), series=text(dataset, "SeriesInstanceUID"),
        modality=terms.modality(text(dataset, "Modality")), rows=rows, columns=columns, frames=frames or 1,
        transfer_syntax=str(pydicom.uid.DeflatedExplicitVRLittleEndian) if source.deflated else terms.transfer_syntax(syntax),
    )  # fmt: skip
    problem = _problem(found) or _pixel_problem(found, dataset, source, syntax)
    return replace(found, problem=problem) if problem else found


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


def _pixel_problem(header: Header, dataset: Dataset, source: Source, syntax: str) -> str | None:
    """What is wrong with the pixel data, by its syntax and length alone."""
    found = pixel_element(dataset, source)
    if found is None:
        return "NO_PIXELS"
    if not _decodable(syntax):
        return "PIXELS_UNSUPPORTED"
    assert header.rows is not None and header.columns is not None and header.frames is not None
    tag, _, length = found
    if length == UNDEFINED:
        if not pydicom.uid.UID(syntax).is_encapsulated:
            return "PIXELS_CORRUPT"
        items = fragments.items(source)  # the first is the table of offsets
        if items is None or len(items) <= header.frames:
            return "PIXELS_CUT"
        return "PIXELS_CORRUPT" if _another_picture(dataset, source, items[1:], header.frames) else None
    held = min(length, source.size - source.tell())
    if pydicom.uid.UID(syntax).is_encapsulated:
        return None if held == length else "PIXELS_CUT"
    bits = native_bits(dataset, tag, header.rows, header.columns)
    if held * 8 < bits * header.frames:
        return "PIXELS_CUT"
    return "PIXELS_CORRUPT" if holds_more(dataset, length, bits, header.frames) else None


def _another_picture(dataset: Dataset, source: Source, pieces: list[tuple[int, int]], frames: int) -> bool:
    """Whether what is compressed begins as no picture does, or says another size than the header, by its first bytes."""
    if 1 < frames != len(pieces):
        return False  # which fragments are one frame is found out when it is decoded
    at, size = next((piece for piece in pieces if piece[1]), pieces[0])
    source.seek(at)
    start = source.read(min(size, _FIRST))
    found = codestream.size(start)
    if found is None:
        return not codestream.begins(start)
    return found != tuple(number(dataset, name) for name in ("Rows", "Columns", "SamplesPerPixel"))


def holds_more(dataset: Dataset, length: int, bits: int, frames: int) -> bool:
    """Whether pixel data that is not compressed holds at least one frame more than said, or colours at full resolution that
    are said to be halved: then its bits, frames or size are not what the header says either.

    `length` in bytes, `bits` a frame. A byte of padding is none of it.
    """
    spare = bits // 2 if text(dataset, "PhotometricInterpretation") == "YBR_FULL_422" else bits
    return length * 8 - bits * frames >= max(spare, 9)


@lru_cache(maxsize=256)
def _decodable(syntax: str) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(pydicom.uid.UID(syntax)).is_available)
    except (NotImplementedError, *PARSE_ERRORS):
        return False
