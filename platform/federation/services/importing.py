"""A model file that a person uploads, as the bytes of a model state: read by rules of our own, never by a pickle.

Two forms are taken: a raw state of this portal, and safetensors with float32 tensors only (the form is in export.py).
The safetensors header must be exact: tensors without gaps or overlap from the first byte after it to the last of the
file. The table has them in that order, all shared; the network's own order is found by name (protocol.initial_model).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from protocol.model_state import (
    MAGIC,
    MAX_HEADER,
    MAX_WORDS,
    StateError,
    Table,
    TensorSpec,
    check_table,
    header_bytes,
    words,
)

_BLOCK = 4 << 20
_MEMBERS = {"dtype", "shape", "data_offsets"}
_SMALLEST = 32
"""Bytes of a header below which no tensor can be described."""


def state_blocks(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of the model state in blocks. The values are not looked at here: ModelState.load refuses NaN.

    Raises StateError, saying what is wrong and where, at the first block or at the last.
    """
    front = file.read(len(MAGIC))
    if front == MAGIC:
        yield front
        while block := file.read(_BLOCK):
            yield block
        return
    table = _table(front, file)
    yield header_bytes(table)
    left = 4 * words(table)
    while block := file.read(_BLOCK):
        left -= len(block)
        if left < 0:
            raise StateError("the file goes on after its last tensor")
        yield block
    if left:
        raise StateError(f"the file ends {left} bytes before its last tensor does")


def _table(front: bytes, file: BinaryIO) -> Table:
    """The table of a safetensors file of which `front` (more than 8 bytes) is read already."""
    length = int.from_bytes(front[:8], "little")
    if len(front) < len(MAGIC) or not _SMALLEST <= length <= MAX_HEADER:
        raise StateError("the file is neither safetensors nor a raw state of this portal")
    text = front[8:] + file.read(length - (len(front) - 8))
    if len(text) != length:
        raise StateError("the file ends inside its header")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise StateError("the header of the safetensors file is not JSON, or names something twice") from None
    if not isinstance(header, dict):
        raise StateError("the header of the safetensors file must be an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise StateError("__metadata__ must hold text only")
    placed = sorted((_tensor(name, entry) for name, entry in header.items()), key=lambda each: each[0])
    end = 0
    for start, stop, spec in placed:
        if start != end:
            raise StateError(f"{spec.name}: does not begin where the tensor before it ends")
        if stop - start != 4 * spec.size:
            raise StateError(f"{spec.name}: has {stop - start} bytes, its shape needs {4 * spec.size}")
        end = stop
    return check_table(tuple(spec for _, _, spec in placed))


def _tensor(name: str, entry: Any) -> tuple[int, int, TensorSpec]:
    """(first byte, byte after the last, the tensor)."""
    if not isinstance(entry, dict) or set(entry) != _MEMBERS or not isinstance(entry["shape"], list):
        raise StateError("a tensor has dtype, shape and data_offsets, nothing else")
    spec = TensorSpec(name, tuple(entry["shape"]))
    if entry["dtype"] != "F32":
        raise StateError(f"{name}: only float32 (F32) is taken; convert the model, and leave out counters")
    offsets = entry["data_offsets"]
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(each) is int and 0 <= each <= 4 * MAX_WORDS for each in offsets)
    ):
        raise StateError(f"{name}: data_offsets are two whole numbers")
    return offsets[0], offsets[1], spec


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a member stands twice")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
