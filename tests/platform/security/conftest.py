"""Fixtures of the attacks: every address of the portal, a network of played silos, and raw calls to the ASGI application."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.db import connections

from federation import node_app
from portal.asgi import application
from protocol.signing import SigningKey, sign_request

_HERE = Path(__file__).resolve().parent


def _load(path: str, name: str) -> ModuleType:
    """A module of the neighbouring tests, which are in no package."""
    spec = importlib.util.spec_from_file_location(name, _HERE.parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_world = _load("federation/conftest.py", "security_federation_world")
eager = _world.eager
network = _world.network


@pytest.fixture(scope="session")
def addresses() -> list[tuple[str, str, Any]]:
    """(address with made-up values, full name, view) of everything that the portal answers to."""
    return _load("portal/test_every_url_every_role.py", "security_every_url").ALL


class Wire:
    """One request to the portal's ASGI application, byte by byte as an attacker would send it."""

    def __init__(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        parts: tuple[bytes, ...] = (b"",),
        stalls: bool = False,
    ) -> None:
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("192.0.2.1", 1),
            "server": ("testserver", 80),
        }
        self.parts = list(parts)
        self.stalls = stalls
        self.taken = 0
        self.started: dict[str, Any] = {}
        self.body = b""
        self.reading = asyncio.Event()

    async def _receive(self) -> dict[str, Any]:
        self.reading.set()
        if self.taken < len(self.parts):
            self.taken += 1
            more = self.stalls or self.taken < len(self.parts)
            return {"type": "http.request", "body": self.parts[self.taken - 1], "more_body": more}
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets")

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.started = message
        else:
            self.body += message.get("body", b"")

    async def go(self) -> tuple[int, bytes]:
        await application(self.scope, self._receive, self._send)
        return self.started["status"], self.body


def signed(key: SigningKey, method: str, path: str, *, query: str = "", body: bytes = b"", **more: Any) -> Wire:
    """A request that `key` signed."""
    headers = sign_request(key, method=method, path=path, query=query, body=body)
    return Wire(method, path, query=query, headers=headers, **{"parts": (body,), **more})


@pytest.fixture
def wire(transactional_db: Any) -> Iterator[Any]:
    """The class Wire, with `Wire.signed`; the node API's threads let go of the test's database in the end."""
    Wire.signed = staticmethod(signed)
    yield Wire
    barrier = threading.Barrier(node_app.THREADS + 1)

    def close() -> None:
        connections.close_all()
        barrier.wait(10)

    for _ in range(node_app.THREADS):
        node_app._pool.submit(close)
    barrier.wait(10)
