"""What a stored value means: rescaling and lookup tables (PS3.3 C.7.6.3.1.5, C.11.1, C.11.2), read strictly.

pydicom ignores a slope without an intercept, reads no table of bytes in words, takes a first value below zero for one above
32,767, and a palette's words in this machine's order: each would be another picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

_NOTHING = 1e-30
_FAR = 2**15  # a first value from here on, written as US, may have been meant as SS


def modality(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Stored values after the modality LUT or the rescale; any numeric type. Raises ValueError where they mean nothing."""
    if dataset.get("ModalityLUTSequence"):
        values, _ = _through(dataset.ModalityLUTSequence[0], stored)
        return values
    slope, intercept = (_number(dataset.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None and intercept is None:
        return stored
    if slope is not None and abs(slope) < _NOTHING:
        raise ValueError("the rescale leaves nothing of the picture")
    values = stored.astype(np.float64)
    values *= 1.0 if slope is None else slope
    values += intercept or 0.0
    if values.min() == values.max() and stored.min() != stored.max():
        raise ValueError("the intercept leaves nothing of the picture")
    return values


def voi(values: NDArray[Any], dataset: Dataset) -> tuple[NDArray[Any], int] | None:
    """(values after the first VOI LUT, the one that is white); None where there is none."""
    return _through(dataset.VOILUTSequence[0], values) if dataset.get("VOILUTSequence") else None


def palette(index: NDArray[Any], dataset: Dataset, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """[h, w] -> [h, w], the sum of red, green and blue, each in 0..1, by their weights.

    Raises ValueError where there is no palette, or it is not whole.
    """
    if "RedPaletteColorLookupTableData" not in dataset:  # segmented, or none
        out = apply_color_lut(index, dataset)[..., :3]
        return out.astype(np.float32) @ weights / np.float32(np.iinfo(out.dtype).max)
    tables: list[tuple[NDArray[np.uint16], int]] = []
    for colour in ("Red", "Green", "Blue"):
        count, first, bits = (int(part) for part in dataset[f"{colour}PaletteColorLookupTableDescriptor"].value)
        if bits not in (8, 16):
            raise ValueError("a palette has entries of 8 or 16 bits")
        data = dataset[f"{colour}PaletteColorLookupTableData"].value
        tables.append((_entries(data, count or 2**16, little=dataset.original_encoding[1]), first))
    # Old files keep eight bits in words of sixteen, whatever the descriptor says.
    white = np.float32(255 if max(table.max() for table, _ in tables) < 256 else 65535)
    grey = np.zeros(index.shape, np.float32)
    for (table, first), weight in zip(tables, weights, strict=True):
        grey += (table * (weight / white)).astype(np.float32)[_places(index, first, len(table))]
    return grey


def _through(lut: Dataset, values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """(each value's entry in the table, the largest that an entry may be)."""
    count, first, bits = (int(part) for part in lut.LUTDescriptor)
    table = _entries(lut.LUTData, count or 2**16, little=lut.original_encoding[1])
    if not 1 <= bits <= 16 or int(table.max()) >= 2**bits:
        raise ValueError("a lookup table holds more than its descriptor says")
    return table[_places(values, first, len(table))], 2**bits - 1


def _places(values: NDArray[Any], first: int, count: int) -> NDArray[np.int32]:
    """Where in its table each value is; what lies outside has the nearest entry."""
    if first >= _FAR and values.min() < 0:
        first -= 2**16
    kind = values.dtype if values.itemsize >= 4 else np.int32  # which holds the ends of any table
    at = np.clip(values.astype(kind, copy=False), first, first + count - 1)
    return (np.rint(at) if at.dtype.kind == "f" else at).astype(np.int32) - np.int32(first)


def _entries(data: Any, count: int, *, little: bool | None) -> NDArray[np.uint16]:
    """The table; its entries are words, or bytes in words. Raises ValueError where there are more or fewer than said."""
    if isinstance(data, bytes):
        words = np.frombuffer(data + bytes(len(data) % 2), ">u2" if little is False else "<u2")
    else:
        words = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(np.uint16)
    if len(words) == count:
        return words.astype(np.uint16)
    if len(words) == -(-count // 2):
        return words.astype("<u2").view(np.uint8)[:count].astype(np.uint16)
    raise ValueError("a lookup table is not as long as its descriptor says")


def _number(value: Any) -> float | None:
    """None where there is none. Raises ValueError for several values, and for what is no finite number."""
    if value is None or value == "":
        return None
    number = float(value)
    if not np.isfinite(number):
        raise ValueError("a rescale is no number")
    return number
