"""Training at night only, by the wall clock, also in the nights in which the clock is set back or forward."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from silo_node.errors import UsageError
from silo_node.service.hours import Window

NIGHT = Window.parse("20:00-06:00")


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-07-01T17:59:59", False),  # 19:59:59 in summer
        ("2026-07-01T18:00:00", True),
        ("2026-07-02T03:59:59", True),
        ("2026-07-02T04:00:00", False),
        ("2026-12-01T18:30:00", False),  # 19:30 in winter
        ("2026-12-01T19:00:00", True),
    ],
)
def test_it_goes_by_the_clock_on_the_wall(berlin, moment, inside):
    assert NIGHT.holds(utc(moment)) is inside


@pytest.mark.parametrize(
    ("first", "hours"), [("2026-03-28T00:00", 9), ("2026-10-24T00:00", 11), ("2026-11-20T00:00", 10)]
)
def test_a_night_ends_at_six_also_when_the_clock_is_set(berlin, first, hours):
    """Hours of the night that begins on that evening: nine in March, eleven in October."""
    noon = utc(first) + timedelta(hours=11)
    quarters = sum(NIGHT.holds(noon + timedelta(minutes=15 * n)) for n in range(96))
    assert quarters == 4 * hours


@pytest.mark.parametrize(
    ("window", "after", "start"),
    [
        ("20:00-06:00", "2026-03-29T04:00:00", "2026-03-29T20:00:00+02:00"),
        ("20:00-06:00", "2026-10-25T05:00:00", "2026-10-25T20:00:00+01:00"),
        ("20:00-06:00", "2026-07-01T18:30:00", "2026-07-02T20:00:00+02:00"),
        ("02:30-05:00", "2026-03-28T20:00:00", "2026-03-29T03:30:00+02:00"),  # there is no 02:30 in that night
    ],
)
def test_it_says_when_it_begins_next(berlin, window, after, start):
    assert Window.parse(window).next_start(utc(after)).isoformat() == start


def test_a_window_within_one_day_is_none_at_night(berlin):
    day = Window.parse("09:00-17:00")
    assert day.holds(utc("2026-07-01T07:00:00"))
    assert not day.holds(utc("2026-07-01T15:00:00"))
    assert not day.holds(utc("2026-07-01T23:00:00"))


@pytest.mark.parametrize("text", ["20-06", "24:00-06:00", "20:00-20:00", "20:00 - 06:00", "night"])
def test_a_setting_that_is_no_window_is_named(silo, text):
    with (silo.folder / "silo.toml").open("a") as file:
        file.write(f'[hours]\ntrain = "{text}"\n')
    with pytest.raises(UsageError, match=r"hours\.train: "):
        _ = silo.config


def test_a_round_by_day_is_refused_with_the_time_when_it_may_be(ready, portal):
    now = datetime.now().astimezone()
    start, end = now + timedelta(hours=2), now + timedelta(hours=4)
    with (ready.folder / "silo.toml").open("a") as file:
        file.write(f'[hours]\ntrain = "{start:%H:%M}-{end:%H:%M}"\n')
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.refused(), 40)
    [(code, sentence)] = portal.refused()
    assert code == "NIGHT_ONLY"
    assert f"between {start:%H:%M} and {end:%H:%M}" in sentence
    assert f"from {start:%Y-%m-%dT%H:%M}" in sentence
    assert portal.finished(0), "the first model is made at any time: it opens no image"
    assert not portal.round(1).mail["keys"].get("site-1")
    assert [each["code"] for each in ready.status()["problems"]] == ["NIGHT_ONLY"]


def test_the_settings_are_read_again_on_a_signal_while_it_runs(ready, portal):
    """Hours change at once; another name does not, and is said to wait."""
    import signal

    process = ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    text = (ready.folder / "silo.toml").read_text()
    now = datetime.now().astimezone()
    hours = f'[hours]\ntrain = "{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=4):%H:%M}"\n'
    portal.holding = True
    (ready.folder / "silo.toml").write_text("keep_copies = true\n" + text + hours)
    process.send_signal(signal.SIGHUP)
    log = ready.folder / "silo.log"
    [line] = ready.until(lambda: [line for line in log.read_text().splitlines() if "settings.read" in line])
    assert json.loads(line)["after_a_new_start"] == ["keep_copies"]
    portal.go_on()
    portal.wait(lambda: "NIGHT_ONLY" in [code for code, _ in portal.refused()], 40)
    (ready.folder / "silo.toml").write_text("poll = 'broken")
    process.send_signal(signal.SIGHUP)
    ready.until(lambda: "not TOML" in (ready.folder / "run.log").read_text())
    assert process.poll() is None
