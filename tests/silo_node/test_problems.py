"""The catalogue of what to do: complete, and never empty words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from silo_node.health import problems

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*")
RAISES = re.compile(r"(?:.*(?:Error|Violation|Refused|Unreachable|Full)|StudyPaused|_keep|refused|Pause|Problem)")
NOT_CODES = {"DENY", "LABELS", "OPT_OUT"}
"""Words in capitals that are arguments beside a code."""


def called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def texts(nodes):
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def codes_of(tree: ast.AST) -> set[str]:
    """Codes that a module gives to errors: as an argument, as `super().__init__(code`, or as {"code": ...}."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (RAISES.fullmatch(called(node)) or called(node) == "__init__"):
            found += texts([*node.args, *(each.value for each in node.keywords if each.arg == "code")])
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            found += texts(value for key, value in zip(keys, node.values, strict=True) if key == "code")
    return {text for text in found if CODE.fullmatch(text) and len(text) > 3} - NOT_CODES


def modules():
    for folder in ("silo_node", "protocol"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            # What decides about other people's logs and keys, and never runs in a silo.
            if "transparency" not in path.parts:
                yield path


def test_every_code_that_a_silo_can_raise_says_what_to_do():
    missing = {
        code: path.name
        for path in modules()
        for code in codes_of(ast.parse(path.read_text(encoding="utf-8")))
        if code not in problems.WHAT_TO_DO
    }
    assert missing == {}


def test_every_reason_of_a_file_in_the_index_says_what_to_do():
    from silo_node.imaging.index import PROBLEMS

    assert set(PROBLEMS) - set(problems.WHAT_TO_DO) == set()


def test_the_walk_over_the_code_finds_codes_where_they_are_raised():
    """Otherwise the test above would promise nothing."""
    found = codes_of(ast.parse('raise Refused("NEW_CODE", "x")\nrun.write({"ok": False, "code": "OTHER_CODE"})'))
    assert found == {"NEW_CODE", "OTHER_CODE"}
    everything = set().union(*(codes_of(ast.parse(path.read_text(encoding="utf-8"))) for path in modules()))
    assert {
        "CLOCK_SKEW",
        "PROXY_REFUSES",
        "APPROVAL_EXPIRED",
        "LOG_FORKED",
        "TRAINING_KILLED",
        "POLICY_EXPIRED",
    } <= everything


@pytest.mark.parametrize("code", sorted(problems.WHAT_TO_DO))
def test_what_to_do_is_a_sentence_and_stands_once(code):
    do = problems.WHAT_TO_DO[code]
    assert do.endswith(".") and len(do) > 20
    assert sum(code in codes for _, codes in problems._ENTRIES) == 1


def test_a_code_of_somebody_elses_leads_to_the_networks_admin():
    assert problems.what_to_do("NOT_YOUR_STUDY") == problems.NETWORK_ADMIN
