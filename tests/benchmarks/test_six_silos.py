"""The frame of the learning benchmarks trains and scores as the product does: it breaks here, not in an hour's run."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.six_silos import Federation
from demo.plan import demo_plan

CHEST = Path(os.environ.get("CHEST", Path(__file__).resolve().parents[3] / "shared" / "data" / "chest"))

pytestmark = pytest.mark.skipif(not CHEST.exists(), reason=f"no chest X-rays in {CHEST}: set CHEST to the folder")


def few(folder: Path, images: int) -> Path:
    """The first `images` lines of each site's list, with their files."""
    for site in sorted(path for path in CHEST.iterdir() if (path / "labels.csv").is_file()):
        with (site / "labels.csv").open(newline="") as file:
            table = csv.DictReader(file)
            rows = list(table)
        # Both sides of the split and both classes, as far as the site has them.
        rows = [row for split in ("train", "test") for label in ("0", "1")
                for row in [row for row in rows if (row["split"], row["label"]) == (split, label)][:images]]  # fmt: skip
        for row in rows:
            (folder / site.name / row["file"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(site / row["file"], folder / site.name / row["file"])
        with (folder / site.name / "labels.csv").open("w", newline="") as file:
            copy = csv.DictWriter(file, table.fieldnames or ())
            copy.writeheader()
            copy.writerows(rows)
    return folder


def test_six_silos_of_the_benchmarks_train_and_score_a_model(tmp_path: Path) -> None:
    federation = Federation(few(tmp_path, 8), demo_plan())
    state = federation.first(1)
    update = federation.update(state, "site_2", 1)
    assert update.dtype == np.float32 and 0 < np.linalg.norm(update) < 10
    assert set(federation.aucs(state)) == {"site_1", "site_2", "site_3"}
