"""Tries that fail come back later and later, and never all at once."""

from __future__ import annotations

import queue
import random
from collections import Counter

import pytest

from silo_node.errors import PortalUnreachable
from silo_node.health.watching import AGAIN
from silo_node.service import listeners
from silo_node.service.backoff import LEAST_SHARE, Backoff
from silo_node.service.listeners import FIRST_PAUSE, LONGEST_PAUSE, Poller


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_success():
    class Most:
        def uniform(self, low, high):
            return high

    backoff = Backoff(0.5, 3.0, Most())
    assert [backoff.pause() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.pause() == 0.5


def test_pauses_lie_anywhere_below_what_they_could_be_but_are_never_nothing():
    backoff = Backoff(8.0, 8.0, random.Random(1))
    drawn = sorted(backoff.pause() for _ in range(1000))
    assert 8.0 * LEAST_SHARE <= drawn[0] < 0.6
    assert 7.8 < drawn[-1] <= 8.0
    assert 3.8 < sum(drawn) / 1000 < 4.8


@pytest.mark.parametrize("outage", [60.0, 600.0, 86_400.0])
def test_a_thousand_silos_do_not_come_back_in_one_second(outage):
    """Each polls with the pauses of `Poller` from the moment of the fault; counted are the first polls after its end."""
    arrivals: Counter[int] = Counter()
    for silo in range(1000):
        backoff, now = Backoff(FIRST_PAUSE, LONGEST_PAUSE, random.Random(silo)), 0.0
        while now < outage:
            now += backoff.pause()
        arrivals[int(now - outage)] += 1
    assert max(arrivals.values()) < 120
    assert max(arrivals) <= LONGEST_PAUSE


@pytest.mark.parametrize("outage", [60.0, 600.0, 86_400.0])
def test_what_the_silos_status_says_is_over_within_ten_seconds_without_a_rush(outage):
    """The looks of `Watch`: one small file, of which a thousand silos asked for 400 a second all the time before."""
    arrivals: Counter[int] = Counter()
    for silo in range(1000):
        backoff, now = Backoff(*AGAIN, random.Random(silo)), 0.0
        while now < outage:
            now += backoff.pause()
        arrivals[int(now - outage)] += 1
    assert max(arrivals.values()) < 240
    assert max(arrivals) <= AGAIN[1]


def test_the_poll_waits_longer_each_time_and_starts_afresh_when_the_portal_is_back(ready, monkeypatch):
    """The pauses that the poller asks for, with the portal away four times, then there, then away again."""
    node = ready.node()
    poller = Poller(node, queue.SimpleQueue())
    answers = [None] * 4 + [{"version": 1}] + [None]

    class Answer:
        def __init__(self, value):
            self.value = value

        def json(self):
            return self.value

    class Portal:
        def get(self, *_, **__):
            value = answers.pop(0)
            if value is None:
                raise PortalUnreachable("away")
            return Answer(value)

    class Stop:
        def __init__(self):
            self.waited = []

        def is_set(self):
            return not answers

        def wait(self, seconds):
            self.waited.append(seconds)

    class Whole(random.Random):
        def uniform(self, low, high):
            return high

    monkeypatch.setattr(listeners, "Backoff", lambda first, longest: Backoff(first, longest, Whole()))
    monkeypatch.setattr(poller, "_egress", Portal())
    node.stop = stop = Stop()
    poller.run()
    assert stop.waited == [0.4, 0.8, 1.6, 3.2, 0.4]
    node.close()
