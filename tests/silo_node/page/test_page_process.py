"""The page as a process: a child of `silo run` that ends with it, at this machine's own address, and `silo page user`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest

from demo.processes import free_port
from silo_node.page.accounts import Accounts
from tests.silo_node.conftest import ROOT, SiloUnderTest
from tests.silo_node.page.conftest import PASSWORD


@pytest.fixture
def cheap_passwords() -> None:
    """Not here: the other process hashes as it does in earnest."""


@pytest.fixture
def port(silo: SiloUnderTest, monkeypatch: pytest.MonkeyPatch) -> int:
    found = free_port()
    monkeypatch.setenv("SILO_PAGE_OFF", "false")
    monkeypatch.setenv("SILO_PAGE_PORT", str(found))
    return found


def status(port: int, host: str = "localhost") -> int | None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/sign-in", headers={"Host": f"{host}:{port}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_silo_run_serves_the_page_and_takes_it_along_when_it_is_killed(silo: SiloUnderTest, port: int):
    process = silo.start()
    silo.until(lambda: status(port) == 200, 40)
    assert status(port, "evil.example") == 421
    children = psutil.Process(process.pid).children(recursive=True)
    [page] = [child for child in children if "silo_node.page.serve" in child.cmdline()]
    addresses = {each.laddr for each in page.net_connections() if each.status == psutil.CONN_LISTEN}
    assert addresses == {("127.0.0.1", port)}
    silo.kill()
    page.wait(10)
    assert status(port) is None


def test_a_page_that_dies_is_started_again(silo: SiloUnderTest, port: int):
    process = silo.start()
    silo.until(lambda: status(port) == 200, 40)
    [page] = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "silo_node.page.serve" in child.cmdline()
    ]
    page.send_signal(signal.SIGKILL)
    page.wait(10)
    silo.until(lambda: status(port) == 200, 40)


def test_a_port_that_is_taken_is_named_and_does_not_stop_the_silo(silo: SiloUnderTest, port: int):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        silo.start()
        log = silo.folder / "page.log"
        silo.until(lambda: log.exists() and f"port {port}" in log.read_text(), 40)
        assert "set [page] port" in log.read_text()
        assert silo.status()["running"]


def test_switched_off_there_is_no_page(silo: SiloUnderTest, port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SILO_PAGE_OFF", "true")
    process = silo.start()
    silo.until(lambda: silo.status()["last_contact"], 40)
    children = psutil.Process(process.pid).children(recursive=True)
    assert not [child for child in children if "silo_node.page.serve" in child.cmdline()]


def test_silo_page_ends_with_ctrl_c(silo: SiloUnderTest, port: int):
    command = [sys.executable, "-m", "silo_node.cli", "page", "--folder", str(silo.folder), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE)
    try:
        said = json.loads(process.stdout.readline())
        assert said == {"address": f"http://localhost:{port}", "users": 0}
        silo.until(lambda: status(port) == 200, 40)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_users_are_added_listed_changed_and_removed_by_command(silo: SiloUnderTest):
    secret = silo.folder / "password"
    secret.write_text(PASSWORD + "\n")
    user = ("--folder", str(silo.folder), "--json")
    word = ("--password-file", str(secret))
    added = silo.command("page", "user", "add", "dr-x", "--role", "steward", "--person", "Dr. X", *word, *user)
    assert json.loads(added.stdout) == {"user": "dr-x", "role": "steward", "person": "Dr. X"}
    listed = silo.command("page", "user", "list", *user)
    assert json.loads(listed.stdout)["users"] == [{"user": "dr-x", "role": "steward", "person": "Dr. X"}]
    accounts = Accounts(silo.folder)
    token = accounts.sign_in("dr-x", PASSWORD)
    secret.write_text("another long password\n")
    assert silo.command("page", "user", "password", "dr-x", *word, *user).returncode == 0
    assert accounts.session(token) is None
    assert accounts.session(accounts.sign_in("dr-x", "another long password")) is not None
    accounts.close()
    assert silo.command("page", "user", "remove", "dr-x", *user).returncode == 0
    refused = silo.command("page", "user", "remove", "dr-x", *user)
    assert refused.returncode == 2 and "silo page user list" in json.loads(refused.stdout)["error"]["sentence"]
    assert silo.command("page", "user", "add", "x", "--role", "it", *user).returncode == 2  # no terminal to ask
