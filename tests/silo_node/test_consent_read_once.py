"""What was checked is what is kept, logged and decided on, whatever the same name leads to a moment later."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from protocol.canonical import digest
from silo_node import opt_out_registry
from silo_node.commands.consent import app
from silo_node.consent import fhir_json, registry, sources
from tests.silo_node.consent.fhir_examples import consent, gics
from tests.silo_node.test_status_sources import fhir  # noqa: F401

LIST = "PatientID,date\nPAT-0001,2026-01-01\n"
_when: dict[str, Callable[[], Any]] = {}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _when and isinstance(args[0], str | os.PathLike):
        act = _when.pop(os.fspath(args[0]), None)
        if act is not None:
            act()


sys.addaudithook(_hook)  # for good: an audit hook cannot be taken away


@pytest.fixture
def before_opening() -> Iterator[Callable[[Path, Callable[[], Any]], None]]:
    """Something that somebody does at the very moment before this process opens a path, once."""
    yield lambda path, act: _when.update({str(path): act})
    _when.clear()


def test_the_opt_out_list_that_is_kept_is_the_one_that_was_checked(silo, before_opening):
    path, kept = silo.folder / "opt_out.csv", silo.config.consent_kept_list
    for content in (LIST, LIST + "PAT-0002,2026-01-01\n"):
        path.write_text(content)
        for place in (kept.parent, kept):
            before_opening(place, lambda: path.write_text("damaged"))
        found = opt_out_registry.load(silo.config, datetime.now(UTC))
        assert kept.read_text() == content
        assert found.digest == "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def test_the_list_that_is_imported_is_the_one_that_was_checked(silo, tmp_path, before_opening):
    path = tmp_path / "list.csv"
    path.write_text(LIST)
    (silo.folder / "opt_out.csv").write_text("PatientID,date\n")
    before_opening(silo.folder / "opt_out.csv", lambda: path.write_text("damaged"))
    done = CliRunner().invoke(app, ["import", str(path), "--folder", str(silo.folder)])
    assert done.exit_code == 0, done.output
    assert (silo.folder / "opt_out.csv").read_text() == LIST and path.read_text() == "damaged"


def test_the_digest_of_a_round_is_of_the_reading_that_decided(silo, fhir):  # noqa: F811
    """Another reading of the silo's, which began later, ends first and is kept."""
    inner = []
    path = next(iter(fhir.pages))

    class Meanwhile(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: str) -> Any:
            before = super().__getitem__(key)
            if "no" not in self:
                self["no"] = True
                self[path] = ([consent(gics("deny"), "1")], None)
                inner.append(registry.load(silo.config, datetime.now(UTC), True))
            return before

    fhir.pages = Meanwhile(fhir.pages)
    outer = registry.load(silo.config, datetime.now(UTC), True)
    assert (outer.decide("1").code, inner[0].decide("1").code) == ("PERMITTED", "DENIED")
    assert inner[0].digest == digest(silo.config.consent_kept.read_bytes()) != outer.digest
    again = registry.load(silo.config, datetime.now(UTC), True)
    assert again.digest == inner[0].digest


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_comes_after_the_look_is_not_followed(tmp_path, before_opening, what):
    place, outside = tmp_path / "consents" / "of", tmp_path / "outside"
    for folder, kind in ((place, "deny"), (outside, "permit")):
        folder.mkdir(parents=True)
        (folder / "a.json").write_text(json.dumps(consent(gics(kind))))
    changed, to = (place / "a.json", outside / "a.json") if what == "file" else (place, outside)

    def exchange() -> None:
        changed.rename(tmp_path / "away")
        changed.symlink_to(to)

    before_opening(place / "a.json", exchange)
    found = sources.read(tmp_path / "consents")
    assert (tmp_path / "away").exists() and found.consents == []
    assert [problem.what for problem in found.problems] == [
        "is a link that leads out of the folder: put the file itself there"
    ]


def test_what_is_no_file_is_never_waited_for(tmp_path, before_opening):
    path = tmp_path / "consents" / "a.json"
    path.parent.mkdir()
    path.write_text("{}")

    def exchange() -> None:
        path.unlink()
        os.mkfifo(path)

    before_opening(path, exchange)
    assert [problem.what for problem in sources.read(path.parent).problems] == ["is no file"]


def test_what_the_silo_keeps_may_be_larger_than_one_file_of_others(tmp_path, monkeypatch):
    found = sources.Found(consents=[consent(gics(), str(number)) for number in range(9)])
    path = tmp_path / "imported.json"
    path.write_bytes(found.packed())
    monkeypatch.setattr(fhir_json, "MAX_BYTES", 1000)
    for again in (sources.kept(found.packed()), sources.read(path, ours=True)):
        assert sources.whole(again).packed() == found.packed()
    assert sources.read(path).problems
