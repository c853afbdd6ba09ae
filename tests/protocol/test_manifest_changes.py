"""What changed between two versions of a study is all of it, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from protocol.canonical import decode
from protocol.manifest import freeze, parse_manifest
from protocol.manifest_changes import Changes, Rewording, changes
from tests.protocol.test_manifest import example


def between(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    before, after = freeze(old), freeze(new)
    return changes(
        parse_manifest(before), parse_manifest(after), decode(before, floats=True), decode(after, floats=True)
    )


def test_nothing_changed_is_said_as_such() -> None:
    assert between(example(), example()) == Changes("Nothing changed.", (), ())


def test_a_new_end_is_told_in_the_one_sentence_that_it_changes() -> None:
    new = example()
    new["dates"]["end"] = "2027-12-24"
    found = between(example(), new)
    assert found.summary == "Nothing changed but: Dates."
    (words,) = found.words
    assert words.label == "Duration" and len(words.gone) == len(words.new) == 1
    assert "to 24 December 2027" in words.new[0] and "24 December" not in words.gone[0]
    assert [(each.path, each.after) for each in found.fields] == [("dates.end", "2027-12-24")]


def test_a_field_that_the_words_do_not_mention_is_still_named() -> None:
    new = example()
    new["plan"]["optimiser"]["lr"] = 0.5
    found = between(example(), new)
    assert found.words == () and [each.path for each in found.fields] == ["plan.optimiser.lr"]
    assert found.summary == "Nothing changed but: Training."
    assert found.fields[0].after == "0.5"


def test_a_partner_who_left_is_removed_and_the_others_are_not_changed() -> None:
    new = copy.deepcopy(example())
    gone = new["participants"].pop()
    found = between(example(), new)
    paths = {each.path for each in found.fields}
    assert paths and all(path.startswith(f"participants.{gone['silo']}.") for path in paths)
    assert all(each.after is None and each.before is not None for each in found.fields)
    back = between(new, example())
    assert all(each.before is None for each in back.fields)
    assert {each.label for each in back.words} >= {"Partners"}


@pytest.mark.parametrize("text", ["", "One. Two.", "Really? Yes."])
def test_a_summary_is_compared_by_sentences(text: str) -> None:
    new = example()
    new["summary"] = f"{new['summary']} {text or 'More.'}"
    found = between(example(), new)
    assert found.words == (Rewording("Study", (), tuple(found.words[0].new)),) and found.words[0].new
