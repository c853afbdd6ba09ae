"""What stands before every view and on every answer: the Host check, and headers that let a browser load only our own.

A page of another site can make a browser send requests here (and a name can be rebound to 127.0.0.1): so a request must
name a host that is ours, and one that changes something must come from a page of ours.
"""

from __future__ import annotations

from typing import Any, Final

from silo_node.config import Page

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_FIXED: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), microphone=(), geolocation=()",
    ),
)


def hosts(page: Page) -> frozenset[str]:
    """The values of the Host header that are ours, in lower case."""
    names = {"localhost", "127.0.0.1", "[::1]"}
    if page.name:
        names.add(page.name)
    usual = 443 if page.tls_cert else 80
    return frozenset(f"{name}:{page.port}" for name in names) | (names if page.port == usual else frozenset())


class Guard:
    """ASGI: refuses a foreign Host, and adds the headers to whatever comes back."""

    def __init__(self, app: Any, page: Page) -> None:
        self._app = app
        self._hosts = hosts(page)
        self._headers = list(_FIXED)
        if page.tls_cert:
            self._headers.append((b"strict-transport-security", b"max-age=31536000"))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                more = [each for each in self._headers if each[0] not in given]
                if b"cache-control" not in given:
                    more.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        named = [value for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1 or named[0].decode("latin-1").lower() not in self._hosts:
            await _answer(sending, 421, "This page does not answer under that name. Its settings: [page] in silo.toml.")
            return
        await self._app(scope, receive, sending)


async def _answer(send: Any, status: int, text: str) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}
    )
    await send({"type": "http.response.body", "body": text.encode()})
