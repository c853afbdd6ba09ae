"""A full disk and the log of what leaves: nothing leaves unnoted, what only counts waits, and the silo stays awake."""

from __future__ import annotations

import queue
import threading

import pytest

from silo_node.errors import DiskFull
from silo_node.evidence.egress_log import EgressLog
from silo_node.service.listeners import Poller
from silo_node.service.log_files import RotatingFile


def fill(log: EgressLog) -> None:
    """SQLite itself says "database or disk is full" from here on, until `empty`."""
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count = {pages}")


def empty(log: EgressLog) -> None:
    log._db.execute("PRAGMA max_page_count = 1000000")


def note(log, body=100):
    return log.sending(kind="k" * 3000, method="PUT", path="/p", round_id=None, body=body, head=10, digest="sha256:x")


def test_without_room_for_its_row_nothing_is_sent(tmp_path):
    log = EgressLog(tmp_path / "egress.db")
    fill(log)
    with pytest.raises(DiskFull, match=r"egress\.db.*nothing was sent"):
        for _ in range(50):
            note(log)
    empty(log)
    assert note(log) is not None
    log.close()


def test_counts_wait_in_memory_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr("silo_node.evidence.egress_log.SOON", 0.0)
    log = EgressLog(tmp_path / "egress.db")
    fill(log)
    kinds = [f"{number:03d}" + "x" * 3000 for number in range(20)]
    for kind in kinds:
        log.sending(kind=kind, method="GET", path="/p", round_id=None, body=0, head=7, digest="sha256:x")
    empty(log)
    assert {kind: each["requests"] for kind, each in log.totals().items()} == dict.fromkeys(kinds, 1)
    log.close()


def test_the_poll_outlives_a_full_disk(silo, monkeypatch):
    """The thread that listens to the portal reports the problem and asks again."""
    node = silo.node()
    events: queue.SimpleQueue = queue.SimpleQueue()
    poller = Poller(node, events)
    real = node.egress_log.sending
    full = threading.Event()
    full.set()

    def sending(**more):
        if full.is_set():
            raise DiskFull("no room to note in egress.db what leaves: nothing was sent, make room")
        return real(**more)

    monkeypatch.setattr(node.egress_log, "sending", sending)
    thread = threading.Thread(target=poller.run, daemon=True)
    thread.start()
    name, error = events.get(timeout=10)
    assert (name, error.code) == ("problem", "SILO_DISK_FULL")
    full.clear()
    while name != "assignments":
        name, _ = events.get(timeout=10)
    node.stop.set()
    thread.join(10)
    assert not thread.is_alive()
    node.close()


def test_a_log_line_that_does_not_fit_goes_to_stderr(tmp_path, capsys):
    (tmp_path / "silo.log").symlink_to("/dev/full")  # the kernel's own full disk
    file = RotatingFile(tmp_path / "silo.log", 1)
    file.write('{"event": "x"}\n')
    file.flush()
    file.close()
    assert '{"event": "x"}' in capsys.readouterr().err
