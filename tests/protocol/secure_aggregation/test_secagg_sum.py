"""The sum is exact, whoever vanishes at whatever step, as long as enough remain; else the round stops cleanly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import Ready
from protocol.secure_aggregation import NotEnoughShares, ProtocolViolation, threshold
from protocol.secure_aggregation.parameters import CHUNK_WORDS, Segment
from protocol.secure_aggregation.quantise import quantise
from protocol.secure_aggregation.scales import FixedPoint
from protocol.secure_aggregation.words import WORD_BITS, signed

STEPS = ("keys", "bundles", "ready", "update", "list", "unmask")


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    n=st.integers(3, 9),
    min_participants=st.integers(2, 6),
    words=st.sampled_from([0, 1, 3, 4, 5, 17, 64]),
    tail=st.sampled_from([1, 2, 7]),
    word_bits=st.sampled_from(WORD_BITS),
    seed=st.integers(0, 2**32 - 1),
)
def test_sum_is_exact_or_the_round_stops_cleanly(world, data, n, min_participants, words, tail, word_bits, seed):
    """Any number of silos may vanish before any step. Whether the round must succeed is counted here, independently."""
    this = world(n, words=words, tail=tail, word_bits=word_bits, seed=seed, min_participants=min_participants)
    gone_before = {
        name: data.draw(st.sampled_from([*STEPS, "never", "never", "never", "never"]), label=name)
        for name in this.silos
    }

    def alive(step: str) -> list[str]:
        return [
            name
            for name in this.silos
            if gone_before[name] == "never" or STEPS.index(gone_before[name]) > STEPS.index(step)
        ]

    t = threshold(len(alive("keys"))) if alive("keys") else 1
    least = max(t, min_participants)
    needed = {"keys": 3, "bundles": least, "ready": least, "update": least, "list": t, "unmask": t}
    stops = next((step for step in STEPS if len(alive(step)) < needed[step]), None)

    try:
        for step in STEPS:
            this.play(step, who=alive(step))
        this.check_all()
        this.assert_sum(alive("update"))
    except (ProtocolViolation, NotEnoughShares) as error:
        assert stops is not None, error
    else:
        assert stops is None


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6), min_size=4, max_size=4),
    fraction=st.floats(0, 1),
    word_bits=st.sampled_from(WORD_BITS),
    seed=st.integers(0, 1000),
)
def test_sum_equals_the_sum_of_the_quantised_updates(world, values, fraction, word_bits, seed):
    """Up to the largest number of binary places that the proof lets through: 4 * (3 * 2^f + 1) < 2^(w - 1)."""
    fraction_bits = round(fraction * (word_bits - 5))
    this = world(4, words=6, word_bits=word_bits)
    exact = np.zeros(6, dtype=np.int64)
    for name, row in zip(this.silos, values, strict=True):
        words = quantise(
            np.array(row, dtype=np.float32),
            FixedPoint(word_bits, fraction_bits, 1.0, 4, heaviest=3),
            (Segment(6, fraction_bits),),
            weight=3,
            rng=np.random.default_rng(seed),
        )
        this.updates[name] = (words, this.updates[name][1])
        exact += signed(words, word_bits)
    this.play(*STEPS)
    body, _ = this.sum(this.removal())
    assert signed(body, word_bits).tolist() == exact.tolist()


def test_four_silos_without_drop_out(world):
    this = world(4).play(*STEPS)
    this.check_all()
    this.assert_sum(this.silos)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("n", [4, 6])
def test_one_silo_may_vanish_at_any_step(world, n, step):
    this = world(n)
    gone = this.silos[1]
    for each in STEPS:
        this.play(each, who=[name for name in this.silos if name != gone or STEPS.index(each) < STEPS.index(step)])
    this.check_all()
    late = STEPS.index(step) > STEPS.index("update")
    this.assert_sum(this.silos if late else [name for name in this.silos if name != gone])


def test_exactly_t_shares_recover_whoever_they_come_from(world):
    this = world(7).play("keys", "bundles", "ready")
    this.play("update", "list", "unmask", who=this.silos[:6])
    t = threshold(7)
    for start in range(6 - t + 1):
        this.assert_sum(this.silos[:6], unmaskers=this.silos[start : start + t])
    with pytest.raises(NotEnoughShares, match=f"{t - 1} shares came, {t}"):
        this.removal(this.silos[: t - 1])


def test_three_silos_survive_no_drop_out(world):
    this = world(3).play("keys", "bundles", "ready")
    this.play("update", who=this.silos[:2])
    with pytest.raises(ProtocolViolation) as caught:
        this.play("list", who=this.silos[:2])
    assert caught.value.code == "SET_TOO_SMALL"


def test_silo_outside_the_list_helps_to_unmask(world):
    """Four ready, the fourth's update never arrives, and a member vanishes after signing: t of R are still there."""
    this = world(4).play("keys", "bundles", "ready")
    this.play("update", "list", who=this.silos[:3])
    this.machines[this.silos[3]].accept_ready(this.relayed("ready"))
    this.play("unmask", who=this.silos[1:])
    this.check_all()
    this.assert_sum(this.silos[:3])


def test_member_that_did_not_sign_the_list_in_time_helps_to_unmask(world):
    this = world(4).play("keys", "bundles", "ready", "update")
    this.play("list", who=this.silos[:3])
    this.play("unmask", who=this.silos[1:])
    this.assert_sum(this.silos)
    # It spent the round with it: the same list may still be signed, no other.
    late = this.machines[this.silos[3]]
    assert late.sign_list(this.relayed("update")) == late.sign_list(this.relayed("update"))
    with pytest.raises(ProtocolViolation):
        late.sign_list(this.relayed("update", this.silos[1:]))


def test_evaluation_only_round_has_a_tail_and_no_body(world):
    this = world(4, words=0, tail=9)
    assert this.parameters.chunk_count == 1
    this.play(*STEPS)
    this.assert_sum(this.silos)


@pytest.mark.parametrize("word_bits", WORD_BITS)
def test_update_of_several_chunks_is_unmasked_in_any_order_by_several_threads(world, word_bits):
    this = world(4, words=2 * CHUNK_WORDS + 3, tail=5, word_bits=word_bits)
    this.play("keys", "bundles", "ready")
    live = this.silos[1:]
    this.play("update", "list", "unmask", who=live)
    this.check_all()
    removal = this.removal()

    def piece(k: int) -> np.ndarray:
        return removal.sum_chunk(k, [this.chunks[name][k] for name in live], threads=k % 3)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(piece, [3, 1, 0, 2]))
    body = np.concatenate([found[2], found[1], found[3]])
    wanted = sum(this.updates[name][0] for name in live)
    assert np.array_equal(signed(body, word_bits), signed(wanted, word_bits))
    assert np.array_equal(found[0], sum(this.updates[name][1] for name in live))


def test_two_silos_whose_bundle_could_not_be_opened_cost_only_their_sender(world):
    """A silo seals garbage to two peers: it is left out of R, named, and the others go on."""
    this = world(5).play("keys", "bundles")
    bad = this.silos[2]
    for name in this.silos:
        boxes = this.coordinator.boxes_for(this.roster, this.relayed("bundles"), name)
        if name in this.silos[3:]:
            boxes[bad] = b"garbage" * 100
        this.mail["ready"][name] = this.machines[name].accept_bundles(boxes)
    assert bad not in Ready.parse(this.mail["ready"][this.silos[4]].payload).senders
    choice = this.coordinator.choose_ready(this.roster, this.relayed("ready"))
    assert choice.left_out == {bad: this.silos[3:5]}
    with pytest.raises(ProtocolViolation, match=f"could not open the bundle of {bad}"):
        this.machines[this.silos[0]].accept_ready(this.relayed("ready"))
    del this.mail["ready"][bad]
    assert list(choice.envelopes) == this.relayed("ready")
    live = [name for name in this.silos if name != bad]
    this.play("update", "list", "unmask", who=live)
    this.assert_sum(live)


def test_silo_that_claims_to_open_nobody_is_the_one_left_out(world):
    this = world(6).play("keys", "bundles", "ready")
    liar, genuine = this.silos[0], this.machines[this.silos[0]]
    said = Ready.parse(this.mail["ready"][liar].payload)
    alone = genuine._seal(Ready, **{**_content(said), "senders": this.silos[5:]})
    choice = this.coordinator.choose_ready(this.roster, [alone, *this.relayed("ready", this.silos[1:])])
    assert list(choice.left_out) == [liar]
    assert choice.members == this.silos[1:]


def _content(message: Ready) -> dict[str, object]:
    names = ("roster", "list_digest", "list_box", "self_hash", "list_hash", "nonces", "senders")
    return {name: getattr(message, name) for name in names}
