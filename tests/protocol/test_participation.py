"""Who is drawn for a round follows from model, number and names alone, and is fair over rounds."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.participation import draw

MODEL = "sha256:" + "a" * 64
NAMES = [f"site-{number}" for number in range(1, 9)]


def test_a_draw_can_be_made_again_by_hand() -> None:
    def rank(silo: str) -> str:
        text = f'{{"draw":"consilium/draw/1","model":"{MODEL}","round":7,"silo":"{silo}"}}'
        return hashlib.sha256(text.encode()).hexdigest()

    expected = sorted(sorted(NAMES, key=rank)[:3])
    assert draw(NAMES, count=3, model=MODEL, round_number=7) == tuple(expected)


@given(st.permutations(NAMES), st.integers(1, 8), st.integers(0, 50))
def test_the_order_of_the_names_changes_nothing(names: list[str], count: int, number: int) -> None:
    found = draw(names, count=count, model=MODEL, round_number=number)
    assert found == draw(NAMES, count=count, model=MODEL, round_number=number)
    assert list(found) == sorted(found) and len(found) == count


@pytest.mark.parametrize("count", [None, 8, 9])
def test_without_a_number_all_take_part(count: int | None) -> None:
    assert draw(NAMES, count=count, model=MODEL, round_number=1) == tuple(NAMES)


def test_another_round_and_another_model_have_other_draws() -> None:
    by_round = {draw(NAMES, count=4, model=MODEL, round_number=number) for number in range(20)}
    by_model = {draw(NAMES, count=4, model="sha256:" + f"{n:064x}", round_number=1) for n in range(20)}
    assert len(by_round) > 10 and len(by_model) > 10


def test_every_silo_is_drawn_about_equally_often() -> None:
    counted = Counter(silo for number in range(2000) for silo in draw(NAMES, count=4, model=MODEL, round_number=number))
    assert all(900 < counted[silo] < 1100 for silo in NAMES), counted  # 1000 +- 4.5 standard deviations


def test_one_silo_more_moves_at_most_one_of_the_others() -> None:
    for number in range(50):
        before = set(draw(NAMES, count=4, model=MODEL, round_number=number))
        after = set(draw([*NAMES, "site-9"], count=4, model=MODEL, round_number=number))
        assert len(before - after) <= 1


def test_what_is_no_digest_or_draws_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="digest"):
        draw(NAMES, count=3, model="abc", round_number=1)
    with pytest.raises(ValueError, match="at least one"):
        draw(NAMES, count=0, model=MODEL, round_number=1)
