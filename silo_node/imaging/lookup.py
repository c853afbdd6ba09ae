"""What a stored value means: rescaling and lookup tables (PS3.3 C.7.6.3.1.5, C.11.1, C.11.2), read strictly.

pydicom ignores a slope without an intercept, reads no table of bytes in words, and takes a first value below zero for one
above 32,767: each would be another picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

_COLOURS = ("Red", "Green", "Blue")
_FAR = 2**15  # a first value from here on, written as US, may have been meant as SS


def modality(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Stored values after the modality LUT or the rescale; any numeric type. Raises ValueError where they mean nothing."""
    if dataset.get("ModalityLUTSequence"):
        values, _ = _through(dataset.ModalityLUTSequence[0], stored)
        return values
    slope, intercept = (_number(dataset.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None and intercept is None:
        return stored
    values = stored.astype(np.float64)
    values *= 1.0 if slope is None else slope
    values += intercept or 0.0
    if values.min() == values.max() and stored.min() != stored.max():
        raise ValueError("the rescale leaves nothing of the picture")
    return values


def voi(values: NDArray[Any], dataset: Dataset) -> tuple[NDArray[Any], int] | None:
    """(values after the first VOI LUT, the one that is white); None where there is none."""
    return _through(dataset.VOILUTSequence[0], values) if dataset.get("VOILUTSequence") else None


def palette_white(dataset: Dataset, kind: np.dtype[Any]) -> int:
    """The value of full brightness. Old files keep eight bits in words of sixteen, whatever the descriptor says."""
    if kind == np.uint8:
        return 255
    tables = [dataset.get(f"{colour}PaletteColorLookupTableData") for colour in _COLOURS]
    order = "<" if dataset.original_encoding[1] else ">"
    if all(tables) and all(np.frombuffer(table, f"{order}u2").max() < 256 for table in tables):
        return 255
    return 65535


def _through(lut: Dataset, values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """(each value's entry in the table, the largest that an entry may be)."""
    count, first, bits = (int(part) for part in lut.LUTDescriptor)
    table = _entries(lut, count or 2**16)
    if not 1 <= bits <= 16 or int(table.max()) >= 2**bits:
        raise ValueError("a lookup table holds more than its descriptor says")
    if first >= _FAR and values.min() < 0:
        first -= 2**16
    at = np.clip(values, first, first + len(table) - 1)
    return table[(np.rint(at) if at.dtype.kind == "f" else at).astype(np.int64) - first], 2**bits - 1


def _entries(lut: Dataset, count: int) -> NDArray[np.uint16]:
    """The table; its entries are words, or bytes in words. Raises ValueError where there are more or fewer than said."""
    data = lut.LUTData
    if isinstance(data, bytes):
        order = "<" if lut.original_encoding[1] in (True, None) else ">"
        words = np.frombuffer(data, f"{order}u2")
    else:
        words = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(np.uint16)
    if len(words) == count:
        return words.astype(np.uint16)
    if len(words) == -(-count // 2) and count > 1:
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
