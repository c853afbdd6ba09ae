"""The API's description is complete and true: every address is described, nothing is described that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import include, path

from federation.services.messages import KINDS
from portal import api_words, openapi
from portal.answers import node_view
from portal.problems import TITLES
from protocol import messages
from protocol.secure_aggregation.sparse.messages import SPARSE

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = openapi.document()

# The portal with one address of the node API more, which nobody described.
urlpatterns = [
    path("api/v1/silo/new/<str:study>", node_view("GET", "PUT")(lambda request: {})),
    path("", include("portal.urls")),
]


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, each) for path, methods in DOCUMENT["paths"].items() for method, each in methods.items()]


def test_every_address_of_the_node_api_is_described():
    served = {route.parts for route in openapi.routes()}
    described = {tuple(path.removeprefix("/api/v1/").split("/")) for path in DOCUMENT["paths"]}
    kinds = {parts for parts in described if ("rounds", "{round}", "{kind}") in served and len(parts) == 3} - served
    assert {parts[:2] for parts in kinds} == {("rounds", "{round}")}
    assert described - kinds == served - {("rounds", "{round}", "{kind}")}
    assert len(served) > 10 and len(kinds) > 10


@pytest.mark.urls(__name__)
def test_an_address_without_words_is_found():
    with pytest.raises(openapi.Incomplete) as found:
        openapi.document()
    assert str(found.value) == (
        "GET /silo/new/{study} is served and not described; PUT /silo/new/{study} is served and not described"
    )


@pytest.mark.parametrize("key", sorted(api_words.OPERATIONS))
def test_words_that_are_taken_away_are_missed(monkeypatch: pytest.MonkeyPatch, key: tuple[str, str]):
    kept = {each: words for each, words in api_words.OPERATIONS.items() if each != key}
    monkeypatch.setattr(openapi, "OPERATIONS", kept)
    if key[1].startswith("/rounds/{round}/") and "{index}" not in key[1]:
        openapi.document()  # one address takes all kinds of messages: the test of the kinds misses it
        return
    with pytest.raises(openapi.Incomplete, match="served and not described"):
        openapi.document()


@pytest.mark.parametrize("key", [("GET", "/silo/nothing"), ("DELETE", "/silo/policy"), ("PUT", "/rounds/{round}/keys")])
def test_words_without_an_address_are_found(monkeypatch: pytest.MonkeyPatch, key: tuple[str, str]):
    words = api_words.Operation("Nothing.", "Nothing.")
    monkeypatch.setattr(openapi, "OPERATIONS", {**api_words.OPERATIONS, key: words})
    with pytest.raises(openapi.Incomplete, match=re.escape(f"{key[0]} {key[1]} is described and not served")):
        openapi.document()


def test_every_kind_of_a_rounds_messages_is_described():
    found = {method: set() for method in ("GET", "POST", "PUT")}
    for method, address in api_words.OPERATIONS:
        parts = address.strip("/").split("/")
        if parts[0] == "rounds" and len(parts) == 3:
            found[method].add(parts[2])
    assert found == {"POST": KINDS | {"heartbeat"}, "GET": {"update", "sum", "entries"}, "PUT": set()}


@pytest.mark.parametrize("kind", sorted(KINDS | {"heartbeat"}))
def test_a_messages_members_are_those_of_its_class(kind: str):
    from dataclasses import fields

    words = api_words.OPERATIONS["POST", f"/rounds/{{round}}/{kind}"].description
    said = set(re.findall(r"`(\w+)`", words)) - {"schema"}
    # Only with many silos; of the other kinds the form for few stands there, and where to find that for many.
    assert said == {field.name for field in fields(messages.KINDS.get(kind) or SPARSE[kind])}


def test_every_reference_leads_to_a_schema_and_every_schema_is_used():
    text = json.dumps(DOCUMENT)
    used = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert used == set(DOCUMENT["components"]["schemas"])


def test_every_operation_has_a_name_of_its_own_words_and_its_problems():
    names = [each["operationId"] for _, _, each in _operations()]
    assert len(set(names)) == len(names)
    for method, address, each in _operations():
        assert each["summary"].endswith("."), address
        assert any(status >= "400" for status in each["responses"]), address
        declared = {item["name"] for item in each["parameters"] if item["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", address)), address
        assert ("requestBody" in each) == (method in ("post", "put")), address


def test_every_problem_code_is_one_that_the_portal_gives():
    source = "".join(path.read_text() for folder in ("platform", "protocol") for path in (ROOT / folder).rglob("*.py")
                     if path.name != "api_words.py")  # fmt: skip
    for words in api_words.OPERATIONS.values():
        for code in words.problems:
            assert f'"{code}"' in source, code
            assert code in TITLES or code in api_words.STATUS, f"{code} has no status"
    assert not set(api_words.STATUS) & set(TITLES)


def test_no_other_method_is_taken_than_those_described(db: None):
    made_up = {"study": "st-x", "round": "st-x.1.1", "index": "0", "digest": "0" * 64, "rest": "0/000"}
    for address, methods in DOCUMENT["paths"].items():
        if re.fullmatch(r"/api/v1/rounds/{round}/\w+", address):
            continue  # one address; its methods are those of all kinds together
        for method in {"get", "post", "put", "patch", "delete"} - set(methods):
            assert Client().generic(method.upper(), address.format(**made_up)).status_code == 405, f"{method} {address}"


def test_the_description_is_served_to_everybody(db: None):
    answer = Client().get("/api/v1/openapi.json")
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(DOCUMENT))
    assert Client().head("/api/v1/openapi.json").status_code == 200


def test_a_silo_gets_it_signed_like_every_answer(make_hospital: Any):
    hospital = make_hospital("site-1")
    assert hospital.node.send("GET", "/api/v1/openapi.json").status_code == 200
