"""The same commands as in docker/, with a real PostgreSQL and a real Redis."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from demo.network import Network
from demo.portal import web_command, worker_command
from demo.processes import free_port
from tests.journeys.conftest import run_constant

ROOT = Path(__file__).resolve().parents[2]
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []
REDIS = shutil.which("redis-server")

pytestmark = pytest.mark.timeout(300)


def needs(condition: object, name: str) -> None:
    """Skips with the way to get it; in CI, where everything is installed, fails instead."""
    if not condition:
        if os.environ.get("CONSILIUM_TEST_ALL"):
            pytest.fail(f"{name} is missing, and CONSILIUM_TEST_ALL is set")
        pytest.skip(f"{name} is not installed: apt-get install postgresql redis-server")


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private PostgreSQL on a free port; it refuses to run as root, so root starts it as another user."""
    needs(BINARIES, "PostgreSQL")
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    as_user: list[str] = []
    if os.geteuid() == 0:
        user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
        shutil.chown(folder, user)
        as_user = ["setpriv", "--reuid", user, "--clear-groups", "--"]
    port = free_port()
    data = folder / "data"
    subprocess.run(
        [*as_user, BINARIES[-1] / "initdb", "-D", data, "-U", "consilium", "-A", "trust"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    server = subprocess.Popen(
        [*as_user, BINARIES[-1] / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        address = f"postgresql://consilium@127.0.0.1:{port}/postgres"
        until = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(address).close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL does not start"
                time.sleep(0.1)
        yield address
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown, which waits for no client
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_address(tmp_path: Path) -> Iterator[str]:
    """A private redis-server on a free port, with a password as in compose.portal.yml."""
    needs(REDIS, "redis-server")
    port = free_port()
    server = subprocess.Popen(
        [str(REDIS), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--requirepass", "secret"],
        stdout=subprocess.DEVNULL,
    )
    try:
        client = redis.Redis(port=port, password="secret")
        until = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.exceptions.ConnectionError:
                assert time.monotonic() < until, "redis-server does not start"
                time.sleep(0.05)
        client.close()
        yield f"redis://:secret@127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(20)


def test_a_study_completes_on_postgresql_and_redis(
    postgres: str, redis_address: str, network_of: Callable[..., Network]
) -> None:
    network = network_of(hospitals=3, portal_env={"DATABASE_URL": postgres, "BROKER_URL": redis_address})
    network.start()
    study = run_constant(network, 20_000, 2, title="Real servers", summary="PostgreSQL and Redis.")
    report = network.wait_for(study, lambda found: found["state"] == "completed", seconds=150)
    assert sum(row["purpose"] == "train" and row["stage"] == "finished" for row in report["rounds"]) == 2
    with psycopg.connect(postgres) as connection:
        assert connection.execute("select count(*) from federation_round").fetchone()[0] >= 4  # type: ignore[index]


def test_images_start_the_commands_that_are_tested_here() -> None:
    """docker/ can't be built where there is no engine; its commands are these, option by option."""
    dockerfile = (ROOT / "docker" / "portal.Dockerfile").read_text()
    compose = (ROOT / "docker" / "compose.portal.yml").read_text()
    for word in web_command(8000, "0.0.0.0")[2:]:
        assert f'"{word}"' in dockerfile, word
    for word in worker_command()[2:]:
        assert word in compose, word
