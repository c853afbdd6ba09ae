"""Chromium for the browser tests: start it, sign in as a person does (password, then a TOTP code), look for faults.

    with served(home) as base, chromium() as browser:
        page = new_page(browser)
        sign_in(page, base, "ada", password, totp_secret)

Every page made here fails loudly: a script error or a refused resource (CSP, 404) is kept in `page.faults`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.people import totp
from demo.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
EXECUTABLE = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NARROW = {"width": 360, "height": 780}
WIDE = {"width": 1280, "height": 900}


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium from the system; closed at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(EXECUTABLE), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def portal_environment(home: Path) -> dict[str, str]:
    """The environment of a portal of its own in `home`: SQLite, no broker, this machine only."""
    return os.environ | {
        "CONSILIUM_HOME": str(home),
        "BROKER_URL": "memory://",
        "DATABASE_URL": "",
        "DJANGO_SETTINGS_MODULE": "portal.settings.demo",
        "ALLOWED_HOSTS": "127.0.0.1,localhost,testserver",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
    }


def seed_portal(home: Path) -> dict[str, Any]:
    """Fill the portal in `home` with what seed_pages.py makes, unless it is there; its accounts, password and TOTP seed."""
    kept = home / "accounts.json"
    if not kept.exists():
        script = [sys.executable, str(ROOT / "tests" / "browser" / "seed_pages.py")]
        made = subprocess.run(script, env=portal_environment(home), capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"the portal could not be filled:\n{made.stderr[-4000:]}")
        kept.write_text(made.stdout[made.stdout.rindex("\n{\n") :])
    return json.loads(kept.read_text())


@contextmanager
def served(home: Path) -> Iterator[str]:
    """The portal in `home`, served as in the demo on a free port; yields its address. What it says is in server.log."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("granian")), "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--working-dir", str(ROOT / "platform"), "--no-ws", "portal.asgi:application",
    ]  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    with answering(command, f"{base}/healthz", log=home / "server.log", env=portal_environment(home)):
        yield base


@contextmanager
def answering(command: list[str], url: str, *, log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server from its first answer at `url` until the end; what it says is in `log`."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
    try:
        _until_up(url, server, log)
        yield
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """There is no event for another process's socket, so it is asked often."""
    ends = time.monotonic() + 40
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the server did not start within 40 s; {log} says why")


def new_page(browser: Any, *, narrow: bool = False, dark: bool = False, state: Any = None) -> Any:
    """A page in a context of its own; `state`: cookies of another context (`page.context.storage_state()`)."""
    context = browser.new_context(
        viewport=NARROW if narrow else WIDE,
        color_scheme="dark" if dark else "light",
        timezone_id="Europe/Berlin",
        locale="en-GB",
        storage_state=state,
    )
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(f"script: {error}"))
    page.on(
        "console", lambda message: page.faults.append(f"console: {message.text}") if message.type == "error" else None
    )
    page.on("requestfailed", lambda request: _failed(page, request))
    return page


def _failed(page: Any, request: Any) -> None:
    # Leaving a page cuts off what it was still asking for, an event stream always.
    if request.failure != "net::ERR_ABORTED":
        page.faults.append(f"request: {request.url}")


def sign_in(page: Any, base: str, username: str, password: str, secret: str | None = None) -> None:
    """Sign in through the real pages. With `secret` the portal asks for a code; raises where it lets nobody in."""
    page.goto(f"{base}/account/login/")
    page.get_by_label("User name or e-mail").fill(username)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    if secret is not None:
        page.wait_for_url("**/2fa/authenticate/**")
        _enter_code(page, secret)
        if page.get_by_role("alert").count():
            # A code counts once, and ends with its half minute: the next one is new on both counts.
            time.sleep(30.1 - time.time() % 30)
            _enter_code(page, secret)
    page.wait_for_url(f"{base}/")


def _enter_code(page: Any, secret: str) -> None:
    page.locator("input[name=code]").fill(totp(secret))
    with page.expect_navigation():
        page.get_by_role("button", name="Sign in").click()


def sideways(page: Any) -> int:
    """Pixels by which the page is wider than its window (0 where nothing must be scrolled sideways)."""
    return page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")


FAULTS = """() => {
  const found = [];
  const seen = new Set();
  document.querySelectorAll('[id]').forEach(e => { if (seen.has(e.id)) found.push('twice the id ' + e.id); seen.add(e.id); });
  document.querySelectorAll('input:not([type=hidden]), select, textarea').forEach(e => {
    if (!e.labels?.length && !e.getAttribute('aria-label')) found.push('no label: ' + (e.name || e.id)); });
  document.querySelectorAll('button, a[href]').forEach(e => {
    if (!e.textContent.trim() && !e.getAttribute('aria-label') && !e.hidden)
      found.push('no name: ' + e.outerHTML.slice(0, 80)); });
  document.querySelectorAll('table').forEach(t => { if (!t.querySelector('th[scope]')) found.push('table without scope'); });
  document.querySelectorAll('svg[role=img]').forEach(s => { if (!s.getAttribute('aria-label')) found.push('unnamed svg'); });
  document.querySelectorAll('[aria-describedby]').forEach(e => e.getAttribute('aria-describedby').split(' ').forEach(i => {
    if (!document.getElementById(i)) found.push('describes nothing: ' + i); }));
  if (document.querySelectorAll('h1').length !== 1) found.push('h1: ' + document.querySelectorAll('h1').length);
  if (!document.querySelector('main')) found.push('no main');
  if (!document.documentElement.lang) found.push('no language');
  document.querySelectorAll('[style], style, script:not([src])').forEach(e => found.push('inline: ' + e.outerHTML.slice(0, 90)));
  return found; }"""


AXE = """() => axe.run(document, {
  runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
}).then(found => found.violations.map(each => `axe ${each.id}: ${each.help}: ` + each.nodes.map(
  node => node.target.join(' ') + ' ' + (node.any[0]?.message ?? '')).slice(0, 3).join(' | ')))"""


def accessibility_faults(page: Any) -> list[str]:
    """What axe and a quick audit of ours find: labels, names, contrast, landmarks, headers of tables, ids, inline code."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    return page.evaluate(FAULTS) + page.evaluate(AXE)
