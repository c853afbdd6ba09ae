"""Whole studies: the first model, training rounds, the last evaluation, with and without hospitals that drop out."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.models import Entry
from federation.models import GlobalModel, Purpose, RoundResult, Stage, StudyRun, SumChunk
from federation.storage import model_path
from protocol.canonical import decode
from protocol.model_state import ModelState, TensorSpec, read_front
from protocol.secure_aggregation.words import packed_bytes, signed


def test_a_study_runs_from_the_first_model_to_its_completion(network):
    world = network(4, max_rounds=2)
    world.play()
    assert [(item.number, item.attempt, item.purpose, item.stage) for item in world.rounds] == [
        (0, 1, Purpose.INITIAL, Stage.FINISHED),
        (1, 1, Purpose.TRAIN, Stage.FINISHED),
        (2, 1, Purpose.TRAIN, Stage.FINISHED),
        (3, 1, Purpose.EVALUATE, Stage.FINISHED),
    ]
    assert world.state == "completed"
    assert [model.number for model in GlobalModel.objects.filter(study=world.study)] == [0, 1, 2]
    assert [result.model_number for result in RoundResult.objects.order_by("round__number")] == [0, 1, 2]


def test_the_published_sum_is_the_exact_sum_of_the_members_updates(network):
    world = network(4, max_rounds=3)
    world.play(until=lambda w: w.round.stage == Stage.STATE and w.round.purpose == Purpose.TRAIN)
    item = world.round
    assert item.members == sorted(world.silos)
    assert np.array_equal(world.stored_sum(item), world.plain_sum(item.key, item.members))


@pytest.mark.parametrize("sketch", [False, True])
@pytest.mark.parametrize(("word_bits", "fraction_bits"), [(24, 12), (16, 6), (12, 4)])
def test_a_study_with_shorter_words_has_the_exact_sum_and_the_same_model_everywhere(
    network, word_bits, fraction_bits, sketch
):
    # Random words are longer than the bound for which these have the range; no hospital would send them with a sketch.
    spread = {"update_bound": 0.05} if sketch else {}
    world = network(4, max_rounds=1, word_bits=word_bits, fraction_bits=fraction_bits, sketch=sketch, **spread)
    world.play()
    (item,) = (item for item in world.rounds if item.purpose == Purpose.TRAIN)
    assert item.verified is True
    plain = world.plain_sum(item.key, item.members)
    assert SumChunk.objects.get(round=item, index=0).size == packed_bytes(len(plain), word_bits)
    found = [silo.sums[item.key] for silo in world.silos.values() if item.key in silo.sums]
    assert len(found) >= 3  # t of four; who comes later takes the model that they signed
    assert {tuple(signed(each, word_bits)) for each in found} == {tuple(signed(plain, word_bits))}
    last = GlobalModel.objects.get(study=world.study, number=1)
    assert all(last.digest in silo.states for silo in world.silos.values())


def test_portal_and_silos_compute_the_same_next_model(network, settings):
    world = network(4, max_rounds=1)
    world.play()
    last = GlobalModel.objects.get(study=world.study, number=1)
    state = ModelState.load(settings.MODEL_FOLDER / last.path)
    assert state.digest == last.digest
    for silo in world.silos.values():
        assert np.array_equal(silo.states[last.digest].vector, state.vector)
    assert len(last.states) == 3  # t of four


@pytest.mark.parametrize("dies_before", ["chunks", "update", "list", "unmask", "state"])
def test_one_of_four_dropping_out_leaves_the_exact_sum_of_the_others(network, dies_before):
    world = network(4, max_rounds=2)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    victim = world.silos["site-2"]
    victim.stops_before = {dies_before}
    world.go_on(until=lambda w: w.rounds[1].stage in (Stage.STATE, Stage.FINISHED))
    item = world.rounds[1]
    expected = {"site-1", "site-3", "site-4"} | ({"site-2"} if dies_before in ("list", "unmask", "state") else set())
    assert set(item.members) == expected
    assert np.array_equal(world.stored_sum(item), world.plain_sum(item.key, item.members))


@pytest.mark.parametrize("dies_before", ["keys", "bundles", "ready"])
def test_a_silo_lost_in_the_set_up_is_left_out(network, dies_before):
    world = network(4, max_rounds=1)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    world.silos["site-3"].stops_before = {dies_before}
    world.go_on(until=lambda w: w.rounds[1].stage == Stage.FINISHED)
    item = world.rounds[1]
    assert item.stage == Stage.FINISHED
    assert item.members == ["site-1", "site-2", "site-4"]
    assert ("site-3" in item.roster) == (dies_before != "keys")


def test_a_silo_that_was_away_fetches_the_model_that_the_others_signed(network):
    world = network(4, max_rounds=2)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
    world.silos["site-4"].dead = True
    world.go_on(until=lambda w: w.round.number == 2)
    back = world.silos["site-4"]
    back.dead = False
    world.go_on()
    assert world.state == "completed"
    assert world.rounds[1].members == ["site-1", "site-2", "site-3"]
    assert world.rounds[2].members == sorted(world.silos)
    assert back.announced[world.rounds[2].key]["model"] in back.states


def test_weights_of_the_manifest_count_in_the_total(network):
    world = network(4, max_rounds=1, weights={"site-1": 3})
    world.play()
    assert world.rounds[1].total_weight == 6


def test_each_round_leaves_its_entries_in_the_log(network):
    world = network(4, max_rounds=1)
    world.play()
    train = world.rounds[1]
    entries = Entry.objects.filter(subject_id=train.key).order_by("id")
    types = [entry.type for entry in entries]
    assert types[0] == "round.started"
    assert types[-1] == "round.finished"
    left = [decode(bytes(entry.record))["data"] for entry in entries if entry.type == "update.exported"]
    assert [row["kind"] for row in left] == ["update"] * 4 + ["check"] * 4
    assert {row["bytes"] for row in left if row["kind"] == "check"} == {8}


def test_the_masked_updates_are_gone_when_the_round_is_over(network, settings):
    world = network(4, max_rounds=2)
    world.play()
    left = [path for path in settings.CHUNK_FOLDER.rglob("*") if path.is_file()]
    assert left == []


def test_the_mean_auc_comes_from_the_sum_and_a_site_with_one_class_does_not_count(network):
    world = network(4, max_rounds=1)
    world.silos["site-1"].auc = None
    world.silos["site-2"].auc = 0.9
    world.play()
    result = RoundResult.objects.get(round=world.rounds[1])
    assert result.silos_with_auc == 3
    assert result.auc_mean == pytest.approx((0.9 + 0.8 + 0.8) / 3, abs=1e-6)
    assert result.loss == pytest.approx(0.5, abs=1e-5)


def test_no_gain_any_more_ends_the_training_early(network):
    world = network(4, max_rounds=50, patience=2, min_delta=0.01)
    world.play()
    assert world.state == "completed"
    assert [item.purpose for item in world.rounds].count(Purpose.TRAIN) == 3
    assert StudyRun.objects.get(study=world.study).stop_cause == "plateau"


OPEN_TABLE = (
    TensorSpec("stem.weight", (4, 5), "frozen"),
    TensorSpec("layer.weight", (8, 16)),
    TensorSpec("layer.bias", (8,)),
    TensorSpec("norm.mean", (4,), "local"),
    TensorSpec("head.weight", (3, 8)),
)


@pytest.mark.parametrize("sketch", [False, True])
def test_a_study_whose_scales_follow_the_sum_has_the_same_model_and_scales_everywhere(network, sketch):
    settings = {"word_bits": 16, "fraction_bits": None, "error_feedback": True, "sketch": sketch, "update_bound": 0.02}
    world = network(4, max_rounds=3, table=OPEN_TABLE, **settings)
    world.play()
    assert world.state == "completed"
    models = [GlobalModel.objects.get(study=world.study, number=number) for number in range(4)]
    front = [read_front(model_path(model.digest)) for model in models]
    assert {len(each.header) for each in front} == {len(front[0].header)}
    assert front[0].scales == world.manifest.fixed_point().initial(OPEN_TABLE)
    assert len({each.scales for each in front}) > 1
    frozen = [ModelState.load(model_path(model.digest)).tensor("stem.weight").tobytes() for model in models]
    assert len(set(frozen)) == 1
    assert all(models[-1].digest in silo.states for silo in world.silos.values())
    assert {model.length for model in models} == {8 * 16 + 8 + 24}
