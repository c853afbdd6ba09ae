"""GET /api/v1/openapi.json: the node API as an OpenAPI 3.1 document.

Addresses, methods and parameters are read from the resolver, so they are those that are served; what each is for stands
in a table (api_words.py), its bodies in api_schemas.py. An address without words, or words without an address, is an
error: `document` raises it, and a test calls that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, URLResolver, get_resolver
from django.views.decorators.http import require_safe

from portal.access import public
from portal.api_schemas import SCHEMAS
from portal.api_words import ALWAYS, OPERATIONS, SIGNED, STATUS, Operation
from portal.problems import PROBLEM_TYPE, TITLES

PREFIX = "api/v1/"
_PARAMETER = re.compile(r"<(?:(\w+):)?(\w+)>")
_KINDS = {"int": {"type": "integer", "minimum": 0}, "str": {"type": "string"}, "path": {"type": "string"}}
_WORDS = {
    "study": "Id of a study.",
    "round": "Name of a round: {study}.{number}.{attempt}.",
    "index": "Number of the piece, from 0 on.",
    "digest": "Digest of the model: 64 hex digits, with or without sha256: before.",
    "rest": "Level and number of the tile as in C2SP tlog-tiles, such as 0/x001/067 or entries/000.p/17.",
}


_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "signed": [{"siloSignature": []}],
    "enrols": [{"siloSignature": []}],
    "either": [{}, {"siloSignature": []}],
    "public": [],
}


class Incomplete(Exception):
    """The table of words and the addresses that are served differ. The message lists how."""


@dataclass(frozen=True)
class Route:
    """One pattern below /api/v1/. parts: its segments; parameters: name -> JSON schema; methods: that it takes."""

    parts: tuple[str, ...]
    parameters: dict[str, dict[str, Any]]
    methods: tuple[str, ...]

    def serves(self, path: str) -> bool:
        """Whether a path of the table is this route's. A word may stand where the route has a parameter for words."""
        parts = path.strip("/").split("/")
        if len(parts) != len(self.parts):
            return False
        return all(
            mine == theirs or (mine == "{kind}" and not theirs.startswith("{"))
            for mine, theirs in zip(self.parts, parts, strict=True)
        )


@require_safe
@public
def openapi(request: HttpRequest) -> JsonResponse:
    """The description, for everybody."""
    return JsonResponse(_kept())


openapi.node_methods = ("GET", "HEAD")


@lru_cache(maxsize=1)
def _kept() -> dict[str, Any]:
    return document()


def document() -> dict[str, Any]:
    """The OpenAPI document. Raises Incomplete."""
    served = list(routes())
    paths: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    described: set[tuple[tuple[str, ...], str]] = set()
    for (method, path), words in sorted(OPERATIONS.items(), key=lambda item: item[0][::-1]):
        exact = [route for route in served if "/".join(route.parts) == path.strip("/")]
        route = next(iter(exact + [route for route in served if route.serves(path)]), None)
        if route is None or method not in route.methods:
            wrong.append(f"{method} {path} is described and not served")
            continue
        described.add((route.parts, method))
        operations = paths.setdefault(f"/{PREFIX}{path.strip('/')}", {})
        operations[method.lower()] = _operation(method, path, words, route)
        if method == "GET" and "HEAD" in route.methods:
            described.add((route.parts, "HEAD"))
            operations["head"] = _operation("HEAD", path, words, route)
    wrong += [
        f"{method} /{'/'.join(route.parts)} is served and not described"
        for route in served
        for method in route.methods
        if (route.parts, method) not in described
    ]
    if wrong:
        raise Incomplete("; ".join(wrong))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Consilium node API",
            "version": "1",
            "description": (
                "What a hospital's silo asks of the portal. Every request is signed by the silo and every answer by the "
                "portal, bound to its request; refusals are problem documents (RFC 9457) with a code."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"siloSignature": SIGNED}},
    }


def routes(resolver: URLResolver | None = None, before: str = "") -> Iterator[Route]:
    """Everything that the resolver serves below /api/v1/. A view without `node_methods` is served by no method."""
    for item in (resolver or get_resolver()).url_patterns:
        text = before + str(item.pattern)
        if isinstance(item, URLResolver):
            yield from routes(item, text)
        elif isinstance(item, URLPattern) and text.startswith(PREFIX):
            yield _route(text.removeprefix(PREFIX), getattr(item.callback, "node_methods", ()))


def _route(text: str, methods: tuple[str, ...]) -> Route:
    parameters = {name: _KINDS[kind or "str"] for kind, name in _PARAMETER.findall(text)}
    return Route(tuple(_PARAMETER.sub(r"{\2}", text).split("/")), parameters, methods or ("UNDECLARED",))


def _operation(method: str, path: str, words: Operation, route: Route) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{method.lower()}_{path}").strip("_")
    found: dict[str, Any] = {
        "operationId": name,
        "summary": words.summary if method != "HEAD" else f"{words.summary} Headers only.",
        "tags": [path.strip("/").split("/")[0].split(".")[0]],
        "parameters": _parameters(path, words, route),
        "responses": {"200": _answer(words, head=method == "HEAD")} | _refusals(words),
        "security": _SECURITY[words.access],
    }
    if words.description:
        found["description"] = words.description
    if words.body is not None:
        found["requestBody"] = {"required": True, "content": {words.body_type: {"schema": _schema(words.body)}}}
    return found


def _parameters(path: str, words: Operation, route: Route) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "description": _WORDS[name], "schema": schema}
        for name, schema in route.parameters.items()
        if f"{{{name}}}" in path
    ]
    for name, (schema, sentence) in words.query.items():
        found.append({"name": name, "in": "query", "required": False, "description": sentence, "schema": schema})
    return found


def _answer(words: Operation, *, head: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"description": words.answers}
    if words.answer is not None and not head:
        found["content"] = {words.answer_type: {"schema": _schema(words.answer)}}
    if words.headers:
        found["headers"] = {
            name: {"description": sentence, "schema": {"type": "string"}} for name, sentence in words.headers.items()
        }
    return found


def _refusals(words: Operation) -> dict[str, Any]:
    """Status -> problem document with the codes that this operation has for it."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*words.problems, *ALWAYS[words.access])):
        status = TITLES[code][0] if code in TITLES else STATUS[code]
        by_status.setdefault(status, []).append(code)
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(codes)}",
            "content": {
                PROBLEM_TYPE: {
                    "schema": {"allOf": [_schema("Problem"), {"properties": {"code": {"enum": codes}}}]},
                }
            },
        }
        for status, codes in sorted(by_status.items())
    }


def _schema(name: str | dict[str, Any]) -> dict[str, Any]:
    return name if isinstance(name, dict) else {"$ref": f"#/components/schemas/{name}"}
