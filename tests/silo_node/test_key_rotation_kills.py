"""A change of the silo's key that is killed for real, SIGKILL, at each step: whoever goes on ends it, nobody is locked out.

Two kinds of steps: what the process does on its own disk (it dies just before it opens, renames or removes a file of the
silo's, or connects), and each request to the portal (it dies before the answer, whether the portal took it or not).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from protocol.signing import SigningKey
from tests.silo_node.conftest import ROOT
from tests.silo_node.portal_double import TOKEN

DIES_BEFORE = """
import os, signal, sys
left, folder = int(sys.argv.pop(1)), sys.argv.pop(1)

def step(event, args):
    global left
    if event == "open":
        if not isinstance(args[0], str) or not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
    elif event not in ("os.rename", "os.remove", "sqlite3.connect", "socket.connect"):
        return
    if event == "socket.connect" or any(str(each).startswith(folder) for each in args[:2]):
        if left == 0:
            print(event, *(str(each).removeprefix(folder) for each in args[:2]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

sys.addaudithook(step)
from silo_node.cli import main
main()
"""
"""argv: how many such steps to let pass, the silo's folder, then the command's own."""


def dies_before(silo, step, *more):
    """`silo key rotate`, killed before its step of this number: (its end, what it was about to do)."""
    done = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE, str(step), str(silo.folder), "key", "rotate", str(silo.folder), *more],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout.strip()


def on_disk(silo):
    """file -> public key, of the silo's key and the one that waits."""
    paths = [silo.folder / "keys" / name for name in ("silo.key", "silo.key.next")]
    return {path.name: SigningKey.load(path).public for path in paths if path.exists()}


def rotations(silo):
    node = silo.node()
    try:
        return node.evidence.records("key.rotated")
    finally:
        node.close()


def assert_one_key(silo, portal):
    """Both sides know one and the same; each change stands once in the silo's log."""
    assert on_disk(silo) == {"silo.key": portal.public}
    said = [record["refs"]["statement"] for record in rotations(silo)]
    assert len(said) == len(set(said))
    assert not list((silo.folder / "keys").glob(".*.tmp"))


def goes_on(silo, portal, by):
    """The next command, or the next `silo run`, ends what was begun."""
    if by == "command":
        done = silo.command("key", "rotate", str(silo.folder), "--json")
        assert done.returncode == 0, done.stderr
        return
    silo.start()
    silo.until(lambda: not (silo.folder / "keys" / "silo.key.next").exists())
    silo.until(lambda: silo.status()["state"] in ("idle", "connecting"))
    silo.processes[-1].send_signal(signal.SIGTERM)
    assert silo.processes.pop().wait(15) == 0


def test_killed_before_any_step_on_its_disk_the_next_command_ends_it(silo, portal):
    """Every file that it opens to write, renames or removes, and every connection: some twenty deaths."""
    seen = []
    while True:
        before = portal.public
        code, about = dies_before(silo, len(seen))
        if code == 0:
            break
        assert code == -signal.SIGKILL, about
        assert portal.public in on_disk(silo).values(), f"locked out by a kill before {about}"
        if (silo.folder / "keys" / "silo.key.next").exists():
            goes_on(silo, portal, "command")
            assert portal.public != before
        seen.append(about)
        assert portal.public == on_disk(silo)["silo.key"], about
    assert_one_key(silo, portal)
    steps = "\n".join(seen)
    for each in ("silo.key.next.tmp", "os.rename", "rotations/", "socket.connect", "evidence.db", "keys/silo.key\n"):
        assert each in steps + "\n", steps


REQUESTS = [("GET", 1), ("PUT", 1), ("GET", 2)]
"""Of a change by signature: asked whether the new key is there, told of it, asked again."""


@pytest.mark.parametrize(
    ("method", "nth", "arrives", "by"),
    [(*each, arrives, "command") for each in REQUESTS for arrives in (False, True)]
    + [("PUT", 1, arrives, "run") for arrives in (False, True)],  # a start of `silo run` takes seconds
)
def test_killed_before_any_answer_both_ways_on_end_it(silo, portal, method, nth, arrives, by):
    before = portal.public
    dies_at_request(silo, portal, method, nth, arrives)
    assert portal.public in on_disk(silo).values()
    assert (portal.public != before) == (((method, nth) == ("PUT", 1) and arrives) or nth == 2)
    waiting = on_disk(silo)["silo.key.next"]
    codes = [each["code"] for each in silo.status()["problems"]]
    assert codes == ["KEY_WAITS"]
    goes_on(silo, portal, by)
    assert portal.public == waiting
    assert_one_key(silo, portal)


def dies_at_request(silo, portal, method, nth, arrives, *more):
    """`silo key rotate`, killed where its nth request of this method arrives."""
    seen, process = [], None

    def fault(*request):
        if request[0] == method and "/silo/" in request[1]:
            seen.append(request)
            if len(seen) == nth:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return None if arrives else 0
        return None

    portal.fault = fault
    process = subprocess.Popen(
        [sys.executable, "-m", "silo_node.cli", "key", "rotate", str(silo.folder), *more], cwd=ROOT
    )
    assert process.wait(30) == -signal.SIGKILL
    silo.until(lambda: len(seen) >= nth)
    portal.fault = lambda *_: None
    if arrives and method != "GET":
        # The double takes it in its own thread, after the process has died.
        portal.wait(lambda: any(each.method == method and each.path in seen[-1] for each in portal.received))
        silo.until(lambda: portal.public == on_disk(silo)["silo.key.next"])


@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("by", ["command", "run"])
def test_killed_after_its_token_was_used_up_the_new_key_is_taken_without_one(silo, portal, by, confirmed):
    """A token counts once: before, a silo that died here had a key that nobody knew and no way on."""
    dies_at_request(silo, portal, "POST", 1, True, "--token", TOKEN)
    portal.pending = not confirmed
    goes_on(silo, portal, by)
    portal.pending = False
    assert_one_key(silo, portal)
    silo.policy(version=2)


def test_a_portal_that_is_away_when_run_starts_costs_nothing(silo, portal):
    """The portal has the new key, the silo's answer was lost, and the portal is away for the first tries."""
    dies_at_request(silo, portal, "PUT", 1, True)
    portal.fault = lambda *_: 0
    silo.start()
    silo.until(lambda: "PORTAL_UNREACHABLE" in (silo.folder / "run.log").read_text())
    portal.fault = lambda *_: None
    silo.until(lambda: not (silo.folder / "keys" / "silo.key.next").exists())
    silo.until(lambda: silo.status()["state"] == "idle" and silo.status()["problems"] == [])
    assert_one_key(silo, portal)


def test_in_an_open_round_the_new_key_waits_and_run_takes_it_when_the_round_has_ended(silo, portal):
    """The round ends with the old key, no other is joined, and `silo run` begins anew with the new one by itself."""
    portal.make_study()
    silo.decide()
    dead = silo.dies_at("update")
    silo.train_once()
    silo.until(dead)
    old = portal.public
    done = silo.command("key", "rotate", str(silo.folder), "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "ROUND_OPEN"), done.stderr
    assert portal.public == old
    portal.holding = False
    silo.start()
    portal.wait(lambda: portal.finished(1))
    assert "site-1" in portal.round(1).members
    silo.until(lambda: not (silo.folder / "keys" / "silo.key.next").exists())
    assert portal.public != old
    portal.wait(lambda: portal.round(2))
    assert portal.round(2).mail["keys"].get("site-1") is None
    # The study goes on without it, and it says so, and what a steward has to do.
    silo.until(lambda: "KEY_ROTATED" in [each["code"] for each in silo.status()["problems"]])
    [problem] = [each for each in silo.status()["problems"] if each["code"] == "KEY_ROTATED"]
    assert (problem["about"], "submit it again" in problem["do"]) == (portal.manifest.study, True)
    assert_one_key(silo, portal)
    portal.make_study()  # in a version with the new key: nothing is wrong any more
    silo.until(lambda: "KEY_ROTATED" not in [each["code"] for each in silo.status()["problems"]])


def test_a_portal_that_counts_it_into_a_round_gets_the_new_key_afterwards(silo, portal):
    """As where the folder was restored from a backup and knows nothing of the round."""
    old, portal.in_round = portal.public, True
    done = silo.command("key", "rotate", str(silo.folder), "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (3, "ROUND_OPEN")
    assert on_disk(silo)["silo.key"] == portal.public == old
    silo.start()
    silo.until(lambda: "ROUND_OPEN" in (silo.folder / "run.log").read_text())
    portal.in_round = False
    silo.until(lambda: not (silo.folder / "keys" / "silo.key.next").exists())
    assert portal.public != old
    assert_one_key(silo, portal)
