"""Shamir's secret sharing, bytewise over GF(2^8) (Shamir 1979; the field of FIPS 197, x^8 + x^4 + x^3 + x + 1).

A secret of m bytes is m polynomials of degree t-1 whose constant terms are its bytes; the share of silo number i in the
roster (from 0) is their values at x = i + 1. Fewer than t shares say nothing about the secret.

Multiplication looks up tables at secret positions; the parties run on machines of their own, so timing within a cache
line is outside the threat model.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_X: Final = 255

_Bytes = NDArray[np.uint8]


def _tables() -> tuple[_Bytes, NDArray[np.int64]]:
    """exp (doubled, so that a sum of two logarithms needs no modulo) and log to the generator 3."""
    exp = np.zeros(510, dtype=np.uint8)
    log = np.zeros(256, dtype=np.int64)
    value = 1
    for power in range(255):
        exp[power] = exp[power + 255] = value
        log[value] = power
        value ^= value << 1
        if value > 255:
            value ^= 0x11B
    return exp, log


_EXP, _LOG = _tables()


def times(a: _Bytes, b: _Bytes) -> _Bytes:
    """Products in the field, element by element; shapes as numpy broadcasts them."""
    products = _EXP[_LOG[a] + _LOG[b]]
    return np.where((a == 0) | (b == 0), np.uint8(0), products)


def inverse(a: _Bytes) -> _Bytes:
    """1/a in the field, element by element. Raises: ZeroDivisionError where one is 0."""
    if not np.all(a):
        raise ZeroDivisionError("0 has no inverse in the field")
    return _EXP[255 - _LOG[a]]


def _check_points(points: list[int]) -> None:
    for x in points:
        if not 1 <= x <= MAX_X:
            raise ValueError(f"a share's point must be 1 to {MAX_X}, not {x}")


def split(
    secret: bytes, *, threshold: int, shares: int, token_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> dict[int, bytes]:
    """Shares 1..`shares` of `secret`, any `threshold` of which rebuild it.

    Parameters:
        secret: m >= 1 bytes.
        threshold, shares: 1 <= threshold <= shares <= 255.
        token_bytes: where the coefficients come from; another one than the default is for test vectors only.

    Returns:
        x -> share of m bytes.

    Raises:
        ValueError: a number out of range or an empty secret.
    """
    if not 1 <= threshold <= shares <= MAX_X:
        raise ValueError(f"1 <= threshold <= shares <= {MAX_X} does not hold for {threshold} and {shares}")
    if not secret:
        raise ValueError("the secret is empty")
    length = len(secret)
    drawn = np.frombuffer(token_bytes((threshold - 1) * length), dtype=np.uint8)
    rows = np.vstack([np.frombuffer(secret, dtype=np.uint8), drawn.reshape(threshold - 1, length)])
    points = np.arange(1, shares + 1, dtype=np.uint8)[:, None]
    values = np.repeat(rows[-1:], shares, axis=0)
    for row in rows[-2::-1]:  # Horner for all shares at once, highest coefficient first
        values = times(points, values) ^ row
    return {x: values[x - 1].tobytes() for x in range(1, shares + 1)}


def interpolate(shares: Mapping[int, bytes], at: int = 0) -> bytes:
    """The value at x = `at` of the polynomials of least degree through `shares`; at 0 that is the secret.

    Parameters:
        shares: x -> share, at least one, all of the same length; the caller passes exactly `threshold` of them.
        at: 0 to 255; where it is one of the points, its share comes back.

    Raises:
        ValueError: no shares, a point out of range, or shares of different lengths.
    """
    points = list(shares)
    _check_points(points)
    if len({len(share) for share in shares.values()}) != 1:
        raise ValueError("shares must be there and of one length")
    if not 0 <= at <= MAX_X:
        raise ValueError(f"the point asked for must be 0 to {MAX_X}, not {at}")
    if at in shares:
        return bytes(shares[at])
    rows = np.vstack([np.frombuffer(share, dtype=np.uint8) for share in shares.values()])
    products = _EXP[_LOG[rows] + _weights(tuple(points), at)[:, None]]
    summed: _Bytes = np.bitwise_xor.reduce(np.where(rows == 0, np.uint8(0), products), axis=0)
    return summed.tobytes()


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...], at: int) -> NDArray[np.int64]:
    """Logarithms of the Lagrange coefficients of `points` for the value at `at`; all secrets of a round share them."""
    xs = np.array(points, dtype=np.int64)
    above = _LOG[xs ^ at]
    # log(0) stands as 0 in the table, so a point's difference with itself adds nothing.
    weights: NDArray[np.int64] = (above.sum() - above - _LOG[xs[:, None] ^ xs].sum(axis=1)) % 255
    return weights
