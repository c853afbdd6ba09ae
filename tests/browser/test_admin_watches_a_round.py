"""The admin's whole way in a real browser, with a real network behind it: sign in, approve a study, watch a round end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import synthetic
from demo.network import Network
from demo.plan import demo_plan
from demo.settings import silo_name
from demo.study import draft
from tests.browser import browsing

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not browsing.EXECUTABLE.exists(), reason=f"no Chromium at {browsing.EXECUTABLE}: apt-get install chromium"
    ),
]
PICTURES = Path(os.environ["PICTURES"]) if os.environ.get("PICTURES") else None
"""Where pictures of the pages go (`make pictures` sets docs/pictures); nowhere when unset."""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Four running hospitals with drawn pictures; nothing is submitted yet."""
    folders = synthetic.write(tmp_path / "data", hospitals=4, images=60)
    network = Network(tmp_path / "network", {silo_name(path.name): path for path in folders}, networks=("Classifier",))
    try:
        network.start()
        yield network
    finally:
        network.stop()


def picture(page: Any, name: str) -> None:
    if PICTURES is not None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(PICTURES / f"{name}.png"), full_page=True)


def test_admin_signs_in_approves_a_study_and_watches_a_round_end(network: Network) -> None:
    plan = demo_plan(max_rounds=3)
    study = network.submit(
        draft(
            silos=[hospital.name for hospital in network.hospitals],
            plan=plan,
            modalities=["CR", "DX"],
            countries=[],
            title="Pneumonia on portable chest X-rays",
            summary="Find pneumonia on chest X-rays of adults and children.",
            min_patients=5,
        )
    )
    account = network.accounts["admin"]
    with browsing.chromium() as browser:
        page = browsing.new_page(browser)
        browsing.sign_in(page, network.portal.address, account.username, account.password, account.totp_seed)
        assert (
            page.get_by_role("heading", name="Pneumonia")
            .or_(page.get_by_text("Pneumonia on portable"))
            .first.is_visible()
        )
        picture(page, "waiting")
        page.goto(f"{network.portal.address}/studies/{study}/")
        picture(page, "study")
        page.get_by_role("link", name="Approve").first.click()
        page.get_by_label("Reason").fill("Purpose and protection are in order.")
        page.get_by_role("button", name="Approve").click()
        page.wait_for_url(f"**/studies/{study}/")
        assert "hospital" in page.locator("main").inner_text()

        network.hospitals_decide(study)
        page.goto(f"{network.portal.address}/studies/{study}/hospitals/")
        assert page.get_by_text("approved").count() >= 4
        picture(page, "hospitals")
        network.wait_for(study, lambda report: any(row["number"] == 1 for row in report["rounds"]), seconds=120)
        page.goto(f"{network.portal.address}/studies/{study}/rounds/1.1/")
        picture(page, "round-live")
        # The page refreshes itself: nobody reloads it here.
        page.locator("#round-live").get_by_text("finished", exact=True).first.wait_for(timeout=90_000)
        picture(page, "round")
        network.wait_for(study, lambda report: report["state"] == "completed", seconds=120)
        for name, address in {
            "results": f"/studies/{study}/results/",
            "evidence": "/evidence/",
            "hospitals-list": "/hospitals/",
        }.items():
            page.goto(network.portal.address + address)
            picture(page, name)
        assert page.faults == []
