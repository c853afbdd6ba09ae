"""What a round costs the portal does not grow with the square of its silos: signatures, queries and what it reads."""

from __future__ import annotations

import pytest
from django.db import connection

from federation.models import Parcel, Purpose, RoundMessage, Stage
from federation.services.facts import coordinator_of
from federation.services.mail import Mail, read_mail
from tests.platform.federation.meter import metered, over


@pytest.mark.parametrize("sketch", [False, True])
def test_portal_verifies_each_signature_of_few_silos_a_few_times_however_many_there_are(network, monkeypatch, sketch):
    n, kinds = 24, 10 if sketch else 8
    wide = {"update_bound": 0.01} if sketch else {}
    meter = metered(network, monkeypatch, n, sketch=sketch, **wide)
    # Each message when it comes; each set once more when it is fixed, the ready ones twice.
    assert n * kinds < meter.verified() < 3 * n * kinds
    meter.check_queries()


def test_portal_verifies_each_signature_of_many_silos_once(network, monkeypatch):
    n = 40
    meter = metered(network, monkeypatch, n, sparse_from=n)
    # keys, row, bundles, ready, update, list, unmask, nonce, check, state; some stages go on without the last ones.
    assert n * 8 < meter.verified() <= n * 10
    meter.check_queries()


def test_who_sent_what_is_read_without_what_they_sent(network):
    """The index answers it: with many silos the envelopes of one stage are some hundred megabytes."""
    world = network(4, max_rounds=1)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN and w.round.stage == Stage.UPDATE)
    asked = []

    def plan(execute, sql, params, many, context):
        asked.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(plan):
        mail = read_mail(world.round, ("bundles", "ready"))
    assert mail.silos("bundles") == set(world.silos)
    ((sql, params),) = [each for each in asked if RoundMessage._meta.db_table in each[0]]
    assert "envelope" not in sql
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            assert any("COVERING INDEX message_header" in str(row) for row in cursor.fetchall())


def test_another_message_in_a_set_is_verified_anew(network):
    """What is remembered of a set goes with the digests of its messages, not with its round."""
    world = network(4, max_rounds=1)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN and w.round.stage == Stage.UPDATE)
    item, coordinator = world.round, coordinator_of(world.round)
    mail = read_mail(item, ("keys", "ready"))
    roster = coordinator.roster(mail.envelopes("keys"))
    whole = coordinator.ready(roster, mail.envelopes("ready"))
    assert coordinator.ready(roster, mail.envelopes("ready")) is whole
    fewer = coordinator.ready(roster, mail.envelopes("ready", item.ready_set[:3]))
    assert list(fewer.members) == item.ready_set[:3]
    assert fewer.digest != whole.digest


def test_what_the_states_say_is_read_when_enough_are_there_to_agree(network, monkeypatch):
    """Not anew for each that comes."""
    world = network(7, max_rounds=1)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN and w.round.stage == Stage.STATE)
    read, each = [], Mail.each
    monkeypatch.setattr(Mail, "each", lambda mail, kind, silos: read.append(kind) or each(mail, kind, silos))
    world.play(until=over)
    assert len(world.rounds[1].next_model_digest) == 71
    # Once to count them, once to keep them with the model.
    assert read.count("state") == 2


def test_boxes_of_few_silos_are_handed_out_by_receiver_and_gone_when_the_round_is_over(network):
    world = network(4, max_rounds=1)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN and w.round.stage == Stage.READY)
    assert Parcel.objects.filter(round=world.round).count() == 4 * 3
    (task,) = [each for each in world.silos["site-2"].assignments() if each["kind"] == "bundles"]
    assert sorted(task["boxes"]) == ["site-1", "site-3", "site-4"]
    world.play(until=over)
    assert world.rounds[1].stage == Stage.FINISHED
    assert not Parcel.objects.filter(round=world.rounds[1]).exists()
    kept = RoundMessage.objects.filter(round=world.rounds[1], kind="bundles")
    assert kept.count() == 4
    assert all(each.envelope == {} and each.digest.startswith("sha256:") for each in kept)
