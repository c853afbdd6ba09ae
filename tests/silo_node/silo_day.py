"""A day in the life of a silo: many short rounds of the real `silo run`, over 24 hours of its clock. Used by tests."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.silo_node.conftest import ROOT, SiloUnderTest
from tests.silo_node.portal_double import PortalDouble

DAY = 86_400.0
_HEX = re.compile(r"[0-9a-f]{64}")
SECONDS_A_ROUND = 0.4
"""About; so the hourly work is done some 24 times."""


@dataclass(frozen=True)
class Load:
    """What one process holds. memory: resident bytes, also those that it shares with the process it was forked from: which
    of these it has a copy of its own of changes over the day, and is no growth. connections: sockets; each client keeps its
    last ones open for its next request. handles: what else is open."""

    memory: int
    handles: int
    threads: int
    connections: int = 0


@dataclass(frozen=True)
class Moment:
    """The silo at one time. processes: name -> load. files: name without digests -> how many; not its own log's tiles."""

    processes: dict[str, Load]
    files: Counter[str]


def live(silo: SiloUnderTest, portal: PortalDouble, *, rounds: int, warm: int) -> tuple[Moment, Moment]:
    """`rounds` rounds over a day; the silo after `warm` of them and at the end. An opt-out list is read in each, the folder
    of images is scanned at the start and each hour."""
    (silo.config.data / "no-image.txt").write_text("something to scan")
    offset = silo.folder.parent / "offset"
    offset.write_bytes(struct.pack("<d", 0.0))
    (silo.folder / "opt_out.csv").write_text("PatientID,date\nPAT-0001,2026-01-01\n")
    portal.rounds = rounds
    portal.make_study()
    silo.decide()
    speed = DAY / (rounds * SECONDS_A_ROUND)
    with (silo.folder / "run.log").open("ab") as log:
        command = [sys.executable, "-m", "tests.silo_node.silo_clock", str(silo.folder), str(offset), str(speed)]
        silo.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    portal.holding = True
    portal.begin()
    first = None
    for number in range(rounds + 1):
        portal.wait(lambda number=number: portal.finished(number), 60)
        if number == warm:
            first = look(silo, warm + 1)
        if number == rounds:
            break
        _let_time_pass(portal, offset, DAY / rounds)
        _forget(portal)
        portal.go_on(hold=True)
    assert first is not None
    return first, look(silo, rounds + 1)


def _let_time_pass(portal: PortalDouble, offset: Path, seconds: float) -> None:
    """Both clocks go forward together, while no round is open."""
    portal.clock_shift += seconds
    with offset.open("r+b") as file:
        file.write(struct.pack("<d", portal.clock_shift))


def _forget(portal: PortalDouble) -> None:
    """The portal's own memory is not what is measured."""
    portal.received.clear()
    for played in portal.played[:-2]:
        played.chunks.clear()
        played.summed = []


def look(silo: SiloUnderTest, rounds: int) -> Moment:
    """What each of its processes holds, and which files there are, when so many rounds have ended and nothing is going on."""
    silo.until(lambda: len(rounds_that_ended(silo)) == rounds and not list((silo.folder / "runs").iterdir()))
    seen: list[Moment] = []

    def quiet() -> bool:
        seen.append(Moment({name: _load(process) for name, process in _processes(silo)}, _files(silo.folder)))
        # Started by then, and at rest: four looks, a quarter of a second or more apart, that see the same.
        last = seen[-4:]
        alike = all(_alike(each, last[0]) for each in last)
        threading.Event().wait(0.25)
        return len(last) == 4 and alike and "control" in last[0].processes

    silo.until(quiet, 60)
    return seen[-1]


def _alike(now: Moment, then: Moment) -> bool:
    return (
        now.files == then.files
        and now.processes.keys() == then.processes.keys()
        and all(
            abs(now.processes[name].memory - load.memory) < 500_000 and now.processes[name].handles == load.handles
            for name, load in then.processes.items()
        )
    )


def _files(folder: Path) -> Counter[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # A model that was made here has its signers' number beside it, one that was fetched has not: no growth, as long as
    # each such note has its model.
    notes = {name for name in names if name.startswith("models/") and name.replace(".json", ".state") in names - {name}}
    return Counter(_HEX.sub("HEX", name) for name in names - notes if not name.startswith("log/"))


def _processes(silo: SiloUnderTest) -> Iterator[tuple[str, psutil.Process]]:
    main = psutil.Process(silo.processes[-1].pid)
    yield "silo", main
    for child in main.children():
        name = next((each for each in ("control", "training") if each in child.cmdline()), "broker")
        yield name, child
        for inner in child.children():
            yield f"{name}'s child", inner


def _load(process: psutil.Process) -> Load:
    connections = len(process.net_connections("all"))
    return Load(process.memory_info().rss, process.num_fds() - connections, process.num_threads(), connections)


def removed_but_open(silo: SiloUnderTest) -> list[str]:
    """Files of its folder that have no name any more, and still take room because one of its processes has them open."""
    found = []
    for _, process in _processes(silo):
        for handle in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                target = str(handle.readlink())
                if target.startswith(str(silo.folder)) and target.endswith(" (deleted)"):
                    found.append(target)
    return found


def rounds_that_ended(silo: SiloUnderTest) -> list[str]:
    """The outcome of each."""
    return [json.loads(line)["outcome"] for line in (silo.folder / "rounds.jsonl").read_text().splitlines()]


def grown(before: Moment, after: Moment) -> list[str]:
    """What has grown, in words: memory by a tenth and a MB, handles or threads by more than two, files at all.

    connections: by more than eight: two clients, each of which may keep four (egress.py), had none at the first look."""
    found = []
    for name, now in after.processes.items():
        then = before.processes.get(name)
        if then is None:
            found.append(f"{name} is new")
            continue
        if now.memory > 1.1 * then.memory + 1_000_000:
            found.append(f"{name}: {then.memory} -> {now.memory} bytes of memory")
        if now.handles > then.handles + 2:
            found.append(f"{name}: {then.handles} -> {now.handles} open files")
        if now.connections > then.connections + 8:
            found.append(f"{name}: {then.connections} -> {now.connections} connections")
        if now.threads > then.threads + 2:
            found.append(f"{name}: {then.threads} -> {now.threads} threads")
    found += [f"{name}: {count} more" for name, count in sorted((after.files - before.files).items())]
    return found
