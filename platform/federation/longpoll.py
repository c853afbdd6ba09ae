"""GET /api/v1/silo/assignments?wait=25&after=<version>: what a silo has to do, answered when there is something new.

A waiting silo costs a coroutine: while it waits it holds no thread and no database connection. It is woken by what a
commit publishes (wake.py), reads again, and waits on where nothing changed for it. When `wait` seconds are over, or the
portal's broker is away, it gets the list as it is.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs

from federation.api import Answer
from federation.node_app import Asked, Gone, Receive, Scope, Send, blocking, read_body, send_answer, send_refusal
from federation.selectors.assignments import assignments_answer
from federation.wake import Hub, hub
from portal.answers import authenticate
from portal.problems import Refused

LONGEST = 55.0
"""Seconds; below what proxies usually allow."""


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one long poll."""
    asked = Asked.of(scope)
    try:
        body = await read_body(receive, 0)
        answer = await _poll(asked, body, receive)
    except Refused as refused:
        await send_refusal(asked, refused, send)
    except Gone:
        return
    else:
        await send_answer(asked, Answer(answer), send)


async def _poll(asked: Asked, body: bytes, receive: Receive) -> bytes:
    wait, after = _arguments(asked.query)
    loop = asyncio.get_running_loop()
    end = loop.time() + wait
    news = hub()
    await news.start()
    silo, read = await blocking(_first, asked, body, news, after)
    seen, version, answer = read
    if answer is not None:
        news.note(silo.name, seen, version)
    gone = asyncio.ensure_future(_left(receive))
    try:
        while version == after and (left := end - loop.time()) > 0:
            changed = asyncio.ensure_future(news.changed(silo.name, seen))
            try:
                await asyncio.wait({changed, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if gone.done():
                raise Gone
            # A silo that was revoked meanwhile gets its list once more and is refused with its next request.
            seen, version, answer = await blocking(_read, silo, news, after)
            news.note(silo.name, seen, version)
        if answer is None:
            _, _, answer = await blocking(_read, silo, news, after)
    finally:
        gone.cancel()
    return answer


def _first(asked: Asked, body: bytes, news: Hub, after: str) -> tuple[Any, tuple[int, str, bytes | None]]:
    """(the silo that asks, its assignments), the latter without an answer where it is known that nothing changed."""
    silo = authenticate(method=asked.method, path=asked.raw_path, query=asked.query, headers=asked.headers, body=body)
    seen = news.unchanged(silo.name, after) if after else None
    return silo, _read(silo, news, after) if seen is None else (seen, after, None)


def _read(silo: Any, news: Hub, after: str) -> tuple[int, str, bytes]:
    seen = news.count(silo.name)
    return (seen, *assignments_answer(silo, fresh=not after))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _arguments(query: str) -> tuple[float, str]:
    """(seconds to wait, the version that the silo has). Raises Refused (BAD_REQUEST)."""
    values = parse_qs(query)
    wait, after = values.get("wait", ["0"])[-1], values.get("after", [""])[-1]
    if not wait.isascii() or not wait.isdigit() or len(wait) > 3:
        raise Refused("BAD_REQUEST", "wait is a whole number of seconds.")
    return min(float(wait), LONGEST), after
