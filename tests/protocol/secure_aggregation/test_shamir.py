"""Shamir's scheme over GF(2^8), against arithmetic written out bit by bit, and vectors made with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secure_aggregation.shamir import interpolate, inverse, split, times


def slow_times(a: int, b: int) -> int:
    """Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1, as FIPS 197 section 4.2 writes it."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def slow_share(coefficients: list[int], x: int) -> int:
    value, power = 0, 1
    for coefficient in coefficients:
        value ^= slow_times(coefficient, power)
        power = slow_times(power, x)
    return value


def test_field_is_that_of_fips_197():
    """FIPS 197 section 4.2: {57} x {83} = {c1}, {57} x {13} = {fe}."""
    assert (slow_times(0x57, 0x83), slow_times(0x57, 0x13)) == (0xC1, 0xFE)
    # A polynomial 0 + 0x57 x at x = 0x83 is their product.
    shares = split(b"\x00", threshold=2, shares=255, token_bytes=lambda _: b"\x57")
    assert (shares[0x83], shares[0x13]) == (b"\xc1", b"\xfe")
    for a in range(256):
        shares = split(b"\x00", threshold=2, shares=255, token_bytes=lambda _, a=a: bytes([a]))
        assert all(shares[x][0] == slow_times(a, x) for x in range(1, 256))


def test_products_and_inverses_are_those_of_the_field():
    every = np.arange(256, dtype=np.uint8)
    assert times(every[:, None], every).tolist() == [[slow_times(a, b) for b in range(256)] for a in range(256)]
    assert set(times(every[1:], inverse(every[1:])).tolist()) == {1}
    with pytest.raises(ZeroDivisionError):
        inverse(every)


def test_vector():
    """Secret 00 01 ff, coefficients 11 22 33 and 80 90 a0, shares at x = 1, 2, 5."""
    drawn = bytes.fromhex("112233") + bytes.fromhex("8090a0")
    shares = split(bytes.fromhex("0001ff"), threshold=3, shares=5, token_bytes=lambda n: drawn[:n])
    rows = [(0x00, 0x11, 0x80), (0x01, 0x22, 0x90), (0xFF, 0x33, 0xA0)]
    for x in range(1, 6):
        assert shares[x] == bytes(slow_share(list(row), x) for row in rows)
    assert {x: shares[x].hex() for x in (1, 2, 5)} == {1: "91b36c", 2: "14332f", 5: "0df84e"}


@settings(deadline=None, max_examples=60)
@given(secret=st.binary(min_size=1, max_size=40), n=st.integers(1, 12), data=st.data())
def test_any_t_shares_rebuild_the_secret_and_every_other_share(secret, n, data):
    t = data.draw(st.integers(1, n))
    shares = split(secret, threshold=t, shares=n)
    chosen = data.draw(st.permutations(range(1, n + 1)))[:t]
    used = {x: shares[x] for x in chosen}
    assert interpolate(used) == secret
    for x in range(1, n + 1):
        assert interpolate(used, x) == shares[x]


def test_every_choice_of_exactly_t_of_six_rebuilds():
    shares = split(b"thirty-two bytes of a secret....", threshold=5, shares=6)
    for chosen in itertools.combinations(shares, 5):
        assert interpolate({x: shares[x] for x in chosen}) == b"thirty-two bytes of a secret...."


def test_fewer_than_t_shares_fit_every_secret_equally():
    """For t = 2 and one byte: given one share, each of the 256 secrets is reached by exactly one coefficient."""
    for x in (2, 7, 29):
        seen = {
            split(bytes([secret]), threshold=2, shares=x, token_bytes=lambda _, c=c: bytes([c]))[x][0]
            for secret in (0, 200)
            for c in range(256)
        }
        assert seen == set(range(256))
    t1 = split(b"secret", threshold=3, shares=5)
    assert interpolate({1: t1[1], 2: t1[2]}) != b"secret"


def test_255_shares_are_the_most():
    shares = split(b"ab", threshold=171, shares=255)
    assert interpolate({x: shares[x] for x in range(85, 256)}) == b"ab"


def test_coefficients_are_fresh_each_time():
    assert split(b"same", threshold=2, shares=2)[1] != split(b"same", threshold=2, shares=2)[1]


@pytest.mark.parametrize(("t", "n"), [(0, 3), (4, 3), (1, 256), (-1, 2), (2, 0)])
def test_impossible_thresholds_raise(t, n):
    with pytest.raises(ValueError, match="threshold"):
        split(b"secret", threshold=t, shares=n)


def test_empty_or_uneven_input_raises():
    with pytest.raises(ValueError, match="empty"):
        split(b"", threshold=2, shares=3)
    for shares in ({}, {1: b"ab", 2: b"abc"}):
        with pytest.raises(ValueError, match="of one length"):
            interpolate(shares)
    for shares in ({0: b"ab"}, {256: b"ab"}, {-1: b"ab"}):
        with pytest.raises(ValueError, match="point must be 1 to 255"):
            interpolate(shares)
    for at in (-1, 256):
        with pytest.raises(ValueError, match="asked for"):
            interpolate({1: b"ab"}, at)
