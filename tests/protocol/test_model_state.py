"""A model state has one byte form, and what is damaged or crafted is refused before a value is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import model_state
from protocol.canonical import digest, encode
from protocol.model_state import (
    MAGIC,
    ModelState,
    StateError,
    TensorSpec,
    digest_of,
    header_bytes,
    slices,
    table_as_list,
    table_from_list,
    words,
)

TABLE = (
    TensorSpec("conv.weight", (2, 1, 3, 3)),
    TensorSpec("norm.weight", (2,), "local"),
    TensorSpec("head.bias", (3,)),
    TensorSpec("temperature", ()),
)


def state() -> ModelState:
    return ModelState(TABLE, np.arange(22, dtype="<f4"))


def with_header(header: bytes, vector: bytes = b"") -> bytes:
    return MAGIC + len(header).to_bytes(4, "big") + header + vector


def test_the_byte_form_is_exactly_the_documented_one() -> None:
    table = (TensorSpec("w", (2,)),)
    data = ModelState(table, np.array([1.0, -0.5], dtype="<f4")).to_bytes()
    header = b'{"table":[{"kind":"shared","name":"w","shape":[2]}]}'
    assert data == b"consilium-state/1\n" + bytes([0, 0, 0, len(header)]) + header + bytes.fromhex("0000803f000000bf")


def test_local_tensors_are_named_but_never_carried() -> None:
    assert words(TABLE) == 22
    assert [(spec.name, where) for spec, where in slices(TABLE)] == [
        ("conv.weight", slice(0, 18)),
        ("head.bias", slice(18, 21)),
        ("temperature", slice(21, 22)),
    ]
    assert state().tensor("conv.weight").shape == (2, 1, 3, 3)
    assert state().tensor("temperature") == np.float32(21)
    with pytest.raises(KeyError):
        state().tensor("norm.weight")


def test_bytes_file_and_digest_agree(tmp_path: Path) -> None:
    data = state().to_bytes()
    again = ModelState.from_bytes(data)
    path = tmp_path / "model"
    again.save(path)
    loaded = ModelState.load(path)
    assert path.read_bytes() == data == loaded.to_bytes()
    assert isinstance(loaded.vector, np.memmap)
    assert loaded.table == TABLE and np.array_equal(loaded.vector, state().vector)
    assert state().digest == loaded.digest == digest(data) == digest_of(header_bytes(TABLE), again.vector)
    assert state().length == len(data)
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_longer_than_a_block_has_the_same_digest_as_its_bytes(tmp_path: Path) -> None:
    table = (TensorSpec("w", (3, model_state.BLOCK)),)
    long = ModelState(table, np.linspace(-1, 1, 3 * model_state.BLOCK, dtype="<f4"))
    long.save(tmp_path / "model")
    assert long.digest == digest(long.to_bytes()) == ModelState.load(tmp_path / "model").digest


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a model state"),
        (MAGIC + b"\x00\x00\x00", "not a model state"),
        (b"consilium-state/2\n" + state().to_bytes()[18:], "not a model state"),
        (state().to_bytes()[:-1], "should have"),
        (state().to_bytes() + b"\x00", "should have"),
        (state().to_bytes()[:40], "inside its header"),
        (MAGIC + b"\xff\xff\xff\xff" + b"{}", "inside its header"),
        (with_header(b'{"table": []}'), "canonical"),
        (with_header(b"[]"), "object with a table"),
        (with_header(b'{"more":1,"table":[]}'), "object with a table"),
        (with_header(b'{"table":[]}'), "at least one"),
        (with_header(encode({"table": table_as_list((TensorSpec("w", (1,), "local"),))})), "shares 1 to"),
        (with_header(encode({"table": table_as_list((TensorSpec("w", (2**20, 2**20)),))})), "shares 1 to"),
        (with_header(encode({"table": table_as_list((TensorSpec("w", (1,)),) * 2)}), bytes(8)), "twice"),
        (with_header(encode({"table": table_as_list((TensorSpec("w", (1,)),))}), b"\x00\x00\xc0\x7f"), "finite"),
        (with_header(encode({"table": table_as_list((TensorSpec("w", (1,)),))}), b"\x00\x00\x80\x7f"), "finite"),
    ],
)
def test_damaged_bytes_are_refused(data: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=why):
        ModelState.from_bytes(data)
    path = tmp_path / "model"
    path.write_bytes(data)
    with pytest.raises(StateError, match=why):
        ModelState.load(path)


@pytest.mark.parametrize(
    "entry",
    [
        "w",
        {"name": "w", "shape": [1]},
        {"name": "w", "shape": [1], "kind": "shared", "dtype": "f4"},
        {"name": 1, "shape": [1], "kind": "shared"},
        {"name": "w", "shape": 1, "kind": "shared"},
        {"name": "w", "shape": [0], "kind": "shared"},
        {"name": "w", "shape": [True], "kind": "shared"},
        {"name": "w", "shape": ["1"], "kind": "shared"},
        {"name": "w", "shape": [1] * 9, "kind": "shared"},
        {"name": "w", "shape": [1], "kind": "private"},
        {"name": "", "shape": [1], "kind": "shared"},
        {"name": "../w", "shape": [1], "kind": "shared"},
        {"name": "w" * 256, "shape": [1], "kind": "shared"},
    ],
)
def test_a_table_with_a_strange_tensor_is_refused(entry: Any) -> None:
    with pytest.raises(StateError):
        table_from_list([entry])


def test_a_table_is_a_list() -> None:
    with pytest.raises(StateError, match="list"):
        table_from_list({"name": "w"})


@pytest.mark.parametrize(
    "vector", [np.zeros(22, dtype="<f8"), np.zeros(21, dtype="<f4"), np.zeros((22, 1), dtype="<f4")]
)
def test_a_vector_that_does_not_fit_its_table_is_refused(vector: Any) -> None:
    with pytest.raises(StateError, match="length 22"):
        ModelState(TABLE, vector)


def test_a_table_too_long_for_a_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_state, "MAX_HEADER", 10)
    with pytest.raises(StateError, match="10 are allowed"):
        header_bytes(TABLE)


@given(st.binary(max_size=120))
def test_no_bytes_make_the_reader_fail_otherwise_than_with_its_own_error(data: bytes) -> None:
    with pytest.raises(StateError):
        ModelState.from_bytes(MAGIC + data)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 5), max_size=3).map(tuple), st.sampled_from(["shared", "local"])),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_every_state_survives_the_round_trip(tensors: list[Any], random: Any) -> None:
    table = tuple(TensorSpec(f"t{i}", shape, kind) for i, (shape, kind) in enumerate(tensors))
    if words(table) == 0:
        with pytest.raises(StateError):
            ModelState(table, np.zeros(0, dtype="<f4"))
        return
    vector = np.array([random.uniform(-9, 9) for _ in range(words(table))], dtype="<f4")
    again = ModelState.from_bytes(ModelState(table, vector).to_bytes())
    assert again.table == table and np.array_equal(again.vector, vector)
