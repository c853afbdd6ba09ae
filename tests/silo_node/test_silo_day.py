"""A small day: what `make soak` does with 500 rounds, with 24; and that the ruler itself measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import psutil
import pytest

from tests.silo_node import silo_day
from tests.silo_node.silo_day import Load, Moment


def test_a_day_of_24_rounds_leaves_the_silo_as_it_was(silo, portal):
    silo.settings(
        (silo.folder / "silo.toml").read_text().split("[training]")[0], limits="free_mb = 0\ncache_gb = 0.003\n"
    )
    for number, name in enumerate(("older", "newer")):
        path = silo.config.cache / name / "uint8.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(2_000_000))
        os.utime(path, (1_000_000 + number,) * 2)
    before, after = silo_day.live(silo, portal, rounds=24, warm=8)
    assert silo_day.rounds_that_ended(silo) == ["finished"] * 25
    assert portal.refused() == []
    assert silo_day.grown(before, after) == []
    assert silo_day.removed_but_open(silo) == [], "a sum's or an update's file takes no room after its round"
    assert {"silo", "broker", "training", "training's child", "control"} <= after.processes.keys()
    assert [path.name for path in silo.config.cache.iterdir()] == ["newer"], "the hourly work was done"
    last = json.loads((silo.folder / "rounds.jsonl").read_text().splitlines()[-1])
    first = json.loads((silo.folder / "rounds.jsonl").read_text().splitlines()[0])
    assert last["ended"][:10] > first["ended"][:10], "a day has passed on its clock"


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (Load(13_000_000, 10, 5), "memory"),
        (Load(10_000_000, 13, 5), "open files"),
        (Load(10_000_000, 10, 8), "threads"),
        (Load(10_000_000, 10, 5, 9), "connections"),
    ],
)
def test_growth_is_seen(after, word):
    before = Moment({"silo": Load(10_000_000, 10, 5)}, Counter("a"))
    assert [word in each for each in silo_day.grown(before, Moment({"silo": after}, Counter("a")))] == [True]
    assert silo_day.grown(before, Moment(before.processes, Counter("aab"))) == ["a: 1 more", "b: 1 more"]


def test_resident_memory_is_what_is_measured():
    program = "x = bytearray(b'1') * 30_000_000; print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert silo_day._load(psutil.Process(process.pid)).memory > 30_000_000
        process.communicate("\n")
