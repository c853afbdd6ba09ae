"""The pages of docs/ say a thing once: a sentence that stands twice is changed in one place and then contradicts the other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LEAST = 50
"""Characters of a sentence that nobody writes twice by chance."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_stands_twice_in_a_page(page: Path) -> None:
    prose = "\n".join(line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("|"))
    sentences = re.split(r"(?<=[.;:]) ", re.sub(r"\s+", " ", prose))
    assert [said for said, times in Counter(sentences).items() if times > 1 and len(said) >= LEAST] == []


def test_each_file_of_a_silo_has_one_row_in_the_table_of_backups() -> None:
    rows = re.findall(
        r"^\| (`.+?) \|.*\| (?:yes.*|no) \|$", (ROOT / "docs" / "hospital-it.md").read_text("utf-8"), re.MULTILINE
    )
    names = Counter(name for row in rows for name in re.findall(r"`([^`]+)`", row))
    assert names and [name for name, times in names.items() if times > 1] == []
