"""A model's state: a table of tensors and one flat vector of float32, with one byte form and one digest.

    b"consilium-state/1\\n"  |  u32 big-endian: length of the header  |  header  |  d float32, little-endian
    header = RFC 8785 {"scales": "<two hex digits a shared tensor>", "table": [{"kind", "name", "shape"}, ...]}

The vector holds the tensors of kind `shared` and `frozen`, in the table's order, each flattened in C order. An update has
a word for each value of the shared ones; frozen ones stay as the first model has them. Tensors of kind `local` stand in
the table, so that all silos agree on them, but their values never leave a hospital and are not in the vector.

`scales` stands there only in studies whose scales follow the sum: e + 128 for each shared tensor, where 2^e bounds an
element of its next update (secure_aggregation/scales.py). Its length depends on the table alone, so a header can be
written again in its place. Files are read through memory maps, so a state of any size needs constant memory.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocol.canonical import CanonicalError, decode, encode

MAGIC: Final = b"consilium-state/1\n"
MAX_HEADER: Final = 4 * 1024 * 1024
"""Bytes; the table of a very deep network is some hundred kB."""
MAX_WORDS: Final = 2**31 - 1
"""The most weights of one state."""
BLOCK: Final = 65_536
"""Words that are handled at once: 256 KiB of float32."""
LEAST_SCALE: Final = -32
MOST_SCALE: Final = 20
"""Exponents of a tensor's bound: 2^-32 is far below what moves a weight, 2^20 above the longest clip_norm."""
_SCALE_OFFSET: Final = 128

Vector: TypeAlias = NDArray[np.float32]
Scales: TypeAlias = tuple[int, ...]
"""An exponent for each shared tensor, in the table's order."""
KINDS: Final = ("shared", "frozen", "local")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
_SCALES = re.compile(r"(?:[0-9a-f]{2})+")


class StateError(ValueError):
    """Bytes or arrays that are not a model state. The message says what is wrong, never a value of the vector."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its name in the network, its shape (() is a scalar), and whether hospitals share, freeze or keep it."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["shared", "frozen", "local"] = "shared"

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise StateError("a tensor's name is 1 to 255 letters, digits, '.', '_' or '-'")
        if self.kind not in KINDS:
            raise StateError(f"{self.name}: kind must be shared, frozen or local")
        if len(self.shape) > 8 or not all(type(side) is int and 1 <= side <= MAX_WORDS for side in self.shape):
            raise StateError(f"{self.name}: a shape is at most 8 whole numbers from 1 on")

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


Table: TypeAlias = tuple[TensorSpec, ...]


class Stretch(NamedTuple):
    """Values of the vector that are treated alike. words: their range in the update, None where they are frozen."""

    values: slice
    words: slice | None


def words(table: Sequence[TensorSpec]) -> int:
    """How many values the vector has."""
    return sum(spec.size for spec in table if spec.kind != "local")


def update_words(table: Sequence[TensorSpec]) -> int:
    """d: how many words an update has, one for each value of a shared tensor."""
    return sum(spec.size for spec in table if spec.kind == "shared")


def slices(table: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, slice]]:
    """Each shared or frozen tensor with its range in the vector."""
    start = 0
    for spec in table:
        if spec.kind != "local":
            yield spec, slice(start, start + spec.size)
            start += spec.size


def stretches(table: Sequence[TensorSpec], start: int = 0, stop: int | None = None) -> Iterator[Stretch]:
    """The part of the vector that goes with words `start` to `stop` (None: the last) of an update, in order.

    Frozen values go with the word before them, those at the front with the first; so pieces of the update that follow
    one another give pieces of the vector that do so too.
    """
    end = update_words(table) if stop is None else stop
    found: Stretch | None = None
    word = 0
    for spec, where in slices(table):
        if spec.kind == "frozen":
            coming = Stretch(where, None) if start < word <= end or word == start == 0 else None
        else:
            low, high = max(start, word), min(end, word + spec.size)
            shift = where.start - word
            coming = Stretch(slice(low + shift, high + shift), slice(low, high)) if low < high else None
            word += spec.size
        if coming is None:
            continue
        if found is None:
            found = coming
        elif (found.words is None) != (coming.words is None):
            yield found
            found = coming
        else:
            both = None
            if found.words is not None and coming.words is not None:
                both = slice(found.words.start, coming.words.stop)
            found = Stretch(slice(found.values.start, coming.values.stop), both)
    if found is not None:
        yield found


def table_as_list(table: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """The table as plain JSON values, as headers and messages carry it."""
    return [{"name": spec.name, "shape": list(spec.shape), "kind": spec.kind} for spec in table]


def table_from_list(value: object) -> Table:
    """The table in plain JSON values. Raises StateError for anything else, an empty table, or a name given twice."""
    if not isinstance(value, list) or not value:
        raise StateError("a table is a list of at least one tensor")
    table = []
    for entry in value:
        if not isinstance(entry, dict) or set(entry) != {"name", "shape", "kind"}:
            raise StateError("a tensor has name, shape and kind, nothing else")
        if not isinstance(entry["name"], str) or not isinstance(entry["shape"], list):
            raise StateError("a tensor's name is text and its shape a list")
        table.append(TensorSpec(entry["name"], tuple(entry["shape"]), entry["kind"]))
    return check_table(tuple(table))


def check_table(table: Table) -> Table:
    """`table` itself. Raises StateError where a name stands twice, nothing is shared, or there are too many values."""
    if len({spec.name for spec in table}) != len(table):
        raise StateError("a table names a tensor twice")
    if update_words(table) < 1:
        raise StateError("a state shares at least one value, this table none")
    if words(table) > MAX_WORDS:
        raise StateError(f"a state has at most {MAX_WORDS} values, this table {words(table)}")
    return table


def check_scales(table: Sequence[TensorSpec], scales: Scales) -> None:
    """Raises StateError where there is not one whole number in range for each shared tensor."""
    if len(scales) != sum(spec.kind == "shared" for spec in table):
        raise StateError("there must be one scale for each shared tensor")
    if not all(type(scale) is int and LEAST_SCALE <= scale <= MOST_SCALE for scale in scales):
        raise StateError(f"a scale is a whole number from {LEAST_SCALE} to {MOST_SCALE}")


def header_bytes(table: Sequence[TensorSpec], scales: Scales | None = None) -> bytes:
    """Everything of the byte form that stands before the vector; its length does not depend on the scales' values."""
    value: dict[str, Any] = {"table": table_as_list(table)}
    if scales is not None:
        check_scales(table, scales)
        value["scales"] = bytes(scale + _SCALE_OFFSET for scale in scales).hex()
    header = encode(value)
    if len(header) > MAX_HEADER:
        raise StateError(f"the table takes {len(header)} bytes, at most {MAX_HEADER} are allowed")
    return MAGIC + len(header).to_bytes(4, "big") + header


def digest_of(header: bytes, vector: Vector) -> str:
    """The digest of `header` (from `header_bytes`) followed by `vector` (float32[d], may be a memory map)."""
    state = hashlib.sha256(header)
    for start in range(0, vector.size, BLOCK):
        state.update(np.ascontiguousarray(vector[start : start + BLOCK], dtype="<f4").data)
    return "sha256:" + state.hexdigest()


def check_finite(vector: Vector) -> None:
    """Raises StateError where a value is NaN or infinite; constant memory."""
    for start in range(0, vector.size, BLOCK):
        if not bool(np.isfinite(vector[start : start + BLOCK]).all()):
            raise StateError("a state holds a value that is not a finite number")


def _read_header(header: bytes) -> tuple[Table, Scales | None]:
    try:
        value = decode(header)
    except CanonicalError as error:
        raise StateError(f"the state's header is not canonical JSON: {error}") from None
    if not isinstance(value, dict) or set(value) not in ({"table"}, {"scales", "table"}):
        raise StateError("the state's header must be an object with a table and perhaps scales, nothing else")
    table = table_from_list(value["table"])
    if "scales" not in value:
        return table, None
    text = value["scales"]
    if not isinstance(text, str) or _SCALES.fullmatch(text) is None:
        raise StateError("scales are two lower hex digits for each shared tensor")
    scales = tuple(byte - _SCALE_OFFSET for byte in bytes.fromhex(text))
    check_scales(table, scales)
    return table, scales


def _parse_front(front: bytes, total: int) -> tuple[Table, Scales | None, int]:
    """The table, the scales, and where the vector starts, of a state of `total` bytes that begins with `front`."""
    if not front.startswith(MAGIC) or len(front) < len(MAGIC) + 4:
        raise StateError("these bytes are not a model state (consilium-state/1)")
    length = int.from_bytes(front[len(MAGIC) : len(MAGIC) + 4], "big")
    start = len(MAGIC) + 4 + length
    if length > MAX_HEADER or len(front) < start:
        raise StateError("the state ends inside its header, or its header is too long")
    table, scales = _read_header(front[len(MAGIC) + 4 : start])
    if total != start + 4 * words(table):
        raise StateError(f"the state should have {start + 4 * words(table)} bytes by its table, it has {total}")
    return table, scales, start


class Front(NamedTuple):
    """What stands before the vector of a state: its bytes, and what they say."""

    header: bytes
    table: Table
    scales: Scales | None


def read_front(path: Path) -> Front:
    """The front of the state in the file `path`; of its vector only the length is checked. Raises StateError, OSError."""
    total = path.stat().st_size
    with path.open("rb") as file:
        front = file.read(min(total, len(MAGIC) + 4 + MAX_HEADER))
    table, scales, start = _parse_front(front, total)
    return Front(front[:start], table, scales)


@dataclass(frozen=True, eq=False)
class ModelState:
    """A table, its vector (float32, little-endian, finite; it may be a read-only memory map), and scales if they adapt."""

    table: Table
    vector: Vector
    scales: Scales | None = None

    def __post_init__(self) -> None:
        check_table(self.table)
        if self.scales is not None:
            check_scales(self.table, self.scales)
        if self.vector.dtype != np.dtype("<f4") or self.vector.shape != (words(self.table),):
            raise StateError(f"the vector must be float32 of length {words(self.table)}")
        check_finite(self.vector)

    @cached_property
    def header(self) -> bytes:
        """The bytes before the vector."""
        return header_bytes(self.table, self.scales)

    @cached_property
    def digest(self) -> str:
        """The digest of `to_bytes()`, in constant memory."""
        return digest_of(self.header, self.vector)

    @property
    def length(self) -> int:
        """The length of `to_bytes()`."""
        return len(self.header) + 4 * int(self.vector.size)

    def tensor(self, name: str) -> Vector:
        """The shared or frozen tensor `name` in its shape, a view of the vector. Raises KeyError."""
        for spec, where in slices(self.table):
            if spec.name == name:
                return self.vector[where].reshape(spec.shape)
        raise KeyError(name)

    def to_bytes(self) -> bytes:
        """The byte form. For a large state use `save`."""
        return self.header + np.ascontiguousarray(self.vector).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelState:
        """The state in `data`; the vector is a read-only view of it. Raises StateError."""
        table, scales, start = _parse_front(data, len(data))
        return cls(table, np.frombuffer(data, dtype="<f4", offset=start), scales)

    def save(self, path: Path) -> None:
        """Writes the byte form whole: to a neighbour file first, synced, then renamed over `path`."""
        partial = path.with_name(path.name + ".part")
        with partial.open("wb") as file:
            file.write(self.header)
            for start in range(0, self.vector.size, BLOCK):
                file.write(np.ascontiguousarray(self.vector[start : start + BLOCK]).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> ModelState:
        """The state in the file `path`; the vector is a read-only memory map. Raises StateError, OSError."""
        front = read_front(path)
        vector = np.memmap(path, dtype="<f4", mode="r", offset=len(front.header), shape=(words(front.table),))
        return cls(front.table, vector, front.scales)
