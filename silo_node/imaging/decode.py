"""One DICOM file -> one grey picture of the plan's size.

1. stored values of one frame, decompressed (multi-frame: the middle frame; colour: its luminance)
2. pixel padding is left out of what follows and becomes black
3. modality: rescale slope and intercept, or the modality LUT
4. window: "dicom" the first VOI window (or VOI LUT); "full", or where there is none, the picture's own range
5. MONOCHROME1 is inverted, so that bone is bright everywhere
6. area averaging down to the plan's size, aspect kept (pixel spacing counted), letterboxed with black, centred
7. rounded to uint8 where the file has at most 8 bits a pixel, else to uint16: a finer step than the source's own
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import encaps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from silo_node.imaging import bounded, codestream, fragments, header, lookup
from silo_node.imaging.bounded import Source
from silo_node.imaging.errors import PixelError
from silo_node.imaging.header import MAX_PIXELS, PARSE_ERRORS, transfer_syntax
from silo_node.imaging.known import Known

WINDOWS = ("full", "dicom")
VERSION = 4  # part of the cache key: raise it when the same file would decode to other bits
MAX_FRAME = 8 * MAX_PIXELS  # bytes of one frame, as stored
_FROM_GROUPS = (
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PixelSpacing",
)  # fmt: skip
_TAGS = [
    "SOPInstanceUID", "PatientID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "AlphaPaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "AlphaPaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData", "PaletteColorLookupTableUID",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]  # fmt: skip
_OPTIONS: dict[str, Any] = {"stop_before_pixels": True, "specific_tags": [Tag(name) for name in _TAGS]}
_LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K})
_AS_STORED = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB"})  # nothing was converted
_ONLY_J2K = frozenset({"YBR_ICT", "YBR_RCT"})
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1} | dict.fromkeys(
    ("RGB", "YBR_FULL", "YBR_FULL_422", *_ONLY_J2K), 3
)
_FAR = 1e30  # a window beyond it shows nothing, and is no longer a float32
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def read(
    path: Path, *, size: tuple[int, int], window: str = "full", known: Known | None = None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The picture as [H, W], `size` = (H, W). 0 is black; the type's largest value is white.

    known: what the index says of the file; None only for a file of no index.
    Raises PixelError `UNREADABLE`, `FILE_CHANGED` (it is not the file that was indexed), `PIXELS_CORRUPT` (damaged, cut
    off), `PIXELS_NO_VALUE` (float pixels, none of them a finite number), `PIXELS_UNSUPPORTED` (no decoder reads it) or
    `PIXELS_MEMORY`. A decoder is C code that may crash or hang on a hostile file: see decoder_pool.py.
    """
    if window not in WINDOWS:
        raise ValueError("window must be one of " + ", ".join(WINDOWS))
    try:
        told = {"root": known.root, "seen": (known.size, known.mtime_ns)} if known else {}
        with bounded.opened(path, **told) as source:
            dataset = _one_frame(source, known)
    except (bounded.NotAFile, bounded.Outside, bounded.Changed) as error:
        raise PixelError("FILE_CHANGED", "A file was exchanged or overwritten since the scan.") from error
    except OSError as error:
        if error.errno is None:  # pydicom's own
            raise PixelError("PIXELS_CORRUPT", "A file's header is damaged.") from error
        raise PixelError("UNREADABLE", "A file could not be read.") from error
    except MemoryError as error:
        raise _memory() from error
    except NotImplementedError as error:
        raise _unsupported() from error
    except (*PARSE_ERRORS, RuntimeError) as error:
        raise PixelError("PIXELS_CORRUPT", "A file's header or pixel data is damaged.") from error
    try:
        grey, bits = _grey(dataset, window)
        small = _letterbox(grey, size, _pixel_aspect(dataset))
    except NotImplementedError as error:
        raise _unsupported() from error
    except MemoryError as error:
        raise _memory() from error
    except (*PARSE_ERRORS, RuntimeError) as error:  # pydicom wraps a decoder's own failures in RuntimeError
        raise _damaged() from error
    except BaseException as error:  # a decoder in Rust panics, and its exception has no name to import
        if type(error).__name__ != "PanicException":
            raise
        raise _damaged() from error
    kind: type[np.unsignedinteger[Any]] = np.uint8 if bits <= 8 else np.uint16
    return np.rint(small * np.iinfo(kind).max).astype(kind)


def _damaged() -> PixelError:
    return PixelError("PIXELS_CORRUPT", "A file's pixel data is damaged or cut off.")


def _unsupported() -> PixelError:
    return PixelError("PIXELS_UNSUPPORTED", "A file's pixel data is in a form that no decoder reads.")


def _memory() -> PixelError:
    return PixelError("PIXELS_MEMORY", "A file needs more memory than one file may have.")


def _one_frame(source: Source, known: Known | None) -> Dataset:
    """The header, with the pixel data of the middle frame alone: a film of a gigabyte costs one picture's memory."""
    dataset = header.dataset_of(source, **_OPTIONS)
    if known is not None:
        known.require(header.text(dataset, "SOPInstanceUID"), header.text(dataset, "PatientID"))
    rows, columns = header.number(dataset, "Rows"), header.number(dataset, "Columns")
    if not rows or not columns or rows * columns > MAX_PIXELS:
        raise ValueError("no pixels, or too many")
    found = header.pixel_element(dataset, source)
    if found is None:
        raise ValueError("no pixel data")
    tag, kind, length = found
    frames = header.number(dataset, "NumberOfFrames") or 1
    index = frames // 2 if frames > 1 else 0
    syntax = transfer_syntax(dataset)
    source.allow(value=MAX_FRAME, total=2 * MAX_FRAME)
    if UID(syntax).is_encapsulated:
        data = _compressed(dataset, source, length, index, frames)
    elif length == header.UNDEFINED:
        raise ValueError("pixel data that is not compressed has no length")
    else:
        bits = header.native_bits(dataset, tag, rows, columns)
        if index and bits % 16 and syntax == ExplicitVRBigEndian:
            raise NotImplementedError("frames that begin inside a swapped word")
        if header.holds_more(dataset, length, bits, frames):
            raise ValueError("there are more pixels than the header says")
        data = _native(source, bits, min(length, source.size), index)
    _frame_groups(dataset, index)
    for name in ("NumberOfFrames", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if name in dataset:
            del dataset[name]
    dataset.add_new(tag, {header.FLOAT: "OF", header.DOUBLE: "OD"}.get(tag, "OB" if kind == "OB" else "OW"), data)
    dataset[tag].is_undefined_length = UID(syntax).is_encapsulated
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta = meta
    return dataset


def _compressed(dataset: Dataset, source: Source, length: int, index: int, frames: int) -> bytes:
    """The middle frame as encapsulated pixel data of its own."""
    if length != header.UNDEFINED:
        raise ValueError("compressed pixel data has a length")
    frame = fragments.frame(source, index, frames, dataset.get("ExtendedOffsetTable"))
    said = tuple(header.number(dataset, name) for name in ("Rows", "Columns", "SamplesPerPixel"))
    if codestream.size(frame) not in (None, said):
        raise ValueError("the header says another size than the compressed picture")
    return encaps.encapsulate([frame])


def _native(source: Source, bits: int, length: int, index: int) -> bytes:
    """The middle frame of pixel data that is not compressed; frames of single bits may begin inside a byte."""
    if not bits:
        raise ValueError("the header does not say how long a frame is")
    first, last = index * bits, (index + 1) * bits
    if -(-last // 8) > length:
        raise ValueError("pixel data is cut off")
    source.seek(first // 8, 1)
    need = -(-last // 8) - first // 8
    data = source.read(need + need % 2)  # the second byte of the last word may be what counts: big endian
    if len(data) < need:
        raise ValueError("pixel data is cut off")
    if first % 8:
        single = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[first % 8 :][:bits]
        data = np.packbits(single, bitorder="little").tobytes()
    return data + b"\0" * (len(data) % 2)


def _frame_groups(dataset: Dataset, index: int) -> None:
    """Enhanced multi-frame objects say what a value means in functional groups, shared or by frame (PS3.3 C.7.6.16)."""
    groups = list((dataset.get("SharedFunctionalGroupsSequence") or [])[:1])
    by_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if by_frame and index < len(by_frame):
        groups.append(by_frame[index])
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence"):
            for element in (group.get(name) or [Dataset()])[0]:
                if element.keyword in _FROM_GROUPS:
                    dataset[element.tag] = element


def _grey(dataset: Dataset, window: str) -> tuple[NDArray[np.float32], int]:
    """The whole picture as float32 [h, w] in 0..1, black to white, and the stored bits a pixel."""
    photometric = str(dataset.PhotometricInterpretation)
    _check_meaning(dataset, photometric)
    stored = _stored(dataset)
    bits = 32 if stored.dtype.kind == "f" and "PixelData" not in dataset else int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        return lookup.palette(stored, dataset, _LUMINANCE), bits
    if stored.ndim == 3:  # RGB; YBR was converted
        return (stored.astype(np.float32) @ _LUMINANCE) / np.float32(2**bits - 1), bits
    padding = _padding(dataset, stored)
    if padding is not None and stored.dtype.kind == "f":
        if not np.isfinite(stored).any():
            raise PixelError("PIXELS_NO_VALUE", "No pixel of a file holds a finite number.")
        stored = np.where(padding, 0, stored)
    # float32 holds 24 bits: wider values keep theirs until they are fitted into 0..1
    kind: type[np.floating[Any]] = np.float32 if bits <= 24 else np.float64
    values = lookup.modality(stored, dataset).astype(kind)
    if not np.isfinite(values).all():
        raise ValueError("the rescaled values are no numbers")
    limits = _window(dataset) if window == "dicom" else None
    if window == "dicom" and limits is None and (shown := lookup.voi(values, dataset)) is not None:
        values, limits = shown[0].astype(kind), (0.0, float(shown[1]))
    if limits is None:
        counted = values if padding is None else values[~padding]
        limits = (float(counted.min()), float(counted.max())) if counted.size else (0.0, 0.0)
    low, high = limits
    if high > low:
        values -= kind(low)
        values /= kind(high - low)
        grey = np.clip(values, 0, 1, out=values)
    else:
        grey = np.zeros_like(values)
    if photometric == "MONOCHROME1":
        grey = 1 - grey
    if padding is not None:
        grey[padding] = 0
    return grey.astype(np.float32, copy=False), bits


def _check_meaning(dataset: Dataset, photometric: str) -> None:
    """Raises NotImplementedError where pydicom would take colours for others, ValueError where the header contradicts
    itself (PS3.3 C.7.6.3.1.2)."""
    if photometric not in _SAMPLES:
        raise NotImplementedError("a photometric interpretation that nothing here converts")
    if dataset.get("SamplesPerPixel", 1) != _SAMPLES[photometric]:
        raise ValueError("another number of samples than the photometric interpretation has")
    if photometric in _ONLY_J2K and dataset.file_meta.TransferSyntaxUID not in JPEG2000TransferSyntaxes:
        raise ValueError("a photometric interpretation of JPEG 2000 without JPEG 2000")
    if _SAMPLES[photometric] == 3 and dataset.get("PixelRepresentation"):
        raise ValueError("colours below zero")


def _stored(dataset: Dataset) -> NDArray[Any]:
    """Stored values of the frame: [h, w], or [h, w, 3] for red, green and blue."""
    bits, high = dataset.get("BitsStored"), dataset.get("HighBit")
    if bits is not None and not 1 <= bits <= dataset.BitsAllocated:
        raise ValueError("more bits are stored than a pixel has, or none")
    if high is None or bits is None or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        stored = pixel_array(dataset)
    else:
        dataset.BitsStored = high + 1  # pydicom clears what is above the stored bits, and takes them for the lowest
        stored = pixel_array(dataset)
        dataset.BitsStored = bits
    if dataset.PhotometricInterpretation in _AS_STORED:
        stored = _only_stored_bits(dataset, stored)
    return stored


def _only_stored_bits(dataset: Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    """Old files keep overlays above the stored bits, or the stored bits above others: cut out and extend the sign."""
    if stored.dtype.kind not in "iu":
        return stored
    bits, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    if bits >= allocated:
        return stored
    compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    shift = 0 if compressed else int(dataset.get("HighBit", bits - 1)) + 1 - bits
    if not 0 <= shift <= allocated - bits:
        raise ValueError("the high bit is not within a pixel")
    signed = int(dataset.PixelRepresentation) == 1
    least = -(2 ** (bits - 1)) if signed else 0
    if shift == 0 and stored.min() >= least and stored.max() < least + 2**bits:
        return stored
    if dataset.file_meta.TransferSyntaxUID in _LOSSY:
        # a value beyond the range is white gone too far, and no other bit
        low = -(2 ** (bits - 1)) if stored.min() < 0 else 0
        stored = np.clip(stored, low, low + 2**bits - 1)
    values: NDArray[Any] = stored.astype(np.int32 if allocated <= 16 else np.int64)
    values >>= shift
    values &= 2**bits - 1
    if signed:
        values[values >= 2 ** (bits - 1)] -= 2**bits
    return values


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the picture is padding (bool [h, w]); None where the file declares none or no pixel has it."""
    if stored.dtype.kind == "f":
        mask: NDArray[np.bool_] = ~np.isfinite(stored)
        return mask if mask.any() else None
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    signed = int(dataset.PixelRepresentation) == 1
    low, high = sorted(_as_stored(int(end), dataset, signed) for end in (value, value if limit is None else limit))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def _as_stored(value: int, dataset: Dataset, signed: bool) -> int:
    """The padding value in the pixels' own signedness: it is written as US or SS, and not always as the pixels are."""
    if signed:
        return value - 2**16 if value >= 2**15 else value
    return value + 2 ** int(dataset.BitsAllocated) if value < 0 else value


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """(black, white) in modality units of the first VOI window; None where there is none or it is empty.

    LINEAR follows PS3.3 C.11.2.1.2 (centre - 0.5, width - 1). SIGMOID is shown by its linear core: its soft ends would
    not survive the clipping that all other pictures get.
    """
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is None or width is None:
        return None
    if str(dataset.get("VOILUTFunction") or "LINEAR") == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return (centre - width / 2, centre + width / 2) if width > 0 and abs(centre) + width < _FAR else None


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0]) if isinstance(value, (list, tuple)) or hasattr(value, "insert") else float(value)


def _pixel_aspect(dataset: Dataset) -> float:
    """Height of a pixel over its width; 1 where the file does not say, or says nonsense."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        value = dataset.get(name)
        if value and len(value) == 2 and float(value[0]) > 0 and float(value[1]) > 0:
            ratio = float(value[0]) / float(value[1])
            return ratio if 0.1 < ratio < 10 else 1.0
    return 1.0


def _letterbox(grey: NDArray[np.float32], size: tuple[int, int], aspect: float) -> NDArray[np.float32]:
    """[h, w] -> [H, W]: scaled by one factor, centred, black around it."""
    height, width = grey.shape[0] * aspect, float(grey.shape[1])
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, min(size[0], round(height * scale))), max(1, min(size[1], round(width * scale))))
    small = _averages(grey.shape[0], inner[0]) @ grey @ _averages(grey.shape[1], inner[1]).T
    if inner == tuple(size):
        return np.clip(small, 0, 1)
    out = np.zeros(size, dtype=np.float32)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = np.clip(small, 0, 1)
    return out


@lru_cache(maxsize=64)
def _averages(before: int, after: int) -> NDArray[np.float32]:
    """[after, before]: row i averages the part of the line that falls into cell i; every row sums to 1."""
    edges = np.arange(after + 1) * (before / after)
    start = np.arange(before)
    overlap = np.minimum(edges[1:, None], start + 1) - np.maximum(edges[:-1, None], start)
    return (np.clip(overlap, 0, None) * (after / before)).astype(np.float32)
