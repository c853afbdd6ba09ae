"""The node API as plain ASGI: what the critical path of a round costs is mostly what stands around it.

The blocking part of a request (database, signature) runs in a few threads of this module, each with a database
connection of its own that it keeps; a request that waits holds neither a thread nor a connection. Large bodies are read
only by as many requests at once as there are threads, so memory does not grow with the number of silos.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog
from django.conf import settings
from django.db import DatabaseError, connection

from federation.api import ENVELOPE_LIMIT, Answer, answer_for, is_upload
from portal import problems
from portal.answers import answer_headers, authenticate
from portal.problems import Refused

log = structlog.get_logger(__name__)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")

THREADS = 2
_CONNECTION_SECONDS = 300.0
_pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="node")
_bodies = asyncio.Semaphore(THREADS)
_pieces = asyncio.Semaphore(2 * THREADS)
SLICE = 2**18
"""Bytes handed to the server at once, so that it never holds a whole piece for a silo that reads slowly."""
_turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
"""Silo -> its turn: of each silo one body at a time is read, so that a slow one leaves places to the others."""


class Gone(Exception):
    """The asker left before its request was whole, or before its answer."""


@dataclass(frozen=True)
class Asked:
    """A request as it stood on the wire. path: percent-decoded; raw_path and query: as sent; headers: lower case."""

    method: str
    path: str
    raw_path: str
    query: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, scope: Scope) -> Asked:
        """The request of an ASGI scope."""
        raw = scope.get("raw_path") or scope["path"].encode()
        return cls(
            method=scope["method"],
            path=scope["path"],
            raw_path=raw.split(b"?")[0].decode("latin-1"),
            query=scope.get("query_string", b"").decode("latin-1"),
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
        )


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request below rounds/ or models/."""
    asked = Asked.of(scope)
    try:
        if is_upload(asked.method, asked.path):
            answer = await _upload(asked, receive)
        elif asked.method == "GET":
            # A piece of a sum or model lies in memory until it is sent: however many silos ask, only a few at a time.
            await read_body(receive, ENVELOPE_LIMIT)
            async with _pieces:
                found = await blocking(_answer, asked, b"")
                try:
                    async with asyncio.timeout(settings.BODY_SECONDS):  # a reader that stands still gives its place up
                        await send_answer(asked, found, send)
                except TimeoutError:
                    log.warning("node.answer_too_slow", path=asked.path)
            return
        else:
            body = await read_body(receive, ENVELOPE_LIMIT)
            answer = await blocking(_answer, asked, body)
    except Refused as refused:
        await send_refusal(asked, refused, send)
    except Gone:
        return
    else:
        await send_answer(asked, answer, send)


def _answer(asked: Asked, body: bytes) -> Answer:
    silo = authenticate(method=asked.method, path=asked.raw_path, query=asked.query, headers=asked.headers, body=body)
    return answer_for(silo=silo, method=asked.method, path=asked.path, query=asked.query, body=body)


async def _upload(asked: Asked, receive: Receive) -> Answer:
    """A piece of an update. The signature covers the body's digest, so who sends is known before the body is read."""
    claimed = claimed_sha256(asked.headers)
    silo = await blocking(
        lambda: authenticate(
            method=asked.method,
            path=asked.raw_path,
            query=asked.query,
            headers=asked.headers,
            body_sha256=claimed,
        )
    )

    def keep(body: bytes) -> Answer:
        if hashlib.sha256(body).digest() != claimed:
            raise Refused("BAD_SIGNATURE", "Content-Digest is not the SHA-256 of the body; send the piece again.")
        return answer_for(
            silo=silo,
            method=asked.method,
            path=asked.path,
            query=asked.query,
            body=body,
            body_sha256=claimed,
        )

    async with _turns.setdefault(silo.name, asyncio.Lock()), _bodies:
        return await blocking(keep, await read_body(receive, settings.CHUNK_BYTES))


def claimed_sha256(headers: Mapping[str, str]) -> bytes:
    """The SHA-256 that Content-Digest names. Raises Refused (BAD_SIGNATURE)."""
    text = headers.get("content-digest", "")
    try:
        found = base64.b64decode(text.removeprefix("sha-256=:").removesuffix(":"), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != 32:
        raise Refused("BAD_SIGNATURE", "Content-Digest must be sha-256=:<base64>:")
    return found


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body. Raises Refused (TOO_LARGE); Gone where the asker left."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise Refused("TOO_LARGE", f"A body here may have at most {limit} bytes.")
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def blocking(function: Callable[..., T], *args: Any) -> T:
    """Run a function that uses the database in one of this module's threads.

    Raises Refused; what the function did not foresee is logged and becomes Refused (INTERNAL).
    """
    return await asyncio.get_running_loop().run_in_executor(_pool, _with_connection, function, args)


def _with_connection(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    """The thread's connection is kept for a while, and never after an error that may have broken it."""
    opened = getattr(connection, "node_opened", 0.0)
    if connection.connection is None or time.monotonic() - opened > _CONNECTION_SECONDS:
        connection.close()
        connection.node_opened = time.monotonic()  # type: ignore[attr-defined]
    try:
        return function(*args)
    except Refused:
        raise
    except Exception as error:
        log.exception("node.failed")
        if isinstance(error, DatabaseError):
            connection.close()
        raise Refused("INTERNAL", "The portal could not answer. The reason is in its log; try again later.") from error


async def send_answer(asked: Asked, answer: Answer, send: Send) -> None:
    """Send a signed answer."""
    headers = {"Content-Type": answer.content_type, **answer.headers}
    await _send(asked, 200, answer.body, headers, send, sha256=answer.sha256)


async def send_refusal(asked: Asked, refused: Refused, send: Send) -> None:
    """Send a refusal as a signed problem document."""
    status, body = problems.document(code=refused.code, detail=refused.sentence, status=refused.status)
    await _send(asked, status, body, {"Content-Type": problems.PROBLEM_TYPE}, send)


async def _send(
    asked: Asked, status: int, body: bytes, headers: Mapping[str, str], send: Send, *, sha256: bytes | None = None
) -> None:
    signed = answer_headers(
        status=status,
        body=b"" if sha256 else body,
        body_sha256=sha256,
        request_headers=asked.headers,
        method=asked.method,
        path=asked.raw_path,
        query=asked.query,
    )
    every = {**headers, **signed, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    for start in range(0, len(body) - SLICE, SLICE):
        await send({"type": "http.response.body", "body": body[start : start + SLICE], "more_body": True})
    await send({"type": "http.response.body", "body": body[max(0, (len(body) - 1) // SLICE * SLICE) :]})
