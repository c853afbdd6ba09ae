"""The limits on what a round may cost apart from training, on an otherwise quiet machine with two cores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {32_000: 0.5, 1_000_000: 0.8, 7_000_000: 2.5}


def test_round_overhead_stays_within_its_limits() -> None:
    command = [sys.executable, "-m", "benchmarks.round_overhead", "--json", "--sizes", ",".join(map(str, LIMITS))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert [case["d"] for case in cases] == list(LIMITS)
    for case in cases:
        assert case["seconds_median"] <= LIMITS[case["d"]], case
        assert case["portal_peak_rss_mb"] <= 250, case
        assert case["command_to_first_round_seconds"] <= 10, case
