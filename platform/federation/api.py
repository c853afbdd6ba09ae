"""The node API for rounds and models, apart from HTTP: who asks (a silo that proved it), what for, and the answer.

`api_views.py` (Django) and `node_app.py` (plain ASGI, the fast way) both call `answer_for`, so the rules stand once.

    POST rounds/{id}/refusal|keys|row|bundles|ready|update|list|sketch|second|unmask|nonce|check|state|metrics|heartbeat
                                       a signed envelope
    GET  rounds/{id}/entries?set=ready|list&silos=a,b   with many silos: {"leaves": [..]}, proved entries of a set
    GET  rounds/{id}/update            {"chunks": [k, ...]}: the pieces that are stored
    PUT  rounds/{id}/update/{k}        piece k, raw
    GET  rounds/{id}/sum?chunk=k       piece k of the published sum, raw little-endian words; the last is the tail
    GET  models/{digest}?chunk=k       piece k (4 MiB) of a model, or all of it without `chunk`
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from federation.models import SumChunk
from federation.selectors.many import entries_for
from federation.services.chunks import chunk_file, chunk_place, chunk_receive, chunks_present
from federation.services.errors import Refused, not_yours
from federation.services.facts import parameters_of
from federation.services.liveness import heartbeat_receive
from federation.services.lookup import round_for
from federation.services.messages import KINDS, message_receive
from federation.services.models import PIECE, model_for
from federation.storage import SUM, chunk_path
from organisations.models import Silo
from portal.answers import read_json

ENVELOPE_LIMIT = 4 << 20
"""Bytes of the largest envelope: the table of a very deep network, or the bundles of a large roster."""
WHOLE_LIMIT = 64 << 20
"""Bytes of the largest model that is sent in one answer; a larger one is asked for in pieces."""

_ROUTES = re.compile(
    r"/api/v1/(?:rounds/(?P<key>[a-z0-9-]{1,64}\.[0-9]{1,9}\.[0-9]{1,9})/"
    r"(?:(?P<kind>[a-z]{3,9})|update/(?P<index>[0-9]{1,6}))"
    r"|models/(?P<digest>(?:sha256:)?[0-9a-f]{64}))"
)


@dataclass(frozen=True)
class Answer:
    """What goes back: 200 with a body; refusals are raised. `sha256`: of the body, where it is known already."""

    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    sha256: bytes | None = None


def is_upload(method: str, path: str) -> bool:
    """Whether this is a piece of an update: the one request with a large body."""
    match = _ROUTES.fullmatch(path)
    return method == "PUT" and match is not None and match["index"] is not None


def answer_for(
    *, silo: Silo, method: str, path: str, query: str, body: bytes, body_sha256: bytes | None = None
) -> Answer:
    """Answer one request of a silo. `path`: percent-decoded; `query`: without "?"; `body_sha256`: where it is known.

    Raises Refused: NOT_FOUND, METHOD, and what the services raise.
    """
    match = _ROUTES.fullmatch(path)
    if match is None:
        raise Refused("NOT_FOUND", "There is nothing at this address.")
    if match["digest"]:
        _allow(method, "GET")
        return _model(silo, match["digest"], _chunk(query))
    key = match["key"]
    if match["index"]:
        _allow(method, "PUT")
        return _upload(silo, key, int(match["index"]), body, body_sha256)
    kind = match["kind"]
    if kind == "sum":
        _allow(method, "GET")
        return _sum(silo, key, _chunk(query))
    if kind == "entries":
        _allow(method, "GET")
        return _entries(silo, key, query)
    if kind == "update" and method == "GET":
        return _json({"chunks": chunks_present(round_key=key, silo=silo)})
    if kind not in KINDS and kind != "heartbeat":
        raise Refused("NOT_FOUND", "There is nothing at this address.")
    _allow(method, "POST")
    envelope = read_json(body, limit=ENVELOPE_LIMIT)
    if kind == "heartbeat":
        return _json({"stage": heartbeat_receive(round_key=key, silo=silo, envelope=envelope)})
    reception = message_receive(round_key=key, kind=kind, silo=silo, envelope=envelope)
    return _json({"stage": str(reception.stage), "new": reception.new})


def _upload(silo: Silo, key: str, index: int, body: bytes, sha256: bytes | None) -> Answer:
    place = chunk_place(round_key=key, silo=silo, index=index)
    with chunk_file(place=place, silo=silo, index=index) as file:
        file.write(body, sha256=sha256)
        new = chunk_receive(place=place, silo=silo, index=index, file=file)
    return _json({"chunk": index, "digest": file.digest, "new": new})


def _entries(silo: Silo, key: str, query: str) -> Answer:
    asked = parse_qs(query)
    names = [name for name in asked.get("silos", [""])[0].split(",") if name]
    return _json({"leaves": entries_for(round_key=key, silo=silo, what=asked.get("set", [""])[0], names=names)})


def _sum(silo: Silo, key: str, chunk: int | None) -> Answer:
    item = round_for(key, silo)
    if item.sum is None:
        raise Refused("OUT_OF_STAGE", f"The sum of round {key} is not published; ask for assignments.")
    parameters = parameters_of(item)
    index = chunk or 0
    if index >= parameters.chunk_count:
        raise Refused("NOT_FOUND", f"The sum of round {key} has the pieces 0 to {parameters.chunk_count - 1}.")
    digest = SumChunk.objects.filter(round=item, index=index).values_list("digest", flat=True)[:1]
    try:
        sha256 = bytes.fromhex(digest[0].removeprefix("sha256:"))
        piece = chunk_path(key, SUM, index).read_bytes()
    except (IndexError, FileNotFoundError):
        # The next round is over: whoever was that slow fetches the next model instead.
        raise not_yours(f"The sum of round {key}") from None
    # Hashed when it was made; a silo that gets other bytes notices by this digest, which the answer's signature covers.
    return Answer(piece, "application/octet-stream", {"X-Chunks": str(parameters.chunk_count)}, sha256)


def _model(silo: Silo, digest: str, chunk: int | None) -> Answer:
    path, size = model_for(digest=digest, silo=silo)
    count = -(-size // PIECE)
    headers = {"X-Chunks": str(count), "X-Size": str(size)}
    if chunk is None and size > WHOLE_LIMIT:
        raise Refused("TOO_LARGE", f"This model has {size} bytes; ask for its {count} pieces with ?chunk=0 and so on.")
    if chunk is not None and chunk >= count:
        raise Refused("NOT_FOUND", f"This model has the pieces 0 to {count - 1}.")
    with path.open("rb") as file:
        file.seek((chunk or 0) * PIECE)
        body = file.read(-1 if chunk is None else PIECE)
    return Answer(body, "application/octet-stream", headers)


def _chunk(query: str) -> int | None:
    text = parse_qs(query).get("chunk", [None])[-1]
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise Refused("BAD_REQUEST", "chunk is a whole number from 0 on.")
    return int(text)


def _allow(method: str, wanted: str) -> None:
    if method != wanted:
        raise Refused("METHOD", f"This address takes {wanted}.")


def _json(value: dict[str, Any]) -> Answer:
    return Answer(json.dumps(value).encode())
