"""A small day: what `make soak` does with 500 rounds, with 24; and that the ruler itself measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import psutil
import pytest

from tests.silo_node import silo_day
from tests.silo_node.silo_day import Load, Moment


def test_a_day_of_24_rounds_leaves_the_silo_as_it_was(silo, portal):
    before, after = silo_day.live(silo, portal, rounds=24, warm=8)
    assert silo_day.rounds_that_ended(silo) == ["finished"] * 25
    assert portal.refused() == []
    assert silo_day.grown(before, after) == []
    assert {"silo", "broker", "training", "training's child", "control"} <= after.processes.keys()
    last = json.loads((silo.folder / "rounds.jsonl").read_text().splitlines()[-1])
    first = json.loads((silo.folder / "rounds.jsonl").read_text().splitlines()[0])
    assert last["ended"][:10] > first["ended"][:10], "a day has passed on its clock"


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (Load(13_000_000, 10, 5), "memory"),
        (Load(10_000_000, 13, 5), "open files"),
        (Load(10_000_000, 10, 8), "threads"),
    ],
)
def test_growth_is_seen(after, word):
    before = Moment({"silo": Load(10_000_000, 10, 5)}, Counter("a"))
    assert [word in each for each in silo_day.grown(before, Moment({"silo": after}, Counter("a")))] == [True]
    assert silo_day.grown(before, Moment(before.processes, Counter("aab"))) == ["a: 1 more", "b: 1 more"]


def test_memory_of_its_own_is_what_is_measured():
    program = "x = bytearray(b'1') * 30_000_000; print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert silo_day._load(psutil.Process(process.pid)).memory > 30_000_000
        process.communicate("\n")
