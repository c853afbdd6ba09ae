"""Secrets are rebuilt from shares where some are false, who lied is named, and no honest silo is."""

from __future__ import annotations

import os
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secure_aggregation import NotEnoughShares, RosterView, colluders, sealing, shamir, threshold
from protocol.secure_aggregation.decoding import false_points
from protocol.secure_aggregation.recovery import Rebuilder

CTX = bytes(32)
SECRET = bytes(range(100, 132))
SIGNED = sealing.binding("self", SECRET, ctx=CTX, silo="owner")


def roster(n: int) -> RosterView:
    return RosterView(tuple(f"site-{number:03}" for number in range(1, n + 1)), "sha256:" + "d" * 64, {}, ())


def dealt(n: int) -> dict[str, bytes]:
    return dict(zip(roster(n).members, shamir.split(SECRET, threshold=threshold(n), shares=n).values(), strict=True))


def rebuild(shares: dict[str, bytes], n: int, liars: int) -> Rebuilder:
    """A rebuilder that found the secret in these shares."""
    rebuilder = Rebuilder(roster(n), liars)
    assert rebuilder.rebuild("self", "owner", shares, ctx=CTX, signed=SIGNED) == SECRET
    return rebuilder


def spoilt(share: bytes, draw: random.Random, way: str) -> bytes:
    """A false share: of noise, with the error that all make, with one false byte, or empty of content."""
    if way == "zero":
        return bytes(32)
    error = {"noise": draw.randbytes(32), "same": b"\x01" * 32, "byte": bytes(31) + b"\x80"}[way]
    return bytes(a ^ b for a, b in zip(share, error, strict=True))


def on_another_polynomial(shares: dict[str, bytes], liars: set[str], draw: random.Random) -> dict[str, bytes]:
    """The liars move to another polynomial through the same secret, which meets the true one in t-2 honest shares."""
    names = roster(len(shares)).members
    honest = sorted(set(names) - liars)
    meets = draw.sample(honest, min(threshold(len(shares)) - 2, len(honest)))
    factor = np.frombuffer(draw.randbytes(32), dtype=np.uint8) | 1
    moved = dict(shares)
    for liar in liars:
        x, error = names.index(liar) + 1, factor
        for zero in (x, *(x ^ (names.index(name) + 1) for name in meets)):
            error = shamir.times(error, np.uint8(zero))
        moved[liar] = bytes(a ^ b for a, b in zip(shares[liar], error.tobytes(), strict=True))
    return moved


ways = st.sampled_from(("noise", "same", "byte", "zero"))
draws = st.integers(0, 2**32).map(random.Random)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 63), length=st.integers(1, 40), draw=draws, data=st.data())
def test_false_shares_are_located_exactly_up_to_half_of_what_is_over(n, length, draw, data):
    t = data.draw(st.integers(1, n))
    shares = shamir.split(draw.randbytes(length), threshold=t, shares=n)
    radius = (n - t) // 2
    for e in range(radius + 1):
        liars = draw.sample(sorted(shares), e)
        # Each in one byte only, the first or the last.
        errors = {x: bytes(draw.choice((0, length - 1))) + bytes([draw.randint(1, 255)]) for x in liars}
        came = {
            x: bytes(a ^ b for a, b in zip(share, errors.get(x, b"").ljust(length, b"\0"), strict=True))
            for x, share in shares.items()
        }
        for most in (e, radius):
            assert false_points(came, t=t, most=most) == set(liars)


@settings(deadline=None, max_examples=80)
@given(n=st.integers(3, 63), way=ways, draw=draws, data=st.data())
def test_up_to_half_of_the_shares_over_t_may_be_false_and_exactly_the_liars_are_named(n, way, draw, data):
    t = threshold(n)
    m = data.draw(st.integers(t, n))
    c = data.draw(st.integers(0, colluders(n, n)))
    came = dict(draw.sample(sorted(dealt(n).items()), m))
    for e in range((m - t) // 2 + 1):
        liars = set(draw.sample(sorted(came), e))
        shares = {silo: spoilt(share, draw, way) if silo in liars else share for silo, share in came.items()}
        rebuilder = rebuild(shares, n, c)
        provable = m - e - (t - 2) > c
        assert rebuilder.bad == (liars if provable else set())
        assert rebuilder.suspects == (set(shares) if e and not provable else set())


def test_eight_false_shares_of_sixty_three_are_found_in_no_time():
    """t = 43: of 30,745 choices of 43 shares one holds none of the eight."""
    shares = dealt(63)
    liars = set(random.Random(1).sample(sorted(shares), 8))
    shares |= {silo: spoilt(shares[silo], random.Random(2), "same") for silo in liars}
    took = []
    for _ in range(3):
        before = time.perf_counter()
        assert rebuild(shares, 63, 13).bad == liars
        took.append(time.perf_counter() - before)
    assert min(took) < 0.25


@settings(deadline=None, max_examples=150)
@given(n=st.integers(4, 63), draw=draws, data=st.data())
def test_liars_on_another_polynomial_through_the_secret_have_no_honest_silo_named(n, draw, data):
    """As many as the study is protected against, or as decoding corrects, if that is more."""
    t = threshold(n)
    c = data.draw(st.integers(0, colluders(n, n)))
    count = data.draw(st.integers(0, max(c, (n - t) // 2)))
    liars = set(draw.sample(roster(n).members, count))
    rebuilder = Rebuilder(roster(n), c)
    try:
        shares = on_another_polynomial(dealt(n), liars, draw)
        assert rebuilder.rebuild("self", "owner", shares, ctx=CTX, signed=SIGNED) == SECRET
    except NotEnoughShares as error:
        assert count > (n - t) // 2
        assert error.bad == ()
    assert rebuilder.bad <= liars


@pytest.mark.parametrize("n", [7, 12, 16])
def test_in_small_rosters_all_but_t_may_be_false(n):
    shares = dealt(n)
    liars = set(random.Random(n).sample(sorted(shares), n - threshold(n)))
    noise = random.Random(0)
    assert rebuild(shares | {silo: spoilt(shares[silo], noise, "noise") for silo in liars}, n, 1).bad == liars
    rebuild(shares | {silo: spoilt(shares[silo], noise, "same") for silo in liars}, n, 1)


def test_false_shares_of_independent_noise_are_corrected_far_beyond_half():
    """As broken disks send them: 19 of the 20 over t."""
    shares = dealt(63)
    liars = set(random.Random(3).sample(sorted(shares), 19))
    shares |= {silo: os.urandom(32) for silo in liars}
    assert rebuild(shares, 63, 1).bad == liars


def test_too_many_false_shares_of_a_large_roster_end_the_round_and_name_nobody():
    shares = dealt(63)
    shares |= {silo: spoilt(shares[silo], random.Random(0), "same") for silo in sorted(shares)[:11]}
    rebuilder = Rebuilder(roster(63), 1)
    with pytest.raises(NotEnoughShares, match="63 shares came, 43") as caught:
        rebuilder.rebuild("self", "owner", shares, ctx=CTX, signed=SIGNED)
    assert (caught.value.bad, caught.value.suspects) == ((), tuple(sorted(shares)))
    assert (rebuilder.bad, rebuilder.suspects) == (set(), set())
