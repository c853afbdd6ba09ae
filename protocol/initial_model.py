"""The first model: drawn from a seed by an integer generator of our own, so that every hospital gets the same bits,
or put together from a model that was trained before (`pretrained_state`).

torch's generator is not used, because its numbers depend on version and device. Here:

    key(name) = first 16 bytes of SHA256(b"consilium-initial/1\\n" | u64 big-endian seed | name in UTF-8)
    u_k       = k-th little-endian 32-bit word of the AES-128-CTR key stream under key(name), counter from 0
    r_k       = (2 * (u_k >> 8) + 1 - 2^24) / 2^24          uniform in (-1, 1), exact in float32
    w_k       = r_k * b                                     one float32 multiplication

with b = float32(sqrt(1 / fan_in)), fan_in = product of the shape without its first side: the bounds that PyTorch's own
linear and convolutional layers use (Kaiming uniform with a = sqrt 5), so published learning rates keep their meaning.
Tensors of one dimension or none are constants: 0 where the name ends in `bias`, `running_mean` or
`num_batches_tracked`, else 1 (scales of normalisation layers, running variances). Division and square root of IEEE 754
are correctly rounded and all the rest is integer or exact, so no rounding mode, compiler or processor can change a bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from protocol.model_state import BLOCK, ModelState, Scales, StateError, TensorSpec, Vector, check_table, slices, words

LABEL: Final = b"consilium-initial/1\n"
ZERO_NAMES: Final = ("bias", "running_mean", "num_batches_tracked")
"""Endings of the names of vectors and scalars that start at 0."""
MAX_SEED: Final = 2**53 - 1


def initial_state(
    table: Sequence[TensorSpec], seed: int, *, scales: Scales | None = None, out: Vector | None = None
) -> ModelState:
    """The first state of a network.

    Parameters: table: its tensors. seed: 0 to 2^53 - 1, from the manifest. scales: `FixedPoint.initial`. out: float32[d] to
    fill (a memory map, say); None makes a new array.
    Returns: the state over `out`; local tensors are not in it (`initial_tensor`).
    Raises: ValueError for a seed out of range or an `out` that does not fit; StateError for a table that is none.
    """
    vector = np.empty(words(table), dtype="<f4") if out is None else out
    if vector.dtype != np.dtype("<f4") or vector.shape != (words(table),):
        raise ValueError(f"out must be float32 of length {words(table)}")
    for spec, where in slices(table):
        _fill(spec, seed, vector[where])
    return ModelState(tuple(table), vector, scales)


def pretrained_state(
    table: Sequence[TensorSpec], given: ModelState, *, scales: Scales | None = None, out: Vector | None = None
) -> ModelState:
    """The first state of a network that starts from a model trained before.

    Tensors are found by name, so their order in `given` does not matter. Every shared or frozen tensor of `table` must be
    there in its shape, and nothing that the network does not have. What `table` keeps local is left out: it starts afresh.

    Parameters: table: the network's tensors. given: the model that the manifest names, of which only the values count.
    scales, out: as for `initial_state`.
    Returns: the state over `out`; its digest is that of `given` where both have the same table.
    Raises: ValueError for an `out` that does not fit; StateError naming the tensor that does not.
    """
    table = check_table(tuple(table))
    vector = np.empty(words(table), dtype="<f4") if out is None else out
    if vector.dtype != np.dtype("<f4") or vector.shape != (words(table),):
        raise ValueError(f"out must be float32 of length {words(table)}")
    there = {spec.name: (spec.shape, where) for spec, where in slices(given.table)}
    strangers = sorted({spec.name for spec in given.table} - {spec.name for spec in table})
    if strangers:
        raise StateError(f"{strangers[0]}: the network has no such tensor")
    for spec, where in slices(table):
        if spec.name not in there:
            raise StateError(f"{spec.name}: the model that was given has no such tensor")
        shape, source = there[spec.name]
        if shape != spec.shape:
            raise StateError(
                f"{spec.name}: has the shape {shape} in the model that was given, {spec.shape} in the network"
            )
        vector[where] = given.vector[source]
    return ModelState(table, vector, scales)


def initial_tensor(spec: TensorSpec, seed: int) -> Vector:
    """The first values of one tensor, shared or local, in its shape."""
    flat = np.empty(spec.size, dtype="<f4")
    _fill(spec, seed, flat)
    return flat.reshape(spec.shape)


def _fill(spec: TensorSpec, seed: int, flat: Vector) -> None:
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ValueError("seed must be a whole number from 0 to 2^53 - 1")
    if len(spec.shape) < 2:
        flat.fill(np.float32(0.0 if spec.name.endswith(ZERO_NAMES) else 1.0))
        return
    bound = np.float32(math.sqrt(1.0 / math.prod(spec.shape[1:])))
    key = hashlib.sha256(LABEL + seed.to_bytes(8, "big") + spec.name.encode("utf-8")).digest()[:16]
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    zeros = bytes(4 * min(BLOCK, flat.size))
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        drawn = np.frombuffer(stream.update(zeros[: 4 * part.size]), dtype="<u4") >> np.uint32(8)
        odd = drawn.astype(np.int32) * np.int32(2) + np.int32(1 - 2**24)  # odd, below 2^24 in size: exact in float32
        np.copyto(part, odd, casting="same_kind")
        np.multiply(part, np.float32(2.0**-24), out=part)
        np.multiply(part, bound, out=part)
