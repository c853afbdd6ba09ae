"""Rounds with many silos: each hears of its neighbours only, the sum is exact, whoever drops out, and every word is checked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from federation.models import GlobalModel, Parcel, Purpose, RoundMessage, Stage
from federation.services import books
from federation.services.facts import facts_of, parameters_of
from portal.problems import Refused
from protocol.canonical import digest
from protocol.manifest import ManifestError
from protocol.secure_aggregation.parameters import RoundParameters, threshold
from protocol.secure_aggregation.sparse import SparseParameters

N = 12


def training(world):
    return world.round.purpose == Purpose.TRAIN


def at(stage):
    return lambda world: world.round.purpose == Purpose.TRAIN and world.round.stage == stage


@pytest.fixture
def many(network):
    return lambda n=N, **settings: network(n, **{"sparse_from": n, "max_rounds": 1, **settings})


def test_a_study_of_many_runs_from_the_first_model_to_its_completion(many):
    world = many(max_rounds=2)
    world.play()
    assert [(item.number, item.attempt, item.purpose, item.stage) for item in world.rounds] == [
        (0, 1, Purpose.INITIAL, Stage.FINISHED),
        (1, 1, Purpose.TRAIN, Stage.FINISHED),
        (2, 1, Purpose.TRAIN, Stage.FINISHED),
        (3, 1, Purpose.EVALUATE, Stage.FINISHED),
    ]
    assert world.state == "completed"
    assert all(item.verified for item in world.rounds[1:])
    for item in world.rounds[1:3]:
        assert item.members == sorted(world.silos)
        sums = [silo.sums[item.key] for silo in world.silos.values() if item.key in silo.sums]
        assert len(sums) >= threshold(N)
        assert all(np.array_equal(each, world.plain_sum(item.key, item.members)) for each in sums)
    # Every model carries the signatures of floor(2n/3) + 1 of the plan's participants.
    assert {len(model.states) for model in GlobalModel.objects.all()} == {threshold(N)}


@pytest.mark.parametrize(("sparse_from", "kind"), [(6, SparseParameters), (7, RoundParameters)])
def test_the_mode_follows_from_the_manifest_alone(network, sparse_from, kind):
    world = network(6, sparse_from=sparse_from, max_rounds=1)
    world.play(until=training)
    assert type(parameters_of(world.round)) is kind
    assert facts_of(world.digest).sparse is (sparse_from == 6)
    world.play()
    assert world.state == "completed"
    assert RoundMessage.objects.filter(kind="row").exists() is (sparse_from == 6)


@pytest.mark.parametrize(
    "dies_before", ["keys", "row", "bundles", "ready", "chunks", "update", "list", "unmask", "nonce", "check", "state"]
)
def test_one_of_many_dropping_out_at_any_stage_leaves_the_exact_sum(many, dies_before):
    world = many(check_words="optional")
    world.play(until=training)
    world.silos["site-2"].stops_before = {dies_before}
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FINISHED, tries=30)
    item = world.rounds[1]
    summed = dies_before in ("list", "unmask", "nonce", "check", "state")
    assert item.stage == Stage.FINISHED, item.failure
    assert set(item.members) == set(world.silos) - (set() if summed else {"site-2"})
    sums = [silo.sums[item.key] for silo in world.silos.values() if item.key in silo.sums]
    assert all(np.array_equal(each, world.plain_sum(item.key, item.members)) for each in sums)
    assert item.verified is (dies_before not in ("list", "unmask", "nonce", "check"))
    assert ("site-2" in item.roster) == (dies_before != "keys")


def test_a_silo_that_was_away_at_the_list_comes_back_and_the_sum_is_verified(many):
    world = many()
    world.play(until=training)
    away = world.silos["site-5"]
    away.stops_before = {"list"}
    world.go_on(until=at(Stage.NONCE))
    away.dead, away.stops_before = False, set()
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FINISHED)
    item = world.rounds[1]
    assert item.stage == Stage.FINISHED, item.failure
    assert item.verified is True and "site-5" in item.members
    assert away.given[item.key]["sum"]["missed"] is not None
    assert world.silos["site-1"].given[item.key]["sum"]["missed"] is None
    assert "unmask" not in {kind for key, kind in away.sent if key == item.key}


def test_a_missing_check_word_ends_the_round_where_the_plan_wants_all(many):
    world = many(unmask_seconds=60)
    world.play(until=training)
    world.silos["site-7"].stops_before = {"check"}
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FAILED)
    world.later(61)
    item = world.rounds[1]
    assert (item.stage, item.failure["code"]) == (Stage.FAILED, "CHECK_MISSING")
    assert "Hospital site-7 (site-7) did not answer in time." in item.failure["sentence"]


def test_too_many_lost_end_the_attempt_in_words(many):
    world = many()
    world.play(until=training)
    for name in ("site-2", "site-3", "site-4", "site-5"):
        world.silos[name].dead = True
    world.play()
    world.later(601)
    item = world.rounds[1]
    assert (item.stage, item.failure["code"]) == (Stage.FAILED, "ROSTER_TOO_SMALL")
    assert item.failure["sentence"].startswith("Fewer than 9 silos could take part.")


@pytest.mark.parametrize("stage", ["list", "unmask"])
def test_a_round_whose_secrets_can_not_be_rebuilt_any_more_ends_in_words(many, stage):
    world = many(round_seconds=100, unmask_seconds=100)
    world.play(until=training)
    for name in list(world.silos)[:6]:
        world.silos[name].stops_before = {stage}
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FAILED)
    world.later(200)
    item = world.rounds[1]
    assert (item.stage, item.failure["code"], item.failure["stage"]) == (Stage.FAILED, "TOO_FEW_SILOS", stage)
    assert "too few neighbours" in item.failure["sentence"]


def test_a_silo_is_told_of_its_neighbours_only(many):
    """With 60 silos a silo draws 27 and is drawn by about as many: what it gets names nobody else."""
    world = many(60)
    world.play(until=at(Stage.LIST), steps=3000)
    item = world.round
    graph = {
        name: RoundMessage.objects.filter(round=item, kind="row", silo__name=name).exists() for name in world.silos
    }
    assert all(graph.values())
    hood = parameters_of(item).neighbourhood
    for silo in list(world.silos.values())[:10]:
        given = silo.given[item.key]
        near = {each["leaf"]["silo"] for each in given["neighbours"]["neighbours"]}
        assert len(near) <= hood.h + hood.most_in and len(near) < 59
        assert set(given["bundles"]["parcels"]) == near
        assert {"claim", "leaf"} == set(given["roster"]) - {"kind", "round"}


def test_portal_that_starts_anew_in_every_stage_goes_on_alike(many, monkeypatch):
    """Nothing but the stored messages counts: each request finds an empty process."""
    world = many(6)
    look = books.book_of

    def forgetful(item):
        books._books.clear()
        return look(item)

    for module in ("federation.services.books", "federation.services.many", "federation.selectors.many"):
        monkeypatch.setattr(f"{module}.book_of", forgetful, raising=False)
    world.play()
    assert world.state == "completed"
    assert all(item.verified for item in world.rounds[1:])


def test_book_that_was_fed_what_is_not_stored_is_thrown_away(many):
    """A transaction that came to nothing leaves no trace in the set that is fixed afterwards."""
    world = many(6)
    world.play(
        until=lambda w: at(Stage.KEYS)(w) and RoundMessage.objects.filter(round=w.round, kind="keys").count() == 3
    )
    item = world.round
    kept = RoundMessage.objects.filter(round=item, kind="keys").select_related("silo").last()
    RoundMessage.objects.filter(pk=kept.pk).delete()  # as if it had never been committed
    world.silos[kept.silo.name].dead = True
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FINISHED)
    assert kept.silo.name not in world.rounds[1].members
    assert world.rounds[1].verified is True


def test_message_of_another_silo_is_refused_and_leaves_no_trace(many):
    world = many(6)
    world.play(until=lambda w: at(Stage.ROW)(w) and RoundMessage.objects.filter(round=w.round, kind="row").exists())
    item = world.round
    stored = RoundMessage.objects.filter(round=item, kind="row").select_related("silo").first()
    other = next(silo for silo in world.silos.values() if silo.name != stored.silo.name)
    with pytest.raises(Refused) as refused:
        other.ask("POST", f"rounds/{item.key}/row", body=json.dumps(stored.envelope).encode())
    assert refused.value.code in ("BAD_MESSAGE", "MESSAGE_DIFFERS")
    world.play()
    assert world.state == "completed"


def test_late_signature_on_the_list_is_kept_and_never_relayed(many):
    world = many()
    world.play(until=training)
    late = world.silos["site-5"]
    late.stops_before = {"list"}
    world.go_on(until=at(Stage.UNMASK))
    item = world.round
    from protocol.secure_aggregation.sparse import wire

    with books.book_of(item) as book:
        claim, leaves = book.coordinator.claim("list"), book.coordinator.leaves_for("list", "site-5")
        updates = book.coordinator.updates_for("site-5")
    envelope = late.rounds[item.key].sign_list(claim, leaves, updates)
    late.stops_before = set()
    assert late.post(item.key, "list", envelope)["new"] is True
    assert RoundMessage.objects.get(round=item, kind="list", silo__name="site-5").late
    with books.book_of(item) as book:
        assert "site-5" not in book.coordinator._lists
    late.dead = False
    assert not [task for task in late.assignments() if task["kind"] == "unmask"]
    assert wire.read_claim(claim.as_dict()) == claim


def test_entries_of_known_partners_are_given_with_proof_once_a_set_is_fixed(many):
    world = many()
    world.play(until=at(Stage.READY))
    silo, key = world.silos["site-1"], world.round.key
    with pytest.raises(Refused, match="entries"):
        silo.ask("GET", f"rounds/{key}/entries", query="set=ready&silos=site-2")
    world.play(until=at(Stage.UPDATE))
    from protocol.secure_aggregation.sparse import wire

    answer = json.loads(silo.ask("GET", f"rounds/{key}/entries", query="set=ready&silos=site-2,site-9,nobody").body)
    leaves = wire.read_leaves(answer["leaves"])
    assert [leaf.silo for leaf in leaves] == ["site-2", "site-9"]
    with books.book_of(world.round) as book:
        root = book.coordinator.claim("ready").root
    for leaf in leaves:
        leaf.check(parameters_of(world.round), root)
    for query in ("set=roster&silos=site-2", "set=ready&silos=" + ",".join(["site-2"] * 65)):
        with pytest.raises(Refused, match="Entries"):
            silo.ask("GET", f"rounds/{key}/entries", query=query)


def test_page_of_a_round_says_with_how_many_each_hospital_masks(network):
    from federation.pages_selectors import round_view

    world = network(12, sparse_from=12, max_rounds=1)
    world.play(until=training)
    assert round_view(world.rounds[0]).masking == ""
    assert round_view(world.rounds[1]).masking == "each hospital with about 11 of 11 others, drawn anew in each round"


def test_page_of_a_round_of_few_says_that_all_mask_with_all(network):
    from federation.pages_selectors import round_view

    world = network(4, max_rounds=1)
    world.play(until=training)
    assert round_view(world.rounds[1]).masking == "each hospital with every other"


def test_boxes_are_gone_when_the_round_is_over(many):
    world = many(6)
    world.play(until=at(Stage.UPDATE))
    assert Parcel.objects.filter(round=world.round).count() > 6
    world.play()
    assert not Parcel.objects.exists()
    assert not {item.key for item in world.rounds} & books._books.keys()


def test_plan_of_many_with_a_sketch_is_refused(many):
    with pytest.raises(ManifestError, match="set it to false"):
        many(sketch=True)


def test_round_of_many_takes_no_sketch(many):
    world = many(6)
    world.play(until=at(Stage.NONCE))
    silo, key = world.silos["site-1"], world.round.key
    envelope = RoundMessage.objects.filter(round=world.round, kind="list", silo__name="site-1").get().envelope
    with pytest.raises(Refused, match="no 'sketch'"):
        silo.ask("POST", f"rounds/{key}/sketch", body=json.dumps(envelope).encode())


def test_largest_bundles_of_a_study_fit_into_a_message():
    """The portal takes envelopes of 4 MiB: a silo of 4,096 draws 197, and at most 303 may draw it."""
    from federation.api import ENVELOPE_LIMIT
    from protocol.messages import seal
    from protocol.secure_aggregation.sparse.messages import MOST_NEIGHBOURS, SparseBundles
    from protocol.signing import SigningKey

    names = [f"{'hospital' * 7}-{number:04}"[:63] for number in range(MOST_NEIGHBOURS)]
    message = SparseBundles(
        ctx="0" * 64,
        silo=names[0],
        roster=digest(b""),
        boxes=dict.fromkeys(names, bytes(1232)),
        hashes=dict.fromkeys(names[:255], (digest(b"a"), digest(b"b"))),
    )
    assert len(json.dumps(seal(message, SigningKey.generate()).as_dict())) < ENVELOPE_LIMIT
