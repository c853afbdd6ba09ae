"""The last good reading of a FHIR server stays fresh in a silo that is idle, and never goes back to what was said before."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from silo_node.consent import keeping, registry
from silo_node.consent.renewing import EVERY, Renewing, due
from silo_node.errors import Refused
from tests.silo_node.consent.fhir_examples import consent, gics
from tests.silo_node.test_status_faults import started
from tests.silo_node.test_status_sources import ago, fhir  # noqa: F401

FIRST, SECOND = "/fhir/Consent?_count=1", "/fhir/Consent?page=2"


@pytest.fixture
def server(fhir):  # noqa: F811
    """Two pages, of which a look for whether it is there reads the first only."""
    fhir.pages = {FIRST: ([consent(gics(), "1")], SECOND), SECOND: ([consent(gics("deny"), "2")], None)}
    fhir.asked.clear()
    return fhir


@pytest.fixture
def turn(silo, server):
    """One look of the thread; seconds until the next."""
    node = silo.node()
    yield Renewing(node).turn
    node.close()


def held(silo: Any) -> registry.Registry:
    return registry.load(silo.config, datetime.now(UTC), True)


def test_a_silo_that_was_idle_for_two_days_outlives_a_short_outage(silo, server):
    ago(silo.config.consent_kept, 48)
    started(silo)
    silo.until(lambda: not due(silo.config), seconds=10)
    server.kill()
    found = held(silo)
    assert found.decide("2").code == "DENIED", "all pages were read, not the first"
    assert (datetime.now(UTC) - found.loaded_at).total_seconds() < 60


def test_without_renewing_the_same_outage_stops_the_rounds(silo, server):
    ago(silo.config.consent_kept, 48)
    server.kill()
    with pytest.raises(Refused) as caught:
        held(silo)
    assert caught.value.code == "CONSENT_STALE"


def test_a_reading_is_renewed_once_half_of_its_hours_are_over(silo, server, turn):
    ago(silo.config.consent_kept, 11.9)
    assert turn() == EVERY and server.asked == []
    ago(silo.config.consent_kept, 12.1)
    assert turn() == EVERY and server.asked == [FIRST, SECOND]
    assert turn() == EVERY and len(server.asked) == 2
    silo.config.consent_kept.unlink()
    assert turn() == EVERY and len(server.asked) == 4
    ago(silo.config.consent_kept, -5)  # the clock was set back
    turn()
    assert not due(silo.config)


def test_a_server_that_is_away_is_asked_ever_more_seldom_and_what_is_kept_stays(silo, server, turn):
    ago(silo.config.consent_kept, 13)
    before = silo.config.consent_kept.read_bytes(), silo.config.consent_kept.stat().st_mtime
    server.kill()
    pauses = [turn() for _ in range(12)]
    assert 0 < pauses[0] <= 60 and max(pauses) <= 900 and max(pauses[4:]) > 60
    assert len(set(pauses)) == len(pauses), "drawn at random"
    assert (silo.config.consent_kept.read_bytes(), silo.config.consent_kept.stat().st_mtime) == before
    server.start()
    assert turn() == EVERY and not due(silo.config)


def test_half_a_search_is_never_kept(silo, server, turn):
    ago(silo.config.consent_kept, 13)
    before = silo.config.consent_kept.read_bytes()
    server.pages[SECOND] = ([5], None)
    assert turn() != EVERY
    assert silo.config.consent_kept.read_bytes() == before and due(silo.config)


def test_nothing_is_renewed_while_the_disk_is_full(silo, server):
    ago(silo.config.consent_kept, 13)
    toml = silo.folder / "silo.toml"
    toml.write_text(toml.read_text().replace("free_mb = 0", "free_mb = 1000000000"))
    node = silo.node()
    assert Renewing(node).turn() != EVERY
    node.close()
    assert server.asked == [] and due(silo.config)


def test_a_slow_search_does_not_bring_back_who_said_no_meanwhile(silo, server):
    config = silo.config

    class Slow(dict):  # type: ignore[type-arg]
        """Somebody says no, and a round reads it, after the first search has read its page of them."""

        def __getitem__(self, path: str) -> Any:
            before = super().__getitem__(path)
            if path == SECOND and "no" not in self:
                self["no"] = True
                self[FIRST] = ([consent(gics("deny"), "1")], SECOND)
                time.sleep(0.02)  # two readings of one clock tick would be of the same time
                held(silo)
            return before

    server.pages = Slow(server.pages)
    registry.renew(config)
    server.kill()
    assert held(silo).decide("1").code == "DENIED"


def test_an_older_reading_never_takes_the_place_of_a_later_one(tmp_path):
    path, now = tmp_path / "consent" / "kept", time.time()
    keeping.keep(path, b"a", now - 10)
    keeping.keep(path, b"b", now - 20)
    assert (path.read_bytes(), path.stat().st_mtime) == (b"a", pytest.approx(now - 10))
    keeping.keep(path, b"a", now - 5)
    assert path.stat().st_mtime == pytest.approx(now - 5)
    keeping.keep(path, b"b", now - 4)
    assert path.read_bytes() == b"b" and path.stat().st_mode & 0o777 == 0o600
    ago(path, -2)  # of before the clock was set back
    keeping.keep(path, b"c", now - 3)
    assert path.read_bytes() == b"c"
