"""What happens to a machine over months: processes killed in the middle of a training, torn files, locked and damaged databases,
a clock that jumps. The silo goes on, or says what is wrong and goes on when that is over."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing

import psutil
import pytest

from silo_node import tasks
from silo_node.errors import SiloError
from silo_node.evidence.egress_log import EgressLog, EgressLogBusy
from silo_node.journal import SqliteJournal
from silo_node.sync import Sync
from tests.silo_node import faults
from tests.silo_node.test_silo_run import OURS, body_of, rounds_of


def processes(silo):
    """Name -> process of the running silo: broker, worker, and the worker's training child."""
    found = {}
    for child in psutil.Process(silo.processes[-1].pid).children():
        if "valkey" in child.name():
            found["broker"] = child
        elif "training" in child.cmdline():
            found["worker"] = child
            found["training"] = next(iter(child.children()), None)
    return found


def opened_by_a_reader(pipe):
    """Its end for writing, once somebody reads it; None before."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def before_the_training(ready, portal):
    """Round 1 is next. Its training will be halted in its task: it first reads how often it was begun, here from a pipe that
    says nothing. Returns: the processes, and the pipe's path."""
    portal.holding = True
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    there = ready.until(lambda: (found := processes(ready)).get("training") and found)
    begun = ready.folder / "runs" / f"{portal.manifest.study}.1.1" / "begun.json"
    begun.parent.mkdir(parents=True)
    os.mkfifo(begun)
    return there, begun


@pytest.mark.parametrize("victim", ["training", "worker", "broker"])
def test_killed_with_a_training_in_its_hands_the_training_is_made_again(ready, portal, victim):
    """As the kernel does where memory is short."""
    there, begun = before_the_training(ready, portal)
    portal.go_on(hold=True)
    pipe = ready.until(lambda: opened_by_a_reader(begun))
    there[victim].kill()
    begun.unlink()
    there["training"].wait(30)
    os.close(pipe)
    portal.wait(lambda: portal.finished(1), 60)
    assert body_of(portal, 1) == {3 * portal.partner_word + OURS}
    assert portal.refused() == []


def test_files_that_a_power_cut_tore_do_not_stop_it(ready, portal):
    """status.json and software.json are written often and not synced, and nothing depends on them."""
    ready.train_once()
    portal.wait(lambda: portal.finished(1))
    rounds_of(ready, 2)
    ready.kill()
    for name in ("status.json", "software.json"):
        path = ready.folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in (ready.folder / "runs").rglob("*.json"):
        path.write_bytes(b"")
    portal.go_on()
    ready.start()
    portal.wait(lambda: portal.finished(2), 40)
    assert portal.refused() == []
    assert ready.until(lambda: ready.status()["running"])


@pytest.mark.parametrize("content", ["", 'name = "site-1"\nport', "name = 'site-1'\n\x00\x00\x00"])
def test_a_torn_settings_file_is_named_and_nothing_starts(ready, portal, content):
    (ready.folder / "silo.toml").write_text(content)
    done = ready.command("run", str(ready.folder))
    assert done.returncode == 2
    assert str(ready.folder / "silo.toml") in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


def test_what_leaves_is_not_sent_while_another_program_holds_the_log_of_it(ready, portal):
    """A backup that locks egress.db: nothing leaves unnoted, the silo stays awake, and goes on when it is free."""
    node = ready.node()
    node.__dict__["egress_log"] = EgressLog(ready.folder / "egress.db", patience=0.1)
    before = len(portal.received)
    with closing(sqlite3.connect(ready.folder / "egress.db", isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        with pytest.raises(EgressLogBusy, match=r"egress\.db.*nothing was sent"):
            node.egress.post("/api/v1/log/silo-checkpoint", {"note": "x"}, kind="silo-checkpoint")
        # A question without a body is only counted, later.
        assert node.egress.get("/api/v1/silo/assignments", kind="poll").status == 200
        assert [each.method for each in portal.received[before:]] == ["GET"]
        backup.execute("ROLLBACK")
    node.egress.post("/api/v1/log/silo-checkpoint", {"note": "x"}, kind="silo-checkpoint")
    assert [each.method for each in portal.received[before:]] == ["GET", "POST"]
    assert node.egress_log.totals()["poll"]["requests"] == 1
    node.close()


def test_a_damaged_journal_ends_the_start_and_names_the_file(ready):
    SqliteJournal(ready.folder / "journal.db").close()
    (ready.folder / "journal.db").write_bytes(b"not a database, but as long as one" * 100)
    done = ready.command("run", str(ready.folder))
    assert done.returncode == 1
    assert "JOURNAL_DAMAGED" in done.stderr
    assert "journal.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_clock_that_jumps_and_comes_back_costs_no_round(ready, portal):
    portal.holding = True
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    portal.clock_shift = 3600  # as seen from the silo: its own clock is an hour late
    portal.go_on(hold=True)
    ready.until(lambda: "CLOCK_SKEW" in (ready.folder / "run.log").read_text(), 40)
    portal.clock_shift = 0
    portal.wait(lambda: portal.finished(1), 60)
    assert body_of(portal, 1) == {3 * portal.partner_word + OURS}
    assert portal.refused() == []


def test_a_thread_that_fails_ends_the_silo_instead_of_leaving_it_deaf(ready, monkeypatch):
    """So that systemd starts it again: a silo that doesn't listen any more must not look as if it waited."""
    from silo_node import sync

    class Deaf(sync.Poller):
        def run(self):
            raise ZeroDivisionError

    monkeypatch.setattr(sync, "Poller", Deaf)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    node = ready.node()
    with pytest.raises(SiloError, match="SILO_FAILED: The thread `poll` has failed"):
        Sync(node).run()
    node.close()


@pytest.mark.parametrize("when", ["before it begins", "while it runs", "until it has ended"])
def test_a_broker_of_the_hospitals_own_that_loses_all_costs_no_training(ready, portal, tmp_path, when):
    """Killed with a training in its queue or in the worker's hands, and started again empty."""
    broker = faults.Broker(tmp_path)
    with (ready.folder / "silo.toml").open("a") as file:
        file.write(f'[broker]\nurl = "{broker.url}"\n')
    try:
        there, begun = before_the_training(ready, portal)
        if when == "before it begins":
            there["training"].suspend()
            with tasks.make_app(ready.config) as sender:
                tasks.send(sender, "preload")
        portal.go_on(hold=True)
        if when == "before it begins":
            ready.until(lambda: broker.holds("training"))
            broker.kill()
            broker.start()
            begun.unlink()
            there["training"].resume()
        else:
            pipe = ready.until(lambda: opened_by_a_reader(begun))
            broker.kill()
            if when == "while it runs":
                broker.start()
            begun.unlink()
            os.close(pipe)
            if when == "until it has ended":
                ready.until((begun.parent / "result.json").exists)
                broker.start()
        portal.wait(lambda: portal.finished(1), 60)
    finally:
        broker.kill()
    assert portal.refused() == []
