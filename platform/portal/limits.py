"""Bodies are counted and timed before anything reads them: Django's ASGI handler would take in a body of any size, for ever.

Who sends slowly on purpose holds memory, and in an upload one of the few places in which a body is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings

from portal import problems

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class _TooLarge(Exception):
    """More bytes arrived than one body may have."""


class _TooSlow(Exception):
    """The body was not whole in time."""


def limit_body(application: Application) -> Application:
    """`application` behind a count: a body of more than DATA_UPLOAD_MAX_MEMORY_SIZE bytes answers 413.

    One that is not whole BODY_SECONDS after the application first asked for it answers 408. What the application waits
    for after that (the asker leaving) may take as long as it likes.
    """

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit() or int(announced) > limit:
            await _refuse(send, "TOO_LARGE", f"A body may have at most {limit} bytes.")
            return
        received = 0
        started = whole = False
        end: float | None = None

        async def counted() -> Message:
            nonlocal received, whole, end
            if whole:
                return await receive()
            end = end or asyncio.get_running_loop().time() + settings.BODY_SECONDS
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise _TooSlow from None
            whole = not message.get("more_body", False)
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await application(scope, counted, noted)
        except _TooLarge:
            if not started:
                await _refuse(send, "TOO_LARGE", f"A body may have at most {limit} bytes.")
        except _TooSlow:
            if not started:
                await _refuse(send, "TOO_SLOW", f"A body must be whole within {settings.BODY_SECONDS} seconds.")

    return limited


async def _refuse(send: Send, code: str, sentence: str) -> None:
    status, body = problems.document(code=code, detail=sentence)
    headers = [
        (b"content-type", problems.PROBLEM_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
