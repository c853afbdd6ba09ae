"""What the silo reads from its own folder is JSON of a sane depth, or a sentence that names the file."""

from __future__ import annotations

import pytest

from silo_node.errors import UsageError
from silo_node.files import read_json


def test_json_nested_too_deeply_is_a_sentence_that_names_the_file(tmp_path):
    path = tmp_path / "trust.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UsageError, match=r"trust\.json: its JSON is nested too deeply; restore it"):
        read_json(path)


def test_a_file_that_is_not_json_is_a_sentence_that_names_the_file(tmp_path):
    path = tmp_path / "trust.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"trust\.json: not JSON"):
        read_json(path)
