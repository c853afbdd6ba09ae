"""The ontology's terms and the pinned disease hierarchy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.canonical import digest, encode
from protocol.duo import OBLIGATIONS, PERMISSIONS, TERMS, ClosureError, load_closure, parse_closure


def text(terms: Any, *, stated: str | None = None, release: str = "r1") -> str:
    found = digest(encode({"release": release, "terms": terms}))
    return json.dumps({"release": release, "digest": stated or found, "terms": terms})


def test_the_terms_are_those_of_the_ontology() -> None:
    codes = {term.id[-2:]: term.code for term in TERMS.values()}
    assert codes == {
        "04": "NRES", "42": "GRU", "06": "HMB", "07": "DS", "11": "POA", "12": "RS", "15": "NMDS", "16": "GSO", "18": "NPUNCU",
        "19": "PUB", "20": "COL", "21": "IRB", "22": "GS", "24": "MOR", "25": "TS", "26": "US", "27": "PS", "28": "IS",
        "29": "RTN", "43": "CC", "44": "NPOA", "45": "NPU", "46": "NCU",
    }  # fmt: skip
    assert all(key == term.id for key, term in TERMS.items())
    assert set(TERMS) >= PERMISSIONS | OBLIGATIONS


def test_the_pinned_closure_is_whole_and_pinned() -> None:
    closure = load_closure()
    assert closure.digest == "sha256:9f114c3189d66a97ca8a743adb13560eaaeee58bba11d3c957f8b5830f01a244"
    assert closure.label("DOID:552") == "pneumonia (DOID:552)"
    assert closure.label("DOID:0") == "DOID:0"
    assert closure.ancestors["DOID:10155"] == ("DOID:3119", "DOID:0050686", "DOID:162", "DOID:14566", "DOID:4")
    assert closure.ancestors["DOID:4"] == ()


def test_every_disease_is_under_disease_and_the_hierarchy_is_closed() -> None:
    closure = load_closure()
    for disease, above in closure.ancestors.items():
        assert disease == "DOID:4" or "DOID:4" in above
        for other in above:
            assert set(closure.ancestors[other]) <= set(above)
            assert disease not in closure.ancestors[other]


def test_a_changed_closure_is_refused() -> None:
    with pytest.raises(ClosureError, match="it was changed"):
        parse_closure(text({"DOID:4": {"label": "disease", "ancestors": []}}, stated="sha256:" + "0" * 64))


@pytest.mark.parametrize(
    "terms",
    [
        {"DOID:1": {"label": "a", "ancestors": ["DOID:2"]}},
        {"DOID:1": {"label": "a", "ancestors": ["DOID:1"]}},
    ],
)
def test_a_closure_with_a_loose_end_is_refused(terms: Any) -> None:
    with pytest.raises(ClosureError, match="DOID:1: an ancestor"):
        parse_closure(text(terms))


@pytest.mark.parametrize("damaged", ["", "[]", "{}", text([]), text({"DOID:1": {"label": "a"}}), text({"DOID:1": 3})])
def test_what_is_no_closure_is_refused(damaged: str) -> None:
    with pytest.raises(ClosureError, match="not a disease closure"):
        parse_closure(damaged)
