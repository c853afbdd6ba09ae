"""The limits on reading a hospital's images, on an otherwise quiet machine with two cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHEST = Path(os.environ.get("CHEST", ROOT.parent / "shared" / "data" / "chest"))

pytestmark = pytest.mark.skipif(not CHEST.exists(), reason=f"no chest X-rays in {CHEST}: set CHEST to the folder")


def test_scan_and_cache_stay_within_their_limits_up_to_100_000_files() -> None:
    command = [sys.executable, "-m", "benchmarks.scan", str(CHEST), "--many", "100000", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["header_ratio"] <= 1.5, facts
    assert facts["cache_ratio"] >= 50, facts
    many = facts["many"]
    assert many["usable"] == many["first_opened"] == 100_000, facts
    assert max(many["first_peak_mb"], many["second_peak_mb"]) < 1000, facts
    assert many["second_opened"] == 1, facts
