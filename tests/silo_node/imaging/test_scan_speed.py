"""A small version of the large folder: see tests/soak/test_soak_scan.py for the limits on time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.scan import _many


def test_a_second_scan_of_many_files_opens_only_the_changed_one(tmp_path: Path, dicom: Callable[..., Path]) -> None:
    dicom(tmp_path / "data/1.dcm", np.zeros((16, 16), np.uint8))
    facts = _many(tmp_path / "data", 2000)
    assert facts["files"] == facts["usable"] == facts["first_opened"] == 2000
    assert facts["second_opened"] == 1
    assert facts["first_peak_mb"] < 300 and facts["second_peak_mb"] < 300
