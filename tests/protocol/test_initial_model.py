"""The first model has the same bits everywhere: pinned digests, and a slow reference with integers and fractions."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from protocol.initial_model import initial_state, initial_tensor, pretrained_state
from protocol.model_state import BLOCK, ModelState, StateError, TensorSpec

TABLE = (
    TensorSpec("features.0.weight", (8, 1, 3, 3)),
    TensorSpec("features.0.bias", (8,)),
    TensorSpec("norm.weight", (8,)),
    TensorSpec("norm.running_mean", (8,)),
    TensorSpec("norm.running_var", (8,)),
    TensorSpec("norm.num_batches_tracked", ()),
    TensorSpec("local.weight", (4, 4), "local"),
    TensorSpec("head.weight", (1, 8)),
    TensorSpec("scale", ()),
)


def reference(name: str, shape: tuple[int, ...], seed: int) -> list[np.float32]:
    """Word by word: the counter is encrypted block by block, the value is exact in Python before its one rounding."""
    key = hashlib.sha256(b"consilium-initial/1\n" + seed.to_bytes(8, "big") + name.encode()).digest()[:16]
    block = Cipher(AES(key), ECB()).encryptor()
    size = math.prod(shape)
    stream = b"".join(block.update(counter.to_bytes(16, "big")) for counter in range(size // 4 + 1))
    bound = np.float32(math.sqrt(1 / math.prod(shape[1:])))
    values = []
    for k in range(size):
        u = int.from_bytes(stream[4 * k : 4 * k + 4], "little")
        ratio = (2 * (u >> 8) + 1 - 2**24) / 2**24
        assert float(np.float32(ratio)) == ratio
        values.append(np.float32(float(np.float32(ratio)) * float(bound)))
    return values


def test_the_first_model_equals_the_slow_reference_bit_for_bit() -> None:
    state = initial_state(TABLE, 7)
    for spec in (TABLE[0], TABLE[7]):
        assert state.tensor(spec.name).reshape(-1).tolist() == reference(spec.name, spec.shape, 7)


def test_the_first_model_has_the_pinned_digest() -> None:
    assert initial_state(TABLE, 7).digest == PINNED_7
    assert initial_state(TABLE, 2**53 - 1).digest == PINNED_LAST


PINNED_7 = "sha256:0439d14d50aa6c5e7277d8a62d7619d38a116c87e2f2994a0d1fa7f59fda370d"
PINNED_LAST = "sha256:e0c9d1477a5a19b8b4d1b28c0a81bf2455717bf54b998c2ba5255deb7c90ea8d"


def test_vectors_and_scalars_start_as_constants() -> None:
    state = initial_state(TABLE, 7)
    for name in ("features.0.bias", "norm.running_mean", "norm.num_batches_tracked"):
        assert not state.tensor(name).any()
    for name in ("norm.weight", "norm.running_var", "scale"):
        assert (state.tensor(name) == 1).all()


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    alone = initial_state((TABLE[7], TABLE[0]), 7)
    assert np.array_equal(alone.tensor("head.weight"), initial_state(TABLE, 7).tensor("head.weight"))
    assert not np.array_equal(alone.vector, initial_state((TABLE[7], TABLE[0]), 8).vector)
    renamed = TensorSpec("tail.weight", (1, 8))
    assert not np.array_equal(initial_tensor(renamed, 7), initial_tensor(TABLE[7], 7))


def test_a_local_tensor_is_drawn_the_same_way_and_stays_out_of_the_vector() -> None:
    assert initial_tensor(TABLE[6], 7).reshape(-1).tolist() == reference("local.weight", (4, 4), 7)
    assert initial_state(TABLE, 7).vector.size == 72 + 8 * 4 + 1 + 8 + 1


def test_blocks_leave_no_seam_and_the_spread_is_right(tmp_path: Path) -> None:
    spec = TensorSpec("w", (2 * BLOCK // 64 + 1, 64))
    out = np.memmap(tmp_path / "w", dtype="<f4", mode="w+", shape=(spec.size,))
    vector = initial_state((spec,), 3, out=out).vector
    assert vector is out
    edge = range(BLOCK - 2, BLOCK + 2)
    expected = reference("w", spec.shape, 3)
    assert [vector[k] for k in edge] == [expected[k] for k in edge]
    assert vector[-1] == expected[-1]
    assert np.abs(vector).max() < 0.125
    assert abs(float(vector.mean())) < 0.001 and float(vector.std()) == pytest.approx(0.125 / math.sqrt(3), rel=0.01)


@pytest.mark.parametrize("seed", [-1, 2**53, True, 1.0])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        initial_state(TABLE, seed)


def test_an_out_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="out must be"):
        initial_state(TABLE, 1, out=np.zeros(3, dtype="<f4"))


def test_a_table_that_shares_nothing_is_refused() -> None:
    with pytest.raises(StateError):
        initial_state((TABLE[6],), 1)


NETWORK = (TensorSpec("b.weight", (2, 3)), TensorSpec("norm.mean", (4,), "local"), TensorSpec("a.bias", (5,)))


def _given(*table: TensorSpec) -> ModelState:
    return initial_state(table, 11)


def test_a_pretrained_model_is_found_by_names_whatever_its_order() -> None:
    given = _given(TensorSpec("a.bias", (5,)), TensorSpec("norm.mean", (4,)), TensorSpec("b.weight", (2, 3)))
    made = pretrained_state(NETWORK, given)
    assert made.table == NETWORK
    assert np.array_equal(made.tensor("b.weight"), given.tensor("b.weight"))
    assert np.array_equal(made.tensor("a.bias"), given.tensor("a.bias"))


def test_a_pretrained_model_with_the_networks_own_table_keeps_its_digest(tmp_path: Path) -> None:
    given = _given(*NETWORK)
    out = np.memmap(tmp_path / "v", dtype="<f4", mode="w+", shape=(11,))
    made = pretrained_state(NETWORK, given, out=out)
    assert made.digest == given.digest and made.vector is out


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ((NETWORK[0],), "a.bias: the model that was given has no such tensor"),
        ((*NETWORK, TensorSpec("more", (1,))), "more: the network has no such tensor"),
        ((TensorSpec("b.weight", (3, 2)), NETWORK[2]), "b.weight: has the shape"),
        (
            (TensorSpec("b.weight", (2, 3), "local"), NETWORK[2]),
            "b.weight: the model that was given has no such tensor",
        ),
    ],
)
def test_a_pretrained_model_that_does_not_fit_is_refused_by_name(table: tuple[TensorSpec, ...], said: str) -> None:
    with pytest.raises(StateError, match=said):
        pretrained_state(NETWORK, _given(*table))


def test_a_pretrained_model_needs_an_out_that_fits() -> None:
    with pytest.raises(ValueError, match="out must be"):
        pretrained_state(NETWORK, _given(*NETWORK), out=np.zeros(3, dtype="<f4"))
