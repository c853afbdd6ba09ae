"""One poisoning silo of six on real chest X-rays, three rounds: minutes of training, so not in `make test`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import poisoning_table

ROOT = Path(__file__).resolve().parents[2]
CHEST = Path(os.environ.get("CHEST", ROOT.parent / "shared" / "data" / "chest"))
GROSS = {"three", "ten", "negated", "unclipped", "backdoor_five", "garbage", "zero", "nan"}

pytestmark = pytest.mark.skipif(not CHEST.exists(), reason=f"no chest X-rays in {CHEST}: set CHEST to the folder")


def lines_of(*arguments: str) -> list[dict[str, Any]]:
    settings = {"--rounds": 3, "--start": 2, "--seeds": 1, "--gain-rounds": 6, "--tries": 5}
    arguments = (*(str(word) for pair in settings.items() for word in pair), *arguments)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.poisoning", str(CHEST), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_gross(lines: list[dict[str, Any]]) -> None:
    checked = [line for line in lines if line["kind"] == "round" and line["check"]]
    assert {line["attack"] for line in checked} >= GROSS
    for line in checked:
        attacked = line["attack"] in GROSS and line["round"] >= 2
        assert set(line["excluded"]) == ({"site_3b"} if attacked else set()), line
    replay = next(line["found"] for line in lines if line["kind"] == "replay")
    assert replay["honest"] == {"sketches": 3 * 5 * 6, "excluded": 0}
    for by_silo in replay["attacks"].values():
        for count in by_silo.values():
            assert (count["caught"], count["honest_excluded"]) == (count["tries"], 0)


def test_gross_attacks_are_left_out_in_the_round_in_which_they_come_and_no_honest_silo_ever_is() -> None:
    lines = lines_of()
    check_gross(lines)
    assert "left out in rounds" in poisoning_table.text(lines)


def test_gross_attacks_are_left_out_with_words_of_16_bits_too() -> None:
    lines = lines_of("--only", "gross", "--word-bits", "16")
    check_gross(lines)
    assert poisoning_table.words_section(lines).startswith("## The same with words of 16 bits")
