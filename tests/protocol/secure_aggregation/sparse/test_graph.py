"""Rows are drawn evenly, and by nothing but what was committed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from protocol.secure_aggregation.sparse import SparseParameters
from protocol.secure_aggregation.sparse.graph import draw, row

ROOT = "sha256:" + "c" * 64
NONCE = b"\x05" * 32


def test_each_number_is_drawn_as_often_as_any_other_and_none_twice():
    counts, runs = np.zeros((5, 20)), 4000
    for seed in range(runs):
        drawn = draw(seed.to_bytes(32, "big"), 20, 5)
        assert len(set(drawn)) == 5
        for place, number in enumerate(drawn):
            counts[place, number] += 1
    expected = runs / 20
    statistic = ((counts - expected) ** 2 / expected).sum(axis=1)
    assert (abs(statistic - 19) < 6.2 * math.sqrt(2 * 19)).all()


def test_small_remainders_are_not_likelier():
    """Of 3 * 2^30 numbers the first third would come half of the time, were a quarter of all words not passed over."""
    size = 3 * 2**30
    drawn = [number for seed in range(600) for number in draw(seed.to_bytes(32, "big"), size, 4)]
    assert all(0 <= number < size for number in drawn)
    assert abs(sum(number < 2**30 for number in drawn) / len(drawn) - 1 / 3) < 0.06


def test_drawing_all_gives_all():
    assert sorted(draw(b"x" * 32, 9, 9)) == list(range(9))


def test_nobody_draws_itself_and_every_other_can_be_drawn(sparse):
    this = sparse(20)
    seen = set()
    for name in this.silos:
        for number in range(30):
            drawn = row(this.parameters, ROOT, name, number.to_bytes(32, "big"))
            assert name not in drawn
            assert len(set(drawn)) == this.hood.h
            assert list(drawn) == sorted(drawn)
            seen |= {(name, other) for other in drawn}
    assert len(seen) == 20 * 19


def test_row_depends_on_roster_silo_nonce_and_attempt(sparse):
    this = sparse(40)
    base = row(this.parameters, ROOT, "site-007", NONCE)
    assert base == row(this.parameters, ROOT, "site-007", NONCE)
    others = [
        row(this.parameters, "sha256:" + "d" * 64, "site-007", NONCE),
        row(this.parameters, ROOT, "site-008", NONCE),
        row(this.parameters, ROOT, "site-007", b"\x06" * 32),
        row(SparseParameters(**this.settings | {"attempt": 1}), ROOT, "site-007", NONCE),
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sparse_from": 13}, "sparse_from"),
        ({"colluding": 1}, "colluding"),
        ({"lost": -1}, "lost"),
        ({"privacy_bits": 0}, "privacy_bits"),
        ({"failure_bits": 0}, "failure_bits"),
        ({"lost": 0.9}, "no neighbourhood"),
    ],
)
def test_parameters_out_of_their_range_are_refused(sparse, change, text):
    with pytest.raises(ValueError, match=text):
        sparse(12, **change)


def test_a_thousand_silos_fit_and_their_context_is_not_the_dense_ones(sparse, world):
    this = sparse(1000, sparse_from=64)
    assert this.parameters.positions["site-999"] == 999
    small, dense = sparse(12).parameters, world(12).parameters
    assert small.ctx != dense.ctx
