"""Children that never outlive the silo, and a broker that an earlier one left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
import redis

from silo_node.service import broker
from silo_node.service.processes import Child, stop_all

SLEEP = [
    sys.executable,
    "-c",
    "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
]


def test_a_child_that_ignores_the_request_is_ended_by_force(tmp_path):
    child = Child("deaf", SLEEP, log=tmp_path / "log")
    while not (tmp_path / "log").read_text():
        os.sched_yield()
    child.stop(0.5)
    assert child.process.returncode == -signal.SIGKILL


def test_an_end_that_was_asked_for_is_not_reported(tmp_path):
    ended = threading.Event()
    child = Child("quiet", ["sleep", "600"], log=tmp_path / "log", on_exit=lambda child: ended.set())
    child.stop()
    assert not ended.wait(0.2)


def test_an_end_that_nobody_asked_for_is_reported(tmp_path):
    ended = threading.Event()
    Child("short", ["true"], log=tmp_path / "log", on_exit=lambda child: ended.set())
    assert ended.wait(10)


def test_grandchildren_end_with_their_child(tmp_path):
    program = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    child = Child("parent", [sys.executable, "-c", program], log=tmp_path / "log")
    while not (text := (tmp_path / "log").read_text().strip()):
        os.sched_yield()
    grandchild = psutil.Process(int(text))
    stop_all([child])
    grandchild.wait(5)


def test_children_are_started_by_the_main_thread_only(tmp_path):
    caught = []

    def start():
        try:
            Child("x", ["true"], log=tmp_path / "log")
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_a_child_dies_with_a_killed_parent(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom silo_node.service.processes import Child\n"
        f"child = Child('c', ['sleep', '600'], log=Path({str(tmp_path / 'log')!r}))\n"
        "print(child.process.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(5)


@pytest.fixture
def config(silo):
    return silo.config


def test_the_broker_listens_on_a_private_socket_only(config):
    child = broker.start_embedded(config, lambda child: None)
    try:
        path = broker.socket_path(config)
        assert path.stat().st_mode & 0o777 == 0o700
        assert not [
            c for c in psutil.Process(child.process.pid).net_connections() if c.status == "LISTEN" and c.family != 1
        ]
        client = broker.connect(config)
        broker.push_result(config, "st-x.1.1")
        assert broker.wait_result(client, config) == "st-x.1.1"
    finally:
        child.stop()


def test_a_stale_broker_is_shut_down_first(config):
    first = broker.start_embedded(config, lambda child: None)
    second = broker.start_embedded(config, lambda child: None)
    try:
        assert first.process.wait(5) is not None
        assert broker.connect(config).ping()
    finally:
        stop_all([first, second])


def test_a_deep_folder_gets_a_short_socket(tmp_path, silo):
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    (deep / "silo.toml").write_text((silo.folder / "silo.toml").read_text())
    from silo_node.config import Config

    config = Config.load(deep, {})
    child = broker.start_embedded(config, lambda child: None)
    try:
        assert broker.connect(config).ping()
    finally:
        child.stop()


def test_a_broker_that_is_gone_wakes_the_waiter_with_an_error(config):
    child = broker.start_embedded(config, lambda child: None)
    client = broker.connect(config)
    assert client.ping()
    threading.Timer(0.2, child.process.kill).start()
    with pytest.raises(redis.RedisError):
        broker.wait_result(client, config)
    child.stop()
