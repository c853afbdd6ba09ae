"""A real portal and real silos in the protocol for many: the smallest study in which two silos need not be neighbours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.round_overhead import constant_plan
from demo.network import Network
from demo.study import draft
from protocol.secure_aggregation.sparse import promised

pytestmark = pytest.mark.timeout(240)
SILOS = 6


def test_a_study_of_many_completes_and_every_sum_is_verified(network_of: Callable[..., Network]) -> None:
    assert promised(SILOS).h < SILOS - 1
    network = network_of(hospitals=SILOS, lean=True)
    network.start()
    document = draft(
        silos=[hospital.name for hospital in network.hospitals],
        plan=constant_plan(5000, 2),
        modalities=["CR", "DX"],
        countries=[],
        title="Many",
        summary="Each masks with a neighbourhood.",
        min_patients=2,
    )
    document["aggregation"] |= {"sketch": False, "sparse_from": SILOS}
    study = network.run_study(document)
    report = network.wait_for(study, lambda found: found["state"] == "completed", seconds=200)
    summed = [row for row in report["rounds"] if row["number"] > 0]
    assert [row["stage"] for row in summed] == ["finished"] * 3
    assert all(len(row["members"]) == SILOS for row in summed), summed
