"""The page as a process: a child of `silo run` that ends with it, at this machine's own address, and `silo page user`."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from demo.processes import free_port
from silo_node.page.accounts import Accounts
from silo_node.page.serve import RENEWAL_SECONDS
from tests.silo_node import faults
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
    except (OSError, http.client.HTTPException):
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


def problem(silo: SiloUnderTest, code: str) -> dict[str, str] | None:
    """From the running silo's own file."""
    path = silo.folder / "status.json"
    found = json.loads(path.read_text())["problems"] if path.exists() else []
    return next((each for each in found if each["code"] == code), None)


SECONDS = 5.0
"""From the start of a page that can't be served to its problem in `silo status`."""


def page_of(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The page's process, if there is one just now."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return next((child for child in children if "silo_node.page.serve" in child.cmdline()), None)
    except psutil.Error:
        return None


def ended(page: psutil.Process) -> float:
    """Wait until the process has ended by itself. Returns: seconds on the processor that it took."""
    seconds, end = 0.0, time.monotonic() + 60
    while True:
        try:
            if page.status() == psutil.STATUS_ZOMBIE:
                return seconds
            seconds = sum(page.cpu_times()[:2])
        except psutil.Error:
            return seconds
        assert time.monotonic() < end, "the page goes on"
        time.sleep(0.01)


def told_at_start(silo: SiloUnderTest, code: str) -> dict[str, str]:
    """What status.json says in time, and `silo status` says too.

    How long the machine keeps the page's process waiting for a processor is not the silo's doing: what counts is the time on
    the processor that it takes to end, and from then on every second.
    """
    process = silo.start()
    page = silo.until(lambda: page_of(process), 60)
    took = ended(page)
    assert took < SECONDS
    found = silo.until(lambda: problem(silo, code), SECONDS - took)
    shown = {each["code"]: each for each in silo.status()["problems"]}[code]
    assert shown["do"] == found["do"] and len(found["do"]) > 20
    return found


def with_tls(silo: SiloUnderTest, pem: Path) -> None:
    """In silo.toml; the port comes from the environment."""
    path = silo.folder / "silo.toml"
    tls = f'name = "localhost"\ntls_cert = "{pem}"\ntls_key = "{pem}"'
    path.write_text(path.read_text().replace("[page]", f"[page]\n{tls}"))


def test_a_port_that_is_taken_is_a_problem_until_it_is_free_and_does_not_stop_the_silo(silo: SiloUnderTest, port: int):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        found = told_at_start(silo, "PAGE_PORT_TAKEN")
        assert f"port {port}" in found["sentence"] and "[page]" in found["do"]
        assert f"port {port}" in (silo.folder / "page.log").read_text()
        assert silo.status()["running"]
    silo.until(lambda: status(port) == 200, 60)
    silo.until(lambda: not problem(silo, "PAGE_PORT_TAKEN"), 40)


@pytest.mark.parametrize("fault", ["no PEM", "another's key", "missing", "over", "open to everybody"])
def test_a_certificate_that_cannot_be_used_is_a_problem(silo: SiloUnderTest, port: int, tmp_path: Path, fault: str):
    pem = faults.certificate(tmp_path, days=-2 if fault == "over" else 1)[1]
    if fault == "no PEM":
        pem.write_text("not a certificate")
    elif fault == "another's key":
        (tmp_path / "other").mkdir()
        other = faults.certificate(tmp_path / "other")[1].read_bytes()
        pem.write_bytes(
            other.split(b"-----BEGIN CERT")[0] + b"-----BEGIN CERT" + pem.read_bytes().split(b"-----BEGIN CERT")[1]
        )
    elif fault == "missing":
        pem.unlink()
    elif fault == "open to everybody":
        pem.chmod(0o644)
    with_tls(silo, pem)
    found = told_at_start(silo, "PAGE_CERTIFICATE")
    assert str(pem) in found["sentence"] and "tls_cert" in found["do"]
    assert silo.status()["running"]


def test_a_page_that_crashes_at_its_start_is_a_problem(silo: SiloUnderTest, port: int):
    (silo.folder / "page.db").write_bytes(b"no database at all" * 100)
    assert "page.log" in told_at_start(silo, "PAGE_CRASHED")["do"]
    assert "DatabaseError" in (silo.folder / "page.log").read_text()


def test_with_a_certificate_the_page_speaks_tls_and_nothing_else(silo: SiloUnderTest, port: int, tmp_path: Path):
    authority, pem = faults.certificate(tmp_path)
    with_tls(silo, pem)
    command = [sys.executable, "-m", "silo_node.cli", "page", "--folder", str(silo.folder), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE)
    trusting = ssl.create_default_context(cafile=str(authority))
    url = f"https://127.0.0.1:{port}/sign-in"

    def answered() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5, context=trusting) as answer:
                return bool(answer.headers["strict-transport-security"]) and answer.status == 200
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            assert not isinstance(error.reason, ssl.SSLCertVerificationError)
            return False

    try:
        assert json.loads(process.stdout.readline())["address"] == f"https://localhost:{port}"
        silo.until(answered, 40)
        assert status(port) is None, "no answer without TLS"
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(url, timeout=5, context=ssl.create_default_context())
        with trusting.wrap_socket(
            socket.create_connection(("127.0.0.1", port), 5), server_hostname="127.0.0.1"
        ) as spoken:
            assert spoken.version() in ("TLSv1.2", "TLSv1.3")
    finally:
        process.kill()
        process.wait()


def test_a_renewed_certificate_is_shown_without_a_restart_and_half_a_one_is_not(
    silo: SiloUnderTest, port: int, tmp_path: Path
):
    pem = faults.certificate(tmp_path)[1]
    (tmp_path / "renewed").mkdir()
    renewed = faults.certificate(tmp_path / "renewed")[1].read_bytes()
    with_tls(silo, pem)

    def shown() -> str | None:
        try:
            return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
        except OSError:
            return None

    process = silo.start("silo_node.cli", "page", "--folder", str(silo.folder))
    first = silo.until(shown, 40)
    pem.write_bytes(renewed[: len(renewed) // 2])
    time.sleep(2 * RENEWAL_SECONDS)  # nothing tells that nothing happens
    assert shown() == first
    pem.write_bytes(renewed)
    silo.until(lambda: shown() not in (None, first), 20)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_an_address_for_other_machines_without_tls_is_refused_before_anything_is_served(silo: SiloUnderTest, port: int):
    path = silo.folder / "silo.toml"
    path.write_text(path.read_text().replace("[page]", '[page]\nhost = "0.0.0.0"'))
    for command in (("page", "--folder", str(silo.folder)), ("run", str(silo.folder))):
        done = silo.command(*command)
        assert done.returncode == 2 and "tls_cert" in done.stderr
        assert status(port) is None


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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("add", "dr-x", "--role", "nonsense"), "role"), (("add", "dr-x", "--role", "steward"), "--person"),
     (("add", "Dr X", "--role", "it"), "name"), (("password", "nobody-there"), "nobody-there")],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_password_is_asked_for(silo: SiloUnderTest, arguments, named: str):
    """The password's file is missing: whoever gets as far as reading it complains of that."""
    missing = ("--password-file", str(silo.folder / "nothing-here"), "--folder", str(silo.folder), "--json")
    done = silo.command("page", "user", *arguments, *missing)
    sentence = json.loads(done.stdout)["error"]["sentence"]
    assert done.returncode == 2 and named in sentence and "nothing-here" not in sentence
