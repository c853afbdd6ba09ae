"""The next model of many tensors, made piece by piece at the portal, has the bits of the one that a silo makes at once."""

from __future__ import annotations

import random
import shutil
from typing import Any

import numpy as np
import pytest

from federation.models import Purpose, Stage, SumChunk
from federation.services import finishing, stepping
from federation.services.facts import parameters_of
from federation.storage import SUM, AtomicFile, chunk_path, model_path
from protocol.evaluation import encode_tail
from protocol.model_state import ModelState, TensorSpec, read_front, slices, update_words
from protocol.secure_aggregation import parameters as layout
from protocol.secure_aggregation.words import lane, pack
from protocol.server_step import ServerStepError
from silo_node.rounds.model_store import ModelStore

PIECE = 1000
TABLE = (
    TensorSpec("stem.weight", (7, 33), "frozen"),
    *(TensorSpec(f"scale{number}", (1 + number % 9,)) for number in range(300)),
    TensorSpec("block.weight", (PIECE, 3)),
    TensorSpec("block.frozen", (2 * PIECE, 40), "frozen"),
    TensorSpec("norm.running_mean", (5,), "local"),
    *(
        TensorSpec(f"pair{number}", (3,), kind)
        for number in range(60)
        for kind in ("shared", "frozen")[number % 2 :][:1]
    ),
    TensorSpec("head.weight", (19, 11)),
    TensorSpec("head.frozen", (4,), "frozen"),
)


@pytest.fixture
def at_sum(network, monkeypatch):
    """at_sum(**settings) -> (world, the training round, as if its four members' updates had come)."""
    monkeypatch.setattr(layout, "CHUNK_WORDS", PIECE)

    def make(**settings: Any) -> tuple[Any, Any]:
        world = network(4, table=TABLE, **settings)
        world.play(until=lambda w: w.round.purpose == Purpose.TRAIN)
        item = world.round
        item.members, item.total_weight, item.stage = sorted(world.silos), 4, Stage.SUM
        item.save()
        return world, item

    return make


def drawn_sum(world: Any, item: Any, seed: int = 1) -> np.ndarray:
    """Words that honest updates could add up to; one tensor's are all zero."""
    fixed, front = world.manifest.fixed_point(), read_front(model_path(item.model_digest))
    segments = fixed.segments(front.table, front.scales)
    bounds = np.repeat(fixed.word_bounds(segments, [1] * 4), [words for words, _ in segments])
    rng = np.random.default_rng(seed)
    share = np.repeat(2.0 ** -rng.integers(0, 9, 400), 20)[: len(bounds)]
    words = np.floor(rng.uniform(-1, 1, len(bounds)) * bounds * share)
    words[:1] = 0
    return words.astype(f"<i{lane(fixed.word_bits).itemsize}").view(lane(fixed.word_bits))


def make_pieces(world: Any, item: Any, summed: np.ndarray, order: list[int]) -> None:
    parameters = parameters_of(item)
    bins = world.manifest.plan.evaluation.bins
    tail = encode_tail(loss=0.5, auc=0.5, histograms=np.ones((2, bins), dtype=np.int64)) * np.uint64(4)
    for index in order:
        kind, start, stop = parameters.chunk_range(index)
        if kind == "body":
            stepping.step_piece(item, index, summed[start:stop])
        data = pack(summed[start:stop], parameters.word_bits) if kind == "body" else tail.tobytes()
        with AtomicFile(chunk_path(item.key, SUM, index), expected=parameters.chunk_bytes(index)) as file:
            file.write(data)
            file.keep(durable=False)
        SumChunk.objects.update_or_create(
            round=item, index=index, defaults={"digest": file.digest, "size": parameters.chunk_bytes(index)}
        )


@pytest.mark.parametrize(("word_bits", "fraction_bits"), [(32, 16), (32, None), (24, None), (16, None), (12, None)])
def test_portal_and_silo_make_the_same_next_model_of_many_tensors(at_sum, tmp_path, word_bits, fraction_bits):
    world, item = at_sum(word_bits=word_bits, fraction_bits=fraction_bits, bins=16)
    summed = drawn_sum(world, item)
    order = list(range(parameters_of(item).chunk_count))
    assert len(order) > 5
    random.Random(word_bits).shuffle(order)
    make_pieces(world, item, summed, [*order, order[0]])
    made = finishing._make(item)
    store = ModelStore(tmp_path / "models")
    shutil.copy(model_path(item.model_digest), store.path(item.model_digest))
    digest = store.make_next(item.model_digest, summed, world.manifest.fixed_point(), total_weight=4, server_lr=1.0)
    assert made.model_digest == digest
    before, after = ModelState.load(model_path(item.model_digest)), ModelState.load(model_path(digest))
    assert after.digest == digest and update_words(after.table) == len(summed)
    for spec, where in slices(TABLE):
        same = before.vector[where].tobytes() == after.vector[where].tobytes()
        assert same == (spec.kind == "frozen" or spec.name == "scale0"), spec.name
    if fraction_bits is None:
        assert after.scales is not None and len(set(after.scales)) > 2 and after.scales[0] == before.scales[0]
    else:
        assert after.scales is None


def test_a_model_that_is_named_is_not_written_again_by_a_task_that_comes_late(at_sum):
    """The scales are in the front; a piece that is made a second time must not put the old ones back."""
    world, item = at_sum(word_bits=16, fraction_bits=None, bins=16)
    summed = drawn_sum(world, item)
    make_pieces(world, item, summed, list(range(parameters_of(item).chunk_count)))
    named = finishing._make(item).model_digest
    stepping.step_piece(item, 0, summed[:PIECE])
    assert ModelState.load(model_path(named)).digest == named


def test_a_word_beyond_its_own_tensors_bound_is_refused_by_position(at_sum):
    world, item = at_sum(word_bits=16, fraction_bits=None, bins=16)
    summed = drawn_sum(world, item)
    summed[PIECE + 3] = 32766
    stepping.step_piece(item, 0, summed[:PIECE])
    with pytest.raises(ServerStepError, match=f"word {PIECE + 3} of the sum is out of range"):
        stepping.step_piece(item, 1, summed[PIECE : 2 * PIECE])


def test_the_first_model_of_an_open_study_carries_the_first_scales(at_sum):
    world, item = at_sum(word_bits=16, fraction_bits=None, bins=16)
    front = read_front(model_path(item.model_digest))
    assert front.scales == world.manifest.fixed_point().initial(TABLE)
    assert item.model_length == update_words(TABLE)
