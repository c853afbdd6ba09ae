"""A model state has one byte form, and what is damaged or crafted is refused before a value is used."""

from __future__ import annotations

import itertools
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
    read_front,
    slices,
    stretches,
    table_as_list,
    table_from_list,
    update_words,
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


def scaled(*values: bytes) -> bytes:
    """A state of one weight whose header gives these values as scales."""
    given = b",".join(b'"scales":' + value for value in values)
    return with_header(b"{" + given + b',"table":[{"kind":"shared","name":"w","shape":[1]}]}', bytes(4))


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
        (scaled(b'"80"', b'"80"'), "twice|canonical"),
        (scaled(b'"8"'), "two lower hex"),
        (scaled(b'""'), "two lower hex"),
        (scaled(b'"7F"'), "two lower hex"),
        (scaled(b'"zz"'), "two lower hex"),
        (scaled(b'"80\\n"'), "two lower hex"),
        (scaled(b"128"), "two lower hex"),
        (scaled(b"null"), "two lower hex"),
        (scaled(b'"8080"'), "one scale for each"),
        (scaled(b'"5f"'), "from -32 to 20"),
        (scaled(b'"95"'), "from -32 to 20"),
        (with_header(encode({"table": table_as_list((TensorSpec("w", (1,), "local"),))})), "shares at least one"),
        (with_header(encode({"table": table_as_list((TensorSpec("w", (2**20, 2**20)),))})), "at most"),
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
        st.tuples(st.lists(st.integers(1, 5), max_size=3).map(tuple), st.sampled_from(["shared", "frozen", "local"])),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_every_state_survives_the_round_trip(tensors: list[Any], random: Any) -> None:
    table = tuple(TensorSpec(f"t{i}", shape, kind) for i, (shape, kind) in enumerate(tensors))
    if update_words(table) == 0:
        with pytest.raises(StateError):
            ModelState(table, np.zeros(0, dtype="<f4"))
        return
    vector = np.array([random.uniform(-9, 9) for _ in range(words(table))], dtype="<f4")
    scales = tuple(random.randint(-32, 20) for spec in table if spec.kind == "shared")
    for given_scales in (None, scales):
        again = ModelState.from_bytes(ModelState(table, vector, given_scales).to_bytes())
        assert again.table == table and np.array_equal(again.vector, vector) and again.scales == given_scales


def test_scales_stand_in_the_header_in_a_documented_form() -> None:
    data = ModelState((TensorSpec("w", (1,)),), np.zeros(1, dtype="<f4"), (-1,)).to_bytes()
    assert data == scaled(b'"7f"')


def test_other_scales_change_the_digest_but_not_the_length() -> None:
    low, high = (ModelState(TABLE, state().vector, (scale,) * 3) for scale in (-32, 20))
    assert low.digest != high.digest != state().digest
    assert len(low.header) == len(high.header) and low.length == high.length


@pytest.mark.parametrize("scales", [(), (0,), (0,) * 4, (0, 0, 21), (-33, 0, 0), (0, 0, 1.0), (True, 0, 0)])
def test_scales_that_do_not_fit_the_table_are_refused(scales: Any) -> None:
    with pytest.raises(StateError, match="scale"):
        ModelState(TABLE, state().vector, scales)
    with pytest.raises(StateError, match="scale"):
        header_bytes(TABLE, scales)


def test_the_front_of_a_file_is_read_without_its_vector(tmp_path: Path) -> None:
    model = ModelState(TABLE, state().vector, (1, 2, 3))
    model.save(tmp_path / "model")
    front = read_front(tmp_path / "model")
    assert front == (model.header, TABLE, (1, 2, 3))


TENSORS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["shared", "frozen", "local"])), min_size=1, max_size=9)


@given(TENSORS, st.lists(st.integers(0, 81), max_size=5))
def test_pieces_of_an_update_give_pieces_of_the_vector_that_follow_one_another(tensors: Any, cuts: list[int]) -> None:
    table = tuple(TensorSpec(f"t{i}", (size,), kind) for i, (size, kind) in enumerate(tensors))
    d = update_words(table)
    if d == 0:
        return
    borders = sorted({0, d, *(each for each in cuts if each < d)})
    found = [each for low, high in itertools.pairwise(borders) for each in stretches(table, low, high)]
    # Every value once, in order; every word once, in order, at its own value.
    assert [k for values, _ in found for k in range(values.start, values.stop)] == list(range(words(table)))
    trained = [spec.kind == "shared" for spec in table if spec.kind != "local" for _ in range(spec.size)]
    expected, word = [], 0
    for kind in trained:
        expected.append(word if kind else None)
        word += kind
    shown: list[int | None] = []
    for values, changed in found:
        size = values.stop - values.start
        shown += [None] * size if changed is None else list(range(changed.start, changed.stop))
        assert changed is None or changed.stop - changed.start == size
    assert shown == expected
    whole = list(stretches(table))
    assert all((one.words is None) != (other.words is None) for one, other in itertools.pairwise(whole))


def test_no_words_go_with_no_part_of_the_vector() -> None:
    assert list(stretches(TABLE, 3, 3)) == []
