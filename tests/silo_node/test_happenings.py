"""`silo run --json`: one JSON object a line for each thing that happens, the same as in silo.log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

from tests.silo_node.conftest import ROOT


def start(silo, **more):
    """`silo run --json` in the background, with what it prints in run.out."""
    process = subprocess.Popen(
        [sys.executable, "-m", "silo_node.cli", "run", str(silo.folder), "--json"], cwd=ROOT,
        stdout=(silo.folder / "run.out").open("wb"), stderr=(silo.folder / "run.log").open("wb"), **more,
    )  # fmt: skip
    silo.processes.append(process)
    return process


def ended(silo, count):
    path = silo.folder / "rounds.jsonl"
    silo.until(lambda: path.exists() and len(path.read_text().splitlines()) >= count)


def test_run_prints_what_happens_from_start_to_stop_as_one_object_a_line(ready, portal):
    process = start(ready)
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    ended(ready, 4)
    portal.fault = lambda method, path: 0
    ready.until(lambda: "PORTAL_UNREACHABLE" in (ready.folder / "run.out").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    lines = (ready.folder / "run.out").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    events = [each["event"] for each in found]
    assert events.index("silo.started") < events.index("round.begun") < events.index("round.ended")
    assert events[-1] == "silo.stopped"
    assert "PORTAL_UNREACHABLE" in {each["code"] for each in found if each["event"] == "problem"}
    begun = [each["round"] for each in found if each["event"] == "round.begun"]
    over = {each["round"]: each["outcome"] for each in found if each["event"] == "round.ended"}
    assert begun == list(over) and set(over.values()) == {"finished"}
    assert {(each["silo"], each["study"]) for each in found if each["event"].startswith("round.")} == {
        ("site-1", portal.manifest.study)
    }
    assert set(lines) <= set((ready.folder / "silo.log").read_text().splitlines())
    assert (ready.folder / "run.log").read_text() == "", "no line for people beside them"


def test_a_refused_round_is_printed_with_its_reason(ready, portal):
    silo = ready
    silo.decide("revoke", reason="Not for us any more.")
    start(silo)
    portal.begin()
    portal.wait(lambda: portal.refused())
    silo.until(lambda: "round.refused" in (silo.folder / "run.out").read_text())
    found = [json.loads(line) for line in (silo.folder / "run.out").read_text().splitlines()]
    refused = next(each for each in found if each["event"] == "round.refused")
    assert refused["codes"] == ["APPROVAL_REVOKED"] and refused["sentence"].endswith(".")


def test_a_setting_that_stops_the_start_is_an_object_too(silo):
    (silo.folder / "portal.json").unlink()
    done = silo.command("run", str(silo.folder), "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "NOT_ENROLLED"), done.stderr


def started(ready, writing):
    """`silo run --json` with this end of a pipe as its output."""
    process = subprocess.Popen(
        [sys.executable, "-m", "silo_node.cli", "run", str(ready.folder), "--json"],
        cwd=ROOT, stdout=writing, stderr=(ready.folder / "run.log").open("wb"),
    )  # fmt: skip
    ready.processes.append(process)
    os.close(writing)
    return process


def test_a_reader_that_goes_away_stops_no_round(ready, portal):
    reading, writing = os.pipe()
    process = started(ready, writing)
    os.close(reading)
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    assert portal.refused() == []
    ended(ready, 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def full_pipe():
    """(reading, writing) end of a pipe that takes nothing more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n")
    os.set_blocking(writing, True)
    return reading, writing


def test_a_reader_that_stays_and_reads_nothing_stops_no_round(ready, portal):
    reading, writing = full_pipe()
    process = started(ready, writing)
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    assert portal.refused() == []
    ended(ready, 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert '"silo.stopped"' in (ready.folder / "silo.log").read_text()
    os.close(reading)


def test_what_a_slow_reader_missed_is_counted_where_it_is_missing_and_kept_in_the_log(tmp_path):
    reading, writing = full_pipe()
    program = (
        "import sys; from pathlib import Path; from silo_node.service import logs\n"
        "logs.configure(Path(sys.argv[1]), 'site-1', printed=True)\n"
        "for number in range(5000): logs.get().info('happened', number=number)\n"
        "print('now', file=sys.stderr, flush=True); sys.stdin.readline()\n"
        "logs.get().info('happened', number=5000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    with os.fdopen(reading) as output, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stderr.readline() == b"now\n", "it has not waited for its reader"
        found = []
        while len(found) < 1000:  # what was kept; then there is room again
            line = output.readline().strip()
            found += [json.loads(line)] if line else []
        process.stdin.write(b"\n")
        process.stdin.close()
        found += [json.loads(line) for line in output]
        assert process.wait(10) == 0
    numbers = [each["number"] for each in found if each["event"] == "happened"]
    [gap] = [each for each in found if each["event"] == "output.dropped"]
    assert numbers == [*range(len(numbers) - 1), 5000] and gap["lines"] == 5001 - len(numbers)
    assert found.index(gap) == len(found) - 2 and gap["silo"] == "site-1" and gap["timestamp"].endswith("Z")
    kept = [json.loads(line) for line in (tmp_path / "silo.log").read_text().splitlines()]
    assert [each["number"] for each in kept] == list(range(5001))


def test_no_uid_of_an_image_is_printed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path; from silo_node.service import logs\n"
         "logs.configure(Path(sys.argv[1]), 'site-1', printed=True)\n"
         "logs.get().error('problem', sentence='in 1.2.840.10008.1.2.3.4 \\x7f')", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert json.loads(done.stdout)["sentence"] == "in (uid) \x7f"
    assert "\x7f" not in done.stdout
