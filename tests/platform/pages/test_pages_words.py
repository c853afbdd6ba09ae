"""What every page has in common: words for states, templates without ready-made markup, lists, numbers with units."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.template import Context, Template
from django.test import RequestFactory

from evidence.page_words import QUESTIONS, TYPE_WORDS
from evidence.records import TYPES
from federation.models import Stage
from governance.models import StudyState
from organisations.models import SiloState
from organisations.templatetags import consilium
from organisations.words import TONES, word_for
from portal.listing import Choice, csv_answer, listing

ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("study", StudyState.values),
        ("silo", SiloState.values),
        ("stage", Stage.values),
        ("match", ["PERMIT", "REVIEW", "DENY"]),
        ("decision", ["approve", "reject", "revoke"]),
        ("outcome", ["success", "denied", "failure"]),
    ],
)
def test_every_state_has_a_word_a_tone_and_a_sign_of_its_own(kind: str, values: list[str]):
    for value in values:
        word = word_for(kind, value)
        assert word.tone in TONES
        assert word.icon != "dot", f"{kind} {value} is not in the table"


def test_an_unknown_state_looks_neither_good_nor_bad():
    assert word_for("study", "sideways").tone == "wait"


def test_every_type_of_the_log_is_said_in_words():
    assert set(TYPE_WORDS) == TYPES


def test_the_auditors_sixteen_questions_stand_in_order():
    assert [each.number for each in QUESTIONS] == list(range(1, 17))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_marks_text_as_safe_or_holds_inline_code(path: Path):
    text = path.read_text()
    assert not re.search(r"\|\s*safe|autoescape\s+off|mark_safe", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=", text), (
        "the CSP refuses inline code"
    )
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", text), "every asset is served by the portal"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_table_head_says_what_it_is_the_head_of(path: Path):
    assert not re.search(r"<th(?![^>]*scope=)[\s>]", path.read_text())


def test_a_time_is_served_in_utc_with_utc_on_hover():
    at = datetime(2026, 11, 23, 10, 5, 7, tzinfo=UTC)
    html = Template("{% load consilium %}{% moment at %}").render(Context({"at": at}))
    assert 'datetime="2026-11-23T10:05:07Z"' in html
    assert 'title="2026-11-23 10:05:07 UTC"' in html
    assert "23 Nov 2026, 10:05 UTC" in html


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (387_000, "387 kB"), (4_200_000_000, "4.2 GB")],
)
def test_bytes_have_a_unit(value: int, shown: str):
    assert consilium.in_bytes(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(5.13, "5.1 s"), (75, "1 min 15 s"), (4000, "1 h 6 min"), (None, "–")])
def test_seconds_have_a_unit(value: float | None, shown: str):
    assert consilium.seconds(value) == shown


def test_a_list_orders_only_by_what_its_page_shows(rf: RequestFactory):
    rows = [{"name": "b"}, {"name": "a"}]
    found = listing(
        rf.get("/x", {"sort": "-password", "state": "nonsense"}),
        rows,
        sorts={"name": lambda row: row["name"]},
        default="name",
        filters=(Choice("state", "State", (("on", "on"),), lambda rows, value: []),),
    )
    assert [row["name"] for row in found.page] == ["a", "b"]
    assert found.query == {}
    assert found.href(sort="-name") == "/x?sort=-name"


def test_an_export_cannot_run_as_a_formula():
    body = b"".join(csv_answer("x.csv", ("title",), [("=HYPERLINK(1)",), ("plain",), (-1,)])).decode()
    assert body.splitlines() == ["title", "'=HYPERLINK(1)", "plain", "-1"]
