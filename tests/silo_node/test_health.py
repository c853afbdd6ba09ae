"""A container's health check: a silo that runs is healthy whatever the portal does; one that is gone or stuck is not."""

from __future__ import annotations

import json
import signal

import pytest

from silo_node.health import liveness as health
from silo_node.health.liveness import Unhealthy
from silo_node.node import FolderLock


def test_a_silo_is_healthy_as_long_as_it_runs(ready, portal):
    portal.fault = lambda method, path: 0  # the portal being away is no reason to start again
    process = ready.start()
    ready.until(lambda: (ready.folder / "alive").exists())
    done = ready.command("healthy", str(ready.folder), "--json")
    assert (done.returncode, json.loads(done.stdout)["healthy"]) == (0, True)
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    done = ready.command("healthy", str(ready.folder))
    assert done.returncode == 1
    assert "NOT_HEALTHY `silo run` is not running here." in done.stderr


def test_a_silo_whose_main_thread_is_stuck_is_not_healthy(silo, monkeypatch):
    config, lock = silo.config, FolderLock(silo.folder)
    now = health._now()
    health.turned(config)
    most = health.PATIENCE + config.settings.limits.retry
    monkeypatch.setattr(health, "_now", lambda: now + most - 1)
    assert health.check(config) == pytest.approx(most - 1, abs=1)
    monkeypatch.setattr(health, "_now", lambda: now + most + 1)
    with pytest.raises(Unhealthy, match="stuck for 306 seconds, more than 305"):
        health.check(config)
    lock.release()
