"""The silo's numbers for Prometheus: what a scraper reads, who may, and that no number names anybody."""

from __future__ import annotations

import json
import stat

import pytest
from prometheus_client.parser import text_string_to_metric_families

from silo_node import __version__
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.evidence.egress_log import EgressLog
from silo_node.health import status
from silo_node.page import entries
from silo_node.page.app import make_app
from tests.silo_node.conftest import SiloUnderTest
from tests.silo_node.imaging.conftest import write_dicom
from tests.silo_node.page.conftest import Visitor

TOKEN = "a-token-of-the-hospitals-prometheus"


def read(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values...) -> value, labels by name, as Prometheus reads them."""
    return {
        (sample.name.removeprefix("consilium_silo_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lived(silo: SiloUnderTest) -> None:
    """A silo that has sent something, ended two rounds, and stopped without being told to."""
    log = EgressLog(silo.folder / "egress.db")
    row = log.sending(kind="update", method="PUT", path="/x", round_id=None, body=1000, head=10, digest="sha256:00")
    log.answered(row, kind="update", status=200, received=7, round_id=None)
    log.close()
    silo.config.rounds.write_text("".join(json.dumps({"outcome": each}) + "\n" for each in ("finished", "refused")))
    live = status.Live(silo.config)
    live.update(state="idle")
    live.problem("CLOCK_SKEW", "The clock is off.")
    live.problem("POLICY_REFUSES", "Herr Mustermann's study.", about="st-one")


def test_a_scraper_reads_what_status_says(silo: SiloUnderTest):
    lived(silo)
    found = read(silo.command("metrics", str(silo.folder)).stdout)
    assert found[("running",)] == 0
    assert found[("info", silo.config.name, __version__)] == 1
    assert found[("problems", "here", "NOT_RUNNING")] == 1
    assert found[("problems", "study", "POLICY_REFUSES")] == 1
    assert found[("rounds_total", "finished")] == 1
    assert found[("sent_bytes_total", "update")] == 1010
    assert found[("received_bytes_total", "update")] == 7
    assert found[("disk_free_bytes",)] > 0


def test_the_same_numbers_come_as_json_and_as_a_file_for_node_exporter(silo: SiloUnderTest, tmp_path):
    lived(silo)
    names = {each["name"] for each in json.loads(silo.command("metrics", str(silo.folder), "--json").stdout)["samples"]}
    path = tmp_path / "silo.prom"
    path.write_text("the last minute's")
    assert silo.command("metrics", str(silo.folder), "--out", str(path)).returncode == 0
    assert {"consilium_silo_" + key[0] for key in read(path.read_text())} == names
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_no_number_names_anybody(silo: SiloUnderTest):
    lived(silo)
    write_dicom(silo.config.data / "Mustermann.dcm", patient="PAT-GEHEIM")
    silo.command("scan", str(silo.folder))
    text = silo.command("metrics", str(silo.folder)).stdout
    assert not [word for word in ("Mustermann", "GEHEIM", str(silo.config.data)) if word in text]


@pytest.fixture
def page(silo: SiloUnderTest):
    """Makes the page with what stands in the token's file; None: not set."""
    made = []

    def make(content: str | None) -> Visitor:
        if content is not None:
            (silo.folder / "token").write_text(content)
            path = silo.folder / "silo.toml"
            path.write_text(path.read_text().replace("[page]\n", '[page]\nmetrics_token_file = "token"\n'))
        made.append(entries.opened(silo.config))
        return Visitor(make_app(Config.load(silo.folder), made[-1]))

    yield make
    for each in made:
        each.close()


def test_only_the_hospitals_prometheus_reads_them_from_the_page(silo: SiloUnderTest, page):
    lived(silo)
    visitor = page(TOKEN + "\n")
    answer = visitor.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert read(answer.text)[("problems", "here", "NOT_RUNNING")] == 1
    for given in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}):
        refused = visitor.get("/metrics", headers=given)
        assert refused.status_code == 401 and "consilium" not in refused.text


def test_without_a_token_there_is_no_such_address(page):
    visitor = page(None)
    assert visitor.get("/metrics", headers={"Authorization": "Bearer "}).status_code == 404


@pytest.mark.parametrize("content", ["", "short\n", "\n" + TOKEN])
def test_a_token_that_anybody_could_guess_keeps_the_page_closed(page, content: str):
    with pytest.raises(UsageError, match="metrics_token_file") as caught:
        page(content)
    assert caught.value.code == "PAGE_TOKEN"
