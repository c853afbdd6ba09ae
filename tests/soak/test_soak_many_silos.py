"""A round of 1,000 silos of whom 50 vanish: minutes, so not in `make test`. The benchmark checks the sum itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(3600)
def test_thousand_silos_are_summed_and_a_silos_work_follows_its_neighbours() -> None:
    command = [sys.executable, "-m", "benchmarks.many_silos", "--json", "--silos", "128,1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3500)
    assert done.returncode == 0, done.stdout + done.stderr
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    assert (large["n"], large["lost"]) == (1000, 50)
    assert large["summed"] >= 950
    # Eight times the silos: seconds and bytes grow as the neighbours do, not as the silos. Half more for noise.
    growth = large["k"] / small["k"]
    assert growth < 4
    assert large["silo_seconds_median"] <= 1.5 * growth * small["silo_seconds_median"]
    assert large["bytes_sent"] <= growth * small["bytes_sent"]
    assert large["bytes_received"] <= 1.25 * growth * small["bytes_received"]
    assert large["peak_rss_mb"] <= 1024
