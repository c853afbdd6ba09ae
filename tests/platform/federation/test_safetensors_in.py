"""A model file from a person: safetensors by the letter, float32 only, nothing executed, everything else refused by name."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.services.importing import state_blocks
from federation.services.models import model_upload
from federation.storage import model_path
from protocol.initial_model import initial_state
from protocol.model_state import ModelState, StateError, TensorSpec

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = np.array([1.5, -2.0], dtype="<f4").tobytes()


def _file(header: Any, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _read(data: bytes) -> ModelState:
    return ModelState.from_bytes(b"".join(state_blocks(io.BytesIO(data))))


def test_what_the_safetensors_package_writes_is_read_with_the_same_values():
    safetensors = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(1)
    tensors = {
        "z.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "a.bias": rng.normal(size=5).astype(np.float32),
        "scale": np.array(2.0, dtype=np.float32),
    }
    state = _read(safetensors.save(tensors, metadata={"format": "pt"}))
    assert {spec.name for spec in state.table} == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(state.tensor(name), tensor) and state.tensor(name).shape == tensor.shape


def test_our_own_form_is_taken_as_it_is():
    state = initial_state((TensorSpec("w", (3, 2)), TensorSpec("mean", (2,), "local")), 4)
    assert b"".join(state_blocks(io.BytesIO(state.to_bytes()))) == state.to_bytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "neither safetensors nor"),
        (b"short", "neither safetensors nor"),
        (pickle.dumps({"weight": [1.0] * 100}), "neither safetensors nor"),
        (b"PK\x03\x04" + bytes(200), "neither safetensors nor"),
        ((2**40).to_bytes(8, "little") + bytes(100), "neither safetensors nor"),
        (_file({"w": TENSOR})[:40], "ends inside its header"),
        (_file(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]'), "not JSON"),
        (_file(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{}}'), "names something twice"),
        (_file(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}  '), "not JSON"),
        (_file(b"[" * 4000), "not JSON"),
        (_file(b'["a list that is long enough to be read as one"]'), "must be an object"),
        (_file({"__metadata__": {"a": 1}, "w": TENSOR}), "__metadata__ must hold text only"),
        (_file({"__metadata__": {"only": "metadata, and no tensor"}}), "shares at least one"),
        (_file({"w": {**TENSOR, "more": "of what nobody asked for"}}), "nothing else"),
        (_file({"w": {**TENSOR, "dtype": "BF16"}}), "w: only float32"),
        (_file({"w": {**TENSOR, "dtype": "I64"}}), "w: only float32"),
        (_file({"../w": TENSOR}), "a tensor's name"),
        (_file({"w": {**TENSOR, "shape": [0, 2]}}), "w: a shape"),
        (_file({"w": {**TENSOR, "shape": [2.0]}}), "w: a shape"),
        (_file({"w": {**TENSOR, "shape": [3]}}), "w: has 8 bytes, its shape needs 12"),
        (_file({"w": {**TENSOR, "data_offsets": [8, 0]}}), "does not begin where"),
        (_file({"w": {**TENSOR, "data_offsets": [4, 12]}}), "does not begin where"),
        (_file({"w": {**TENSOR, "data_offsets": [0, True]}}), "two whole numbers"),
        (_file({"w": {**TENSOR, "data_offsets": [0, 2**60]}}), "two whole numbers"),
        (_file({"v": TENSOR, "w": TENSOR}), "w: does not begin where"),
        (_file({"w": TENSOR}, DATA[:-1]), "ends 1 bytes before"),
        (_file({"w": TENSOR}, DATA + b"x"), "goes on after its last tensor"),
        (_file({"w": TENSOR}, np.array([1, np.nan], dtype="<f4").tobytes()), "not a finite number"),
    ],
)
def test_what_is_no_such_file_is_refused_and_leaves_nothing(settings, data, said):
    with pytest.raises(StateError, match=said):
        model_upload(file=io.BytesIO(data))
    assert list(settings.MODEL_FOLDER.iterdir()) == []


def test_what_is_stored_is_the_raw_state_under_its_own_digest():
    digest = model_upload(file=io.BytesIO(_file({"w": TENSOR})))
    state = ModelState.load(model_path(digest))
    assert state.digest == digest and state.tensor("w").tolist() == [1.5, -2.0]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["w", "dtype", "shape"]), inner),
    max_leaves=8,
)


@given(header=_JSON | st.dictionaries(st.text(max_size=4), st.just(TENSOR) | _JSON), data=st.binary(max_size=24))
def test_whatever_stands_in_the_header_the_answer_is_a_state_or_a_reason(header: Any, data: bytes):
    try:
        state = _read(_file(header, data))
    except StateError as error:
        assert str(error)
    else:
        assert state.vector.size * 4 == len(data)
