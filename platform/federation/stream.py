"""Server-sent events of one study for the round pages: "something changed, read again". Plain ASGI.

A watching page costs a coroutine, not a thread. An event carries no data: the page then asks Django for its part again,
which checks roles as for every page. Here too only people who may see the study are let in, from their session.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

import redis.asyncio
import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user
from django.db import close_old_connections, connection
from django.http import HttpRequest
from django.utils.module_loading import import_string
from redis.exceptions import RedisError

from federation.pages_selectors import may_watch
from portal.access import Person
from portal.events import STUDY_CHANNEL

log = structlog.get_logger(__name__)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
_STUDY = re.compile(r"/studies/(?P<study>[^/]+)/events")
BEAT_SECONDS = 15.0
LIFE_SECONDS = 600.0


async def application(
    scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answers 204 to who may not watch (an EventSource then stays quiet), otherwise events until the reader leaves.

    A stream ends by itself after ten minutes, so that a session that ended meanwhile is noticed; the browser reconnects.
    """
    match = _STUDY.fullmatch(scope["path"])
    study = match["study"] if match else ""
    allowed = await sync_to_async(_allowed, thread_sensitive=False)(_cookie(scope), study)
    if not allowed:
        await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    left = asyncio.create_task(_until_left(receive))
    events = asyncio.create_task(_events(study, send))
    try:
        await asyncio.wait({left, events}, timeout=LIFE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (left, events):
            task.cancel()
        await asyncio.gather(left, events, return_exceptions=True)
    if not left.done() or left.cancelled():
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(study: str, send: Callable[[Message], Awaitable[None]]) -> None:
    # Sent once nothing can be missed any more; a page that reconnects reads its part again anyway.
    ready: Message = {"type": "http.response.body", "body": b"retry: 3000\n\n", "more_body": True}
    if settings.REDIS_ADDRESS is None:
        await send(ready)
        await asyncio.sleep(LIFE_SECONDS)  # no broker, no news: the page asks by itself
        return
    client = redis.asyncio.Redis.from_url(settings.REDIS_ADDRESS)
    try:
        async with client.pubsub() as channel:
            await channel.subscribe(STUDY_CHANNEL + study)
            await channel.get_message(timeout=BEAT_SECONDS)  # the broker's word that the subscription stands
            await send(ready)
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=BEAT_SECONDS)
                body = b": beat\n\n" if message is None else b"event: changed\ndata: 1\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
    except (RedisError, OSError) as error:
        # The page also asks by itself every few seconds, so a broker that is away only costs promptness.
        log.warning("stream.broker_away", study=study, error=type(error).__name__)
    finally:
        await client.aclose()


async def _until_left(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _cookie(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                jar = SimpleCookie(value.decode("latin-1"))
            except CookieError:
                return None
            if settings.SESSION_COOKIE_NAME in jar:
                return jar[settings.SESSION_COOKIE_NAME].value
    return None


def _allowed(session_key: str | None, study: str) -> bool:
    """Whether the session belongs to a person who may see the study's rounds."""
    if not session_key:
        return False
    close_old_connections()
    try:
        request = HttpRequest()
        request.session = import_string(f"{settings.SESSION_ENGINE}.SessionStore")(session_key)
        request.user = get_user(request)
        return bool(request.user.is_authenticated) and may_watch(Person(request), study)
    finally:
        connection.close()
