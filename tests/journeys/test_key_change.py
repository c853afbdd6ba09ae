"""A hospital changes its silo's key while a study runs: real portal, real silos, and a kill in the middle of a round."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from demo.hospital import Hospital
from demo.network import Network
from demo.portal import ROOT
from demo.silo_command import call_silo
from tests.journeys.conftest import run_constant

pytestmark = pytest.mark.timeout(240)
WEIGHTS = 20_000
ROUND_OPEN = 2  # exit code of a wrong moment


def test_the_key_is_changed_between_two_rounds_and_the_study_goes_on_without_the_hospital(
    network_of: Callable[..., Network],
) -> None:
    """Whether the kill fell into a round or between two: at the end both sides know one key, and everybody says why the
    hospital takes no part any more."""
    network = network_of(hospitals=4)
    network.start()
    names = [hospital.name for hospital in network.hospitals]
    study = run_constant(network, WEIGHTS, 150, title="A new key", summary="A hospital changes its key.")
    network.wait_for(study, lambda report: any(row["stage"] == "finished" for row in report["rounds"]), seconds=90)
    leaver = network.hospitals[0]
    assert leaver.process is not None
    leaver.process.kill()
    leaver.process = None
    before = status(leaver)["fingerprint"]
    code, said = call_silo(
        ["key", "rotate", str(leaver.folder), "--yes", "--json"], env=leaver.env, cwd=ROOT, ok=(0, ROUND_OPEN)
    )
    assert code == 0 or '"ROUND_OPEN"' in said, said
    leaver.start()
    until = time.monotonic() + 60
    while (leaver.folder / "keys" / "silo.key.next").exists():
        assert time.monotonic() < until, (leaver.folder / "run.log").read_text()
        network.check()
        time.sleep(0.2)
    after = status(leaver)["fingerprint"]
    assert after != before

    now = len(network.report(study)["rounds"])
    report = network.wait_for(
        study,
        lambda found: sum(row["stage"] == "finished" for row in found["rounds"][now:]) >= 2,
        seconds=60,
    )
    newest = [row for row in report["rounds"][now:] if row["stage"] == "finished"]
    assert all(row["members"] == names[1:] for row in newest[1:])

    researcher = network.person("researcher")
    page = researcher.get(f"/studies/{study}/hospitals/").text
    assert page.count("<code>KEY_ROTATED</code>") == 1 and "goes on without it" in page
    page = researcher.get(f"/silos/{leaver.name}/").text
    assert after in page and before not in page and "followed by the next" in page
    until = time.monotonic() + 30
    while "KEY_ROTATED" not in [each["code"] for each in status(leaver)["problems"]]:
        assert time.monotonic() < until, status(leaver)["problems"]
        time.sleep(0.2)


def status(hospital: Hospital) -> Any:
    return json.loads(hospital.silo("status", str(hospital.folder), "--json"))
