"""What goes wrong round a running silo is in `silo status` and on the node's page within five seconds, with what to do, and
goes when it is over.

The faults are real ones, planted while `silo run` runs: servers are killed, quotas set, files broken.
"""

from __future__ import annotations

import html
import json
import os
import re
import resource
import struct
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from protocol.approval import ApprovalLimits, sign_statement
from silo_node.errors import PortalUnreachable
from silo_node.health import status
from silo_node.health.status import WAY, Live
from silo_node.health.watching import BEHIND_PROXY, PORTAL_TIMEOUT
from silo_node.steward import approvals, documents
from tests.silo_node import faults
from tests.silo_node.conftest import PASSPHRASE
from tests.silo_node.page.conftest import PageUnderTest

SECONDS = 5.0
IDLE_SECONDS, IDLE_REQUESTS = 30.0, 3
"""Two polls of 25 seconds and one look may begin in that time; every 2.5 seconds a look were 12."""


def problems(silo):
    """Those of the running silo's own file, by code."""
    return {each["code"]: each for each in json.loads((silo.folder / "status.json").read_text())["problems"]}


def told(silo, code, planted):
    """The problem, which status.json and the page must have within five seconds of `planted`, and `silo status` too."""
    found = silo.until(lambda: problems(silo).get(code), seconds=SECONDS - (time.monotonic() - planted))
    silo.until(lambda: on_page(silo, code), seconds=SECONDS - (time.monotonic() - planted))
    shown = {each["code"]: each for each in silo.status()["problems"]}[code]
    assert shown["do"] == found["do"] and len(found["do"]) > 20
    # The running silo knows since when. (Two of its threads may have met the same fault.)
    file = json.loads((silo.folder / "status.json").read_text())
    assert shown["since"] in {each["since"] for each in file["problems"] if each["code"] == code}
    return found


def on_page(silo, code):
    """Whether what the page serves for this moment names the problem, with its sentence and what to do."""
    answer = visitor(silo).get("/now")
    assert answer.status_code == 200
    items = [plain(item) for item in re.findall(r"<li>(.*?)</li>", answer.text, re.DOTALL)]
    # As `silo status` has it, or the running silo: some sentences name a time, and differ from one look to the next.
    known = [*problems(silo).values(), *status.report(silo.config)["problems"]]
    return any(
        re.search(rf"\b{code}\b", item)
        and each["sentence"].replace("`", "") in item
        and each["do"].replace("`", "") in item
        for item in items
        for each in known
        if each["code"] == code
    )


def visitor(silo):
    """Hospital IT at the application of the page's process, which is in this one."""
    if not hasattr(silo, "visitor"):
        page = PageUnderTest(silo)
        silo.closing.callback(page.accounts.close)
        silo.visitor = page.visitor("it")
    return silo.visitor


def plain(html_text):
    """What a reader sees of it."""
    return html.unescape(re.sub(r"<[^>]*>", "", html_text))


def told_by_both(silo, code):
    """What `silo status` says of it now; the page shows the same."""
    assert on_page(silo, code)
    return {each["code"]: each for each in silo.status()["problems"]}[code]


def over(silo, code):
    """Also on the page."""
    silo.until(lambda: code not in problems(silo))
    assert not on_page(silo, code) and code not in visitor(silo).get("/now").text


@pytest.fixture
def running(silo):
    """`silo run`, in contact with its portal, nothing wrong."""
    return started(silo)


def started(silo, *command):
    """With the long poll as long as it is in a hospital: it alone would notice a fault too late. command: see `start`."""
    path = silo.folder / "silo.toml"
    path.write_text(path.read_text().replace("poll = 5", "poll = 25"))
    silo.start(*command)
    path = silo.folder / "status.json"
    silo.until(lambda: path.exists() and json.loads(path.read_text())["state"] == "idle")
    assert problems(silo) == {}
    return silo


def test_a_silo_with_nothing_to_do_asks_the_portal_for_little(running, portal):
    """A thousand of them would be a load."""
    before = len(portal.received)
    # Nothing tells that nothing happens: the time has to pass.
    time.sleep(IDLE_SECONDS)
    asked = Counter(each.path.rsplit("/", 1)[1] for each in portal.received[before:])
    assert 1 <= asked.total() <= IDLE_REQUESTS, asked


def test_status_says_that_the_portal_is_down_and_takes_it_back(running, portal):
    planted = time.monotonic()
    portal.die()
    assert portal.address in told(running, "PORTAL_UNREACHABLE", planted)["sentence"]
    portal.live()
    over(running, "PORTAL_UNREACHABLE")


def test_status_says_that_the_network_is_silent_although_a_long_poll_is_open(running, portal):
    """No connection is cut, no answer comes, and the silo has nothing to send that could get lost."""
    running.until(lambda: portal.received[-1].path.endswith("/assignments"))
    planted = time.monotonic()
    portal.deaf()
    told(running, "PORTAL_UNREACHABLE", planted)
    portal.hear()
    over(running, "PORTAL_UNREACHABLE")


def test_a_portal_that_comes_back_is_seen_within_seconds_whatever_the_poll_waits_for(running, portal):
    """After a longer outage the poll's pause is up to 30 seconds; the look's is not."""
    portal.die()
    told(running, "PORTAL_UNREACHABLE", time.monotonic())
    running.until(lambda: problems(running)["PORTAL_UNREACHABLE"]["times"] >= 5, seconds=40)
    portal.live()
    running.until(lambda: problems(running) == {}, seconds=12)


def test_what_the_way_explains_is_over_with_it_and_nothing_else(silo):
    """The poll may wait for half a minute more before it finds out by itself."""
    live = Live(silo.config)
    live.now(WAY, [PortalUnreachable("no answer")])
    live.problem("PORTAL_UNREACHABLE", "no answer to the poll")
    live.problem("SILO_PENDING", "not confirmed yet")
    live.over_with_way()
    live.now(WAY, [])
    assert set(problems(silo)) == {"SILO_PENDING"}


@pytest.fixture
def proxied(silo, portal, tmp_path, monkeypatch):
    """(silo, proxy): `silo run` behind a proxy, the portal behind TLS."""
    authority, pem = faults.certificate(tmp_path)
    faults.with_tls(portal.server, pem)
    proxy = faults.Proxy()
    monkeypatch.setenv("HTTPS_PROXY", proxy.address)
    silo.settings(
        f'name = "{portal.silo}"\nportal = "{portal.address.replace("http:", "https:")}"\n'
        f'data = "{tmp_path / "data"}"\nca_bundle = "{authority}"\n'
    )
    yield started(silo), proxy
    proxy.close()


def test_status_says_that_the_proxy_refuses(proxied):
    silo, proxy = proxied
    planted = time.monotonic()
    proxy.refuse(403)
    found = told(silo, "PROXY_REFUSES", planted)
    assert "403" in found["sentence"] and "CONNECT" in found["do"]
    proxy.status = 200
    over(silo, "PROXY_REFUSES")


def test_status_says_that_the_network_beyond_the_proxy_is_silent_later_than_else(proxied, portal):
    """The proxy answers the probes of the long poll, and goes on doing so."""
    silo, _ = proxied
    portal.deaf()
    silo.until(lambda: problems(silo).get("PORTAL_UNREACHABLE"), seconds=BEHIND_PROXY + PORTAL_TIMEOUT + 2)
    told_by_both(silo, "PORTAL_UNREACHABLE")
    portal.hear()
    over(silo, "PORTAL_UNREACHABLE")


def test_status_says_that_the_clock_is_off_by_ten_minutes(silo, portal, tmp_path):
    """This machine's clock is set while all is quiet: nothing of the portal's comes to show it."""
    offset = tmp_path / "offset"
    offset.write_bytes(struct.pack("<d", 0.0))
    started(silo, "tests.silo_node.silo_clock", str(silo.folder), str(offset), "1")
    planted = time.monotonic()
    with offset.open("r+b") as file:
        file.write(struct.pack("<d", 600.0))
    sentence = told(silo, "CLOCK_SKEW", planted)["sentence"]
    assert sentence.count("UTC") == 2 or sentence.count(":") > 3, "both times are named"
    with offset.open("r+b") as file:
        file.write(struct.pack("<d", 0.0))
    over(silo, "CLOCK_SKEW")


def test_status_says_that_the_portal_has_another_time_with_its_next_answer(running, portal):
    planted = time.monotonic()
    portal.clock_shift = 600.0
    portal.changed()
    told(running, "CLOCK_SKEW", planted)
    portal.clock_shift = 0.0
    over(running, "CLOCK_SKEW")


def test_status_says_that_a_quota_is_reached(running):
    """The kernel lets the silo's process write no file beyond 40 kB: as a quota does."""
    process = psutil.Process(running.processes[-1].pid)
    before = process.rlimit(resource.RLIMIT_FSIZE)
    planted = time.monotonic()
    process.rlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    assert str(running.folder) in told(running, "SILO_DISK_FULL", planted)["sentence"]
    process.rlimit(resource.RLIMIT_FSIZE, before)
    over(running, "SILO_DISK_FULL")


def test_status_itself_sees_a_full_disk_on_which_the_silo_can_write_no_status(running):
    """Also where status.json can't be written any more, so that the file still says that all is well."""
    text = (running.folder / "silo.toml").read_text()
    (running.folder / "silo.toml").write_text(text.replace("free_mb = 0", "free_mb = 1000000000"))
    told_by_both(running, "SILO_DISK_FULL")
    assert "SILO_DISK_FULL" not in problems(running)


def test_status_says_that_the_broker_is_dead(silo, portal, tmp_path):
    broker = faults.Broker(tmp_path)
    try:
        text = (silo.folder / "silo.toml").read_text()
        (silo.folder / "silo.toml").write_text(f'{text}[broker]\nurl = "{broker.url}"\n')
        started(silo)
        planted = time.monotonic()
        broker.kill()
        assert "silo.toml" in told(silo, "BROKER", planted)["do"]
        broker.start()
        over(silo, "BROKER")
    finally:
        broker.kill()


def test_status_says_that_the_graphics_card_has_no_memory_left(ready, portal, tmp_path, monkeypatch):
    """The training child raises what torch raises on a card that is full."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        "from silo_node.training import constant\n"
        "def run(*_, **__):\n"
        "    import torch\n"
        "    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')\n"
        "constant.run = run\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hooks), *filter(None, [os.environ.get("PYTHONPATH")])]))
    started(ready)
    portal.holding = True
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    portal.go_on(hold=True)
    portal.wait(portal.refused)
    found = told(ready, "OUT_OF_MEMORY", time.monotonic())
    assert "graphics card" in found["sentence"] and "nvidia-smi" in found["do"]
    assert found["about"] == portal.manifest.study


def test_status_says_which_line_of_the_labels_is_broken(silo, portal):
    labels = silo.folder.parent / "data" / "labels.csv"
    labels.write_text("PatientID,label\nanna-secret,1\n")
    started(silo)
    planted = time.monotonic()
    labels.write_text("PatientID,label\nanna-secret,perhaps\n")
    found = told(silo, "LABELS_LABEL", planted)
    assert "line 2" in found["sentence"] and "anna" not in json.dumps(found)
    labels.write_text("PatientID,label\nanna-secret,0\n")
    over(silo, "LABELS_LABEL")


def test_status_says_that_an_approval_expired(silo, portal):
    portal.make_study()
    ends = datetime.now(UTC) + timedelta(seconds=6)
    node = silo.node()
    study, trust = portal.manifest.study, documents.load_trust(node.config)
    proposal = approvals.fetch(node, study)
    envelope = sign_statement(
        approvals.load_steward(node.config, trust, PASSPHRASE),
        trust,
        decision="approve",
        reason="",
        silo=node.config.name,
        study=study,
        manifest=proposal.manifest,
        policy=proposal.policy.digest,
        match=approvals.match_digest(proposal.found),
        limits=ApprovalLimits(epsilon_micro=0, max_rounds=2, min_cohort=1),
        not_before=datetime.now(UTC) - timedelta(seconds=1),
        not_after=ends,
        now=datetime.now(UTC),
        after=[],
    )
    documents.save_approval(node.config, study, envelope)
    node.close()
    started(silo)
    planted = time.monotonic() + (ends - datetime.now(UTC)).total_seconds()
    found = told(silo, "APPROVAL_EXPIRED", planted)
    assert study in found["sentence"] and "silo approve" in found["do"]
    silo.decide()
    over(silo, "APPROVAL_EXPIRED")


def test_status_says_that_the_portal_came_back_with_another_log_and_keeps_the_proof(running, portal):
    """As one whose database was restored, or replaced."""
    running.until(lambda: (running.folder / "portal_log.json").exists())
    first = portal.note
    portal.die()
    portal.rewrite_log()
    planted = time.monotonic()
    portal.live()
    found = told(running, "LOG_FORKED", planted)
    assert "auditor" in found["do"]
    [kept] = running.folder.glob("log-fork-*.json")
    assert json.loads(kept.read_text()) == {"first": first, "second": portal.note}
    portal.note = first  # what was seen stays seen
    time_of_looks = problems(running)["LOG_FORKED"]["times"]
    running.until(lambda: problems(running).get("LOG_FORKED", {}).get("times", 0) > time_of_looks + 2)


def test_status_says_that_a_round_was_announced_with_the_proof_of_another_log(ready, portal):
    """The other way that a checkpoint comes: no look at the portal is due."""
    started(ready)
    ready.until(lambda: (ready.folder / "portal_log.json").exists())
    portal.rewrite_log()
    before, planted = len(portal.received), time.monotonic()
    portal.begin()
    told(ready, "LOG_FORKED", planted)
    assert not [each for each in portal.received[before:] if each.path.endswith("/checkpoint")]


def test_status_says_that_the_silo_was_killed(running):
    running.kill()
    assert "systemctl" in told_by_both(running, "NOT_RUNNING")["do"]


def test_status_says_that_the_silo_hangs(running):
    """Stopped, as by a drive that does not answer: it holds its lock, and looks at nothing."""
    process = psutil.Process(running.processes[-1].pid)
    process.suspend()
    try:
        path = running.folder / "status.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, "looked": "2020-01-01T00:00:00.000Z"}))
        told_by_both(running, "STATUS_STALE")
    finally:
        process.resume()


def test_status_needs_no_network_and_no_heavy_library(silo):
    done = silo.command("status", str(silo.folder), "--json")
    assert done.returncode == 0
    heavy = "print([m for m in ('torch', 'pydicom') if m in sys.modules])"
    code = f"import sys, silo_node.health.status, silo_node.health.local_checks; {heavy}"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert loaded.stdout.strip() == "[]"
