"""A day of 500 rounds at one silo: no growth in memory, open files, threads or files on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.silo_node import silo_day
from tests.silo_node.conftest import SiloUnderTest
from tests.silo_node.portal_double import PortalDouble

ROUNDS, WARM = 500, 50


@pytest.mark.timeout(1800)
def test_after_a_day_of_500_rounds_the_silo_holds_no_more_than_in_the_morning(tmp_path: Path) -> None:
    portal = PortalDouble()
    silo = SiloUnderTest(tmp_path / "silo", portal)
    try:
        silo.enrol()
        silo.policy()
        before, after = silo_day.live(silo, portal, rounds=ROUNDS, warm=WARM)
        print(before, after, sep="\n")  # noqa: T201 - `pytest -s` shows the figures
        assert silo_day.rounds_that_ended(silo) == ["finished"] * (ROUNDS + 1)
        assert silo_day.grown(before, after) == []
        assert portal.refused() == []
    finally:
        silo.close()
        portal.close()
