"""What rounds together show: directions laid end to end, gains with and without a silo, and when nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest

from protocol.secure_aggregation.anomaly import Direction, Gain, RoundRecord, directions, gains

NAMES = [f"site-{number}" for number in range(1, 6)]
ONE = dict.fromkeys(NAMES, 1)


def drawn(seed: int, **shifts: float) -> dict[str, np.ndarray]:
    """Sketches with a common part (times a silo's shift, 1 if not given) and noise."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=256)
    return {
        name: np.round(1000 * (shifts.get(name.replace("-", "_"), 1.0) * common + draw.normal(size=256))).astype("<i8")
        for name in NAMES
    }


def sketch_of(**values: int) -> np.ndarray:
    row = np.zeros(256, dtype="<i8")
    for at, value in values.items():
        row[int(at[1:])] = value
    return row


# --- directions ------------------------------------------------------------------------------------------------------


def test_a_silo_that_pulls_the_other_way_stands_out_over_rounds():
    rounds = [RoundRecord(drawn(seed, site_3=-1.0), NAMES, None) for seed in range(10)]
    found = directions(rounds, ONE)
    assert found["site-3"].cosine < -0.5
    assert found["site-3"].z < -5
    assert all(found[name].cosine > 0.3 for name in NAMES if name != "site-3")
    assert found["site-3"].rounds == 10


def test_what_cannot_be_seen_in_one_round_shows_over_many():
    """A weak common direction: chance hides it in one round, and rounds laid end to end bring it out."""

    def spread(count: int) -> float:
        values = [
            directions([RoundRecord(drawn(100 * at + k, site_3=0.0), NAMES, None) for k in range(count)], ONE)[
                "site-3"
            ].cosine
            for at in range(20)
        ]
        return float(np.std(values))

    assert spread(16) < spread(1) / 2


def test_rounds_are_laid_end_to_end_and_not_added():
    """Two rounds have two seeds: sums over them would be of unlike things, and here they would cancel."""
    first = {"site-1": sketch_of(_0=3), "site-2": sketch_of(_0=4)}
    second = {"site-1": sketch_of(_0=-3), "site-2": sketch_of(_0=-4)}
    found = directions([RoundRecord(first, ["site-1", "site-2"], None), RoundRecord(second, first, None)], ONE)
    assert found["site-1"] == Direction(pytest.approx(1.0), None, 2)


def test_cosine_is_the_formula_with_weights_taken_out():
    weights = {"site-1": 2, "site-2": 1, "site-3": 1}
    sketches = {"site-1": sketch_of(_0=2, _1=4), "site-2": sketch_of(_0=3), "site-3": sketch_of(_1=-1)}
    found = directions([RoundRecord(sketches, list(sketches), None)], weights)
    # site-1 over its weight: (1, 2). The others of site-1: (3, -1); those of site-2: (1, 1).
    assert found["site-1"].cosine == pytest.approx((3 - 2) / math.sqrt(5 * 10))
    assert found["site-2"].cosine == pytest.approx(3 / math.sqrt(9 * 2))


def test_an_excluded_silo_is_shown_but_does_not_move_the_others():
    sketches = drawn(1)
    huge = {**sketches, "site-5": sketches["site-5"] * -1000}
    members = NAMES[:4]
    found = directions([RoundRecord(huge, members, None)], ONE)
    plain = directions([RoundRecord({name: sketches[name] for name in members}, members, None)], ONE)
    assert [found[name].cosine for name in members] == pytest.approx([plain[name].cosine for name in members])
    total = sum(sketches[name].astype(float) for name in members)
    expected = float(huge["site-5"] @ total) / float(np.linalg.norm(huge["site-5"]) * np.linalg.norm(total))
    assert found["site-5"].cosine == pytest.approx(expected)


def test_z_is_against_the_others_alone():
    found = directions([RoundRecord(drawn(2), NAMES, None)], ONE)
    others = [found[name].cosine for name in NAMES[1:]]
    assert found["site-1"].z == pytest.approx((found["site-1"].cosine - np.mean(others)) / np.std(others, ddof=1))


def test_with_fewer_than_three_others_there_is_no_z():
    sketches = {name: row for name, row in drawn(3).items() if name in NAMES[:3]}
    assert {direction.z for direction in directions([RoundRecord(sketches, NAMES, None)], ONE).values()} == {None}


def test_a_silo_without_any_direction_is_left_out():
    sketches = {**drawn(4), "site-2": np.zeros(256, dtype="<i8")}
    alone = RoundRecord({"site-1": sketches["site-1"]}, ["site-1"], None)
    assert "site-2" not in directions([RoundRecord(sketches, NAMES, None)], ONE)
    assert directions([alone], ONE) == {}
    assert directions([RoundRecord({}, NAMES, None)], ONE) == directions([], ONE) == {}


# --- gains -----------------------------------------------------------------------------------------------------------


def records(*rounds: tuple[str, float | None]) -> list[RoundRecord]:
    """From (members as digits, AUC of the model that came in)."""
    return [RoundRecord({}, [f"site-{digit}" for digit in members], auc) for members, auc in rounds]


def test_gain_is_the_difference_of_means_with_its_error():
    found = gains(records(("12", 0.5), ("12", 0.6), ("2", 0.8), ("2", 0.8), ("", 0.9)))
    # With site-1: +0.1 and +0.2; without: 0 and +0.1. Each mean has the variance 0.005 / 2.
    assert found["site-1"] == Gain(pytest.approx(0.1), pytest.approx(math.sqrt(0.005)), 2, 2)


def test_a_silo_that_was_always_there_or_hardly_ever_has_no_gain():
    found = gains(records(("12", 0.5), ("12", 0.6), ("2", 0.8), ("23", 0.8), ("23", 0.8), ("", 0.9)))
    assert set(found) == {"site-1", "site-3"}
    assert set(gains(records(("12", 0.5), ("2", 0.6), ("2", 0.7), ("", 0.8)))) == set()


def test_rounds_whose_auc_is_not_known_count_for_nothing():
    known = records(("1", 0.5), ("1", 0.7), ("2", 0.8), ("2", 0.8), ("", 0.9))
    holes = records(("1", None), ("1", 0.5), ("1", 0.7), ("2", 0.8), ("2", 0.8), ("2", 0.9), ("1", None), ("1", 0.1))
    assert gains(holes) == gains(known)
    assert gains([]) == gains(known[:1]) == {}
