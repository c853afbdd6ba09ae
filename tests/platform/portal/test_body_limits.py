"""A body that is too large is refused while it arrives, before Django keeps any of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from portal.limits import limit_body


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def _call(chunks: list[bytes], headers: list[tuple[bytes, bytes]] = ()) -> tuple[int, bytes, int]:
    """Status, body, and how many chunks were taken."""
    sent: list[Any] = []
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": chunks[taken - 1], "more_body": taken < len(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": "/", "headers": list(headers)}
    asyncio.run(limit_body(_echo)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], taken


def test_a_chunk_of_four_mebibytes_passes():
    assert _call([b"x" * 2**20] * 4) == (200, str(4 * 2**20).encode(), 4)


def test_an_announced_length_above_the_limit_is_refused_before_anything_is_read():
    status, body, taken = _call([b"x"], [(b"content-length", b"99999999999")])
    assert (status, taken) == (413, 0) and json.loads(body)["code"] == "TOO_LARGE"
    assert _call([b"x"], [(b"content-length", b"-1")])[0] == 413


def test_a_body_without_a_length_is_counted_and_cut_off():
    status, body, taken = _call([b"x" * 2**20] * 100)
    assert status == 413 and json.loads(body)["code"] == "TOO_LARGE"
    assert taken == 5
