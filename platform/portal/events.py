"""Waking those who wait: a commit publishes, long polls and event streams listen.

Nothing depends on a message arriving: every waiter reads the database again when its poll ends.
Channels: `consilium:silo:<name>` and `consilium:study:<id>`; the message is empty, the news is in the database.
"""

from __future__ import annotations

from functools import lru_cache

import redis
import structlog
from django.conf import settings
from django.db import transaction

log = structlog.get_logger(__name__)
SILO_CHANNEL = "consilium:silo:"
STUDY_CHANNEL = "consilium:study:"


@lru_cache(maxsize=4)
def client(address: str) -> redis.Redis:
    """The process's connection pool to the broker."""
    return redis.Redis.from_url(address, socket_timeout=2, socket_connect_timeout=2)


def publish(*silo_names: str, study: str | None = None) -> None:
    """Once the current transaction commits (now, where there is none): wake these silos and whoever watches `study`."""
    channels = [SILO_CHANNEL + name for name in dict.fromkeys(silo_names)]
    if study is not None:
        channels.append(STUDY_CHANNEL + study)
    if channels:
        transaction.on_commit(lambda: send(channels))


def send(channels: list[str]) -> None:
    """Publish at once. A broker that is away is logged and costs waiters at most the rest of their poll."""
    if settings.REDIS_ADDRESS is None:
        return  # tests without a broker: nobody waits
    broker = client(settings.REDIS_ADDRESS)
    try:
        with broker.pipeline(transaction=False) as pipeline:
            for channel in channels:
                pipeline.publish(channel, b"1")
            pipeline.execute()
    except redis.RedisError as error:
        log.warning("events.not_published", channels=channels, error=type(error).__name__)
