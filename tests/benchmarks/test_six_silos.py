"""The frame of the learning benchmarks trains and scores as the product does: it breaks here, not in an hour's run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.six_silos import Federation
from demo.plan import demo_plan

CHEST = Path(os.environ.get("CHEST", Path(__file__).resolve().parents[3] / "shared" / "data" / "chest"))

pytestmark = pytest.mark.skipif(not CHEST.exists(), reason=f"no chest X-rays in {CHEST}: set CHEST to the folder")


def test_six_silos_of_the_benchmarks_train_and_score_a_model() -> None:
    federation = Federation(CHEST, demo_plan())
    state = federation.first(1)
    update = federation.update(state, "site_2", 1)
    assert update.dtype == np.float32 and 0 < np.linalg.norm(update) < 10
    assert set(federation.aucs(state)) == {"site_1", "site_2", "site_3"}
