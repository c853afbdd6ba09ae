"""systemd is told that the silo is ready, lives and ends, over a socket of its own as systemd makes it."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from silo_node.errors import AlreadyRunning, DiskFull, PortalError, Refused, UsageError
from silo_node.service import systemd
from tests.silo_node.conftest import ROOT

UNIT = ROOT / "docs" / "systemd" / "consilium-silo.service"


def test_nothing_is_sent_without_systemd(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    systemd.notify("READY=1", {})
    systemd.notify("READY=1", {"NOTIFY_SOCKET": "vsock:2:1"})


@pytest.mark.parametrize("name", ["{folder}/notify", "@{folder}/notify"])
def test_a_state_arrives_at_a_named_or_an_abstract_socket(tmp_path, name):
    address = name.format(folder=tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(address.replace("@", "\0"))
        systemd.notify("READY=1", {"NOTIFY_SOCKET": address})
        there.settimeout(5)
        assert there.recv(100) == b"READY=1"


def test_the_watchdog_is_answered_three_times_in_its_time():
    mine = str(os.getpid())
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": mine}) == 10.0
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert systemd.watchdog_seconds({}) is None


def test_a_silo_says_ready_then_alive_then_that_it_stops(ready, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(str(tmp_path / "notify"))
        there.settimeout(30)
        process = subprocess.Popen(
            [sys.executable, "-m", "silo_node.cli", "run", str(ready.folder)],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"},
            stderr=subprocess.DEVNULL,
        )
        ready.processes.append(process)
        assert [there.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        process.send_signal(signal.SIGTERM)
        while (said := there.recv(100)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"
        assert process.wait(20) == 0


def unit():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_the_unit_tells_systemd_what_the_silo_does():
    service = unit()
    assert service["Type"] == "notify"
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed", "only the silo is asked to end: it ends its workers itself"
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == "yes"
    assert service["ProtectSystem"] == "strict"
    # What can be read and written is named, all else is closed.
    assert service["ReadWritePaths"] == "/var/lib/consilium-silo"
    assert service["ExecStart"].split()[1:] == ["run", "/var/lib/consilium-silo"]


def test_the_unit_starts_what_the_page_for_hospital_it_installs():
    page = (ROOT / "docs" / "hospital-it.md").read_text()
    program = unit()["ExecStart"].split()[0]
    assert f"python3.11 -m venv {Path(program).parents[1]}\n" in page


def test_a_fault_that_passes_by_itself_never_keeps_the_silo_down():
    """A disk that is full for an hour ends each start with 1: the unit tries for ever, unless a person must act first."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(UNIT.read_text())
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    assert int(parser["Service"]["RestartSec"]) >= 10
    kept_down = {int(code) for code in parser["Service"]["RestartPreventExitStatus"].split()}
    assert kept_down == {UsageError.exit_code, Refused.exit_code, AlreadyRunning.exit_code}
    assert not kept_down & {DiskFull.exit_code, PortalError.exit_code}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)")
def test_systemd_takes_the_unit(tmp_path):
    text = UNIT.read_text().replace(unit()["ExecStart"].split()[0], "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)], capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if Path(UNIT.name).name in line]
    assert said == []
