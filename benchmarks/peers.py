"""Other systems' protection of one update, timed: run by the Python of .venv-peers, by benchmarks/secure_aggregation.py.

Reads one JSON line a measurement, {"what", "d", "n"}, and answers with one, {part: seconds of the core}. Set-up (keys,
contexts, the update itself) is not timed.

    flower      the client of Flower's SecAgg+ as its mod works, with its own functions and default ranges: quantise, its
                own mask and those of n - 1 neighbours from its generator (Mersenne Twister, 32-bit seed), modulo
    flower_aes  the same with AES-CTR key stream in place of that generator
    ckks        TenSEAL, degree 8192, coefficients of 60, 40, 40 and 60 bits: d floats into vectors of 4,096
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
import tenseal
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

# The defaults of Flower's SecAggPlusWorkflow.
CLIPPING, TARGET, MODULUS = 8.0, 1 << 22, 1 << 32
SLOTS = 4096

Rows = list[np.ndarray]


def update(d: int) -> np.ndarray:
    """A float32 update of L2 norm 1."""
    return (np.random.default_rng(1).standard_normal(d) / np.sqrt(d)).astype(np.float32)


def aes_masks(seed: bytes, modulus: int, shapes: list[tuple[int, ...]]) -> Rows:
    """As Flower's generator: int64 below a modulus of 2^32, of these shapes."""
    stream = Cipher(algorithms.AES(seed[:16]), modes.CTR(seed[16:])).encryptor()
    return [
        np.frombuffer(stream.update(bytes(4 * int(np.prod(shape)))), "<u4").reshape(shape).astype(np.int64)
        for shape in shapes
    ]


def flower(d: int, n: int, masks: Callable[[bytes, int, list[tuple[int, ...]]], Rows]) -> dict[str, float]:
    """Seconds for quantising and for masking."""
    update_, seeds = [update(d)], [secrets.token_bytes(32) for _ in range(n)]
    begin = time.process_time()
    rows = quantize(arithmetic.parameters_multiply(update_, 1.0), CLIPPING, TARGET)
    rows = arithmetic.factor_combine(TARGET, rows)
    between = time.process_time()
    shapes = [row.shape for row in rows]
    rows = arithmetic.parameters_addition(rows, masks(seeds[0], MODULUS, shapes))
    for place, seed in enumerate(seeds[1:]):
        combine = arithmetic.parameters_addition if place % 2 else arithmetic.parameters_subtraction
        rows = combine(rows, masks(seed, MODULUS, shapes))
    arithmetic.parameters_mod(rows, MODULUS)
    return {"quantise": between - begin, "masks": time.process_time() - between}


def ckks(d: int) -> dict[str, float]:
    """Seconds for encrypting."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=2 * SLOTS, coeff_mod_bit_sizes=[60, 40, 40, 60]
    )
    context.global_scale = 2.0**40
    # Lists: it takes them faster than arrays.
    vectors = [list(map(float, part)) for part in np.array_split(update(d), -(-d // SLOTS))]
    begin = time.process_time()
    for vector in vectors:
        tenseal.ckks_vector(context, vector)
    return {"encrypt": time.process_time() - begin}


def answers(lines: Iterator[str]) -> Iterator[dict[str, float]]:
    """One measurement a line."""
    for line in lines:
        asked = json.loads(line)
        if asked["what"] == "ckks":
            yield ckks(asked["d"])
        else:
            yield flower(asked["d"], asked["n"], pseudo_rand_gen if asked["what"] == "flower" else aes_masks)


if __name__ == "__main__":
    for answer in answers(iter(sys.stdin)):
        print(json.dumps(answer), flush=True)
