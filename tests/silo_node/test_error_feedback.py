"""What a silo owes to a study: kept once the round has ended with its update in the sum, and in no other case."""

from __future__ import annotations

import stat

import numpy as np
import pytest

from protocol.model_state import TensorSpec
from silo_node.rounds import error_feedback
from silo_node.rounds.error_feedback import ErrorFeedback, names

FIRST, SECOND, THIRD = ("sha256:" + digit * 64 for digit in "123")
TABLE = (TensorSpec("w", (5,)),)
OF = names("sha256:" + "a" * 64, TABLE)
OLD, NEW = np.arange(5, dtype="<f4"), np.arange(5, 10, dtype="<f4")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "feedback"


def owed(folder, model, of=OF, words=5):
    """What a silo that has just started takes."""
    found = ErrorFeedback(folder, "st-a", of).take(model, words)
    return None if found is None else found.tolist()


def ended_well(folder, round_id, model, values, following):
    feedback = ErrorFeedback(folder, "st-a", OF)
    feedback.sent(round_id, model, values)
    feedback.summed(round_id, following)


def test_nothing_is_owed_at_first(folder):
    assert owed(folder, FIRST) is None


def test_what_an_update_left_is_owed_once_its_sum_has_become_the_next_model(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    assert owed(folder, SECOND) == OLD.tolist()
    assert owed(folder, SECOND) == OLD.tolist()  # another attempt, or a crash before the words were journaled


def test_a_round_that_failed_leaves_what_was_owed_before(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    assert owed(folder, SECOND) == OLD.tolist()
    ErrorFeedback(folder, "st-a", OF).sent("st-a.2.1", SECOND, NEW)
    assert owed(folder, SECOND) == OLD.tolist()
    ended_well(folder, "st-a.3.1", SECOND, NEW, THIRD)  # a sum was published, but too few signed what follows
    assert owed(folder, SECOND) == OLD.tolist()


def test_a_round_that_left_the_update_out_leaves_what_was_owed_before(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    feedback = ErrorFeedback(folder, "st-a", OF)
    assert feedback.take(SECOND, 5) is not None
    feedback.sent("st-a.2.1", SECOND, NEW)
    feedback.left_out()
    assert owed(folder, THIRD) == OLD.tolist()


def test_a_silo_that_took_no_part_in_a_round_still_owes_what_it_owed(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    assert owed(folder, SECOND) == OLD.tolist()
    assert owed(folder, THIRD) == OLD.tolist()


def test_a_silo_that_missed_how_its_round_ended_sends_nothing_a_second_time(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    assert owed(folder, SECOND) == OLD.tolist()
    ErrorFeedback(folder, "st-a", OF).sent("st-a.2.1", SECOND, NEW)
    assert owed(folder, THIRD) is None
    assert list((folder / "st-a").iterdir()) == []


def test_the_note_of_another_round_does_not_count(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    ErrorFeedback(folder, "st-a", OF).sent("st-a.1.2", FIRST, NEW)
    assert owed(folder, SECOND) is None


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (names("sha256:" + "b" * 64, TABLE), 5),
        (names("sha256:" + "a" * 64, (TensorSpec("w", (6,)),)), 6),
        (names("sha256:" + "a" * 64, (TensorSpec("v", (5,)),)), 5),
        (OF, 6),
    ],
)
def test_with_another_manifest_or_table_nothing_is_owed_any_more(folder, of, words):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    assert owed(folder, SECOND, of, words) is None
    assert list((folder / "st-a").iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\x05{}", b"\xff\xff\xff\xff", b"\0\0\0\x02{}" + bytes(20)])
def test_a_damaged_file_is_as_none(folder, damage):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    owed(folder, SECOND)
    (folder / "st-a" / "kept.f32").write_bytes(damage)
    assert owed(folder, SECOND) is None


def test_a_damaged_note_is_as_none(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    (folder / "st-a" / "summed.json").write_bytes(b"{")
    assert owed(folder, SECOND) is None


def test_what_is_owed_can_be_read_by_nobody_else(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    paths = list((folder / "st-a").iterdir())
    assert len(paths) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_an_ended_study_is_forgotten_and_no_name_leads_out_of_the_folder(folder):
    ended_well(folder, "st-a.1.1", FIRST, OLD, SECOND)
    for name in ("..", ".", "st-b", "../feedback/st-a", ""):
        error_feedback.forget(folder, name)
        assert (folder / "st-a").is_dir()
    error_feedback.forget(folder, "st-a")
    assert folder.is_dir() and not (folder / "st-a").exists()
    error_feedback.forget(folder / "missing", "st-a")
