"""Thresholds, the layout of chunks, and the context that binds everything to one attempt."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.secure_aggregation import CHUNK_WORDS, RoundParameters, colluders, threshold
from protocol.secure_aggregation.parameters import MAX_ROSTER, Segment, SketchTerms

DIGEST = "sha256:" + "0" * 64
BASE = {
    "study": "st-abc",
    "manifest": DIGEST,
    "round": 1,
    "attempt": 0,
    "model": DIGEST,
    "participants": {"site-1": bytes([1]) * 32, "site-2": bytes([2]) * 32, "site-3": bytes([3]) * 32},
    "min_roster": 3,
    "min_participants": 3,
    "words": 10,
    "tail": 2,
}


def made(**change: object) -> RoundParameters:
    return RoundParameters(**(BASE | change))


def test_thresholds_of_the_design():
    assert [threshold(n) for n in (3, 4, 5, 6, 7, 8, 9, 10, 64)] == [3, 3, 4, 5, 5, 6, 7, 7, 43]
    assert made().threshold(4) == 3
    assert [colluders(n, 255) for n in (3, 4, 7, 10)] == [2, 1, 2, 3]
    assert [colluders(10, m) for m in (2, 3, 4, 9)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at least one"):
        threshold(0)


@given(n=st.integers(3, 255), min_participants=st.integers(2, 300))
def test_two_lists_with_t_signatures_share_an_honest_signer(n, min_participants):
    """Why t = floor(2n/3) + 1: two sets of t out of n overlap in more than c silos, so one of them is honest."""
    t, c = threshold(n), colluders(n, min_participants)
    assert 2 * t - n >= c + 1
    assert t <= n
    assert max(t, min_participants) - c >= 2  # what is summed holds at least two honest silos
    assert made(min_participants=min_participants).smallest_set(n) == max(t, min_participants)


def test_context_is_the_hash_of_canonical_facts():
    facts = {
        "protocol": "consilium-secagg/1",
        **{name: BASE[name] for name in ("study", "manifest", "round", "attempt", "model")},
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    assert made().ctx == hashlib.sha256(text).digest()


def test_every_fact_changes_the_context():
    other = "sha256:" + "1" * 64
    changes = [
        {},
        {"study": "st-b"},
        {"manifest": other},
        {"round": 2},
        {"attempt": 1},
        {"model": other},
        {"model": None},
    ]
    assert len({made(**change).ctx for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("words", "tail", "ranges", "sizes"),
    [
        (0, 3, [("tail", 0, 3)], [24]),
        (5, 0, [("body", 0, 5)], [20]),
        (5, 3, [("body", 0, 5), ("tail", 0, 3)], [20, 24]),
        (CHUNK_WORDS, 1, [("body", 0, CHUNK_WORDS), ("tail", 0, 1)], [4 << 20, 8]),
        (
            CHUNK_WORDS + 1,
            1,
            [("body", 0, CHUNK_WORDS), ("body", CHUNK_WORDS, CHUNK_WORDS + 1), ("tail", 0, 1)],
            [4 << 20, 4, 8],
        ),
    ],
)
def test_chunks_cover_body_and_tail(words, tail, ranges, sizes):
    parameters = made(words=words, tail=tail)
    assert parameters.chunk_count == len(ranges)
    assert [parameters.chunk_range(k) for k in range(parameters.chunk_count)] == ranges
    assert [parameters.chunk_bytes(k) for k in range(parameters.chunk_count)] == sizes
    for k in (-1, len(ranges)):
        with pytest.raises(IndexError, match="does not exist"):
            parameters.chunk_range(k)


@pytest.mark.parametrize(
    ("word_bits", "full", "odd"), [(32, 4 << 20, 12), (24, 3 << 20, 9), (16, 2 << 20, 6), (12, 3 << 19, 5)]
)
def test_chunks_are_as_many_words_at_every_size(word_bits, full, odd):
    parameters = made(words=CHUNK_WORDS + 3, tail=2, word_bits=word_bits)
    assert [parameters.chunk_bytes(k) for k in range(3)] == [full, odd, 16]
    assert [parameters.bits(k) for k in range(3)] == [word_bits, word_bits, 64]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"study": ""}, "study"),
        ({"study": "a/b"}, "study"),
        ({"manifest": None}, "manifest"),
        ({"manifest": "sha256:1"}, "manifest"),
        ({"model": "sha256:1"}, "model"),
        ({"model": ""}, "model"),
        ({"round": -1}, "round"),
        ({"round": True}, "round"),
        ({"attempt": 1.0}, "attempt"),
        ({"min_roster": 2}, "min_roster"),
        ({"min_participants": 1}, "min_participants"),
        ({"words": -1}, "words"),
        ({"tail": -1}, "tail"),
        ({"words": 0, "tail": 0}, "nothing to sum"),
        ({"word_bits": 20}, "word_bits"),
        ({"word_bits": 64}, "word_bits"),
        ({"word_bits": 16.0}, "word_bits"),
        ({"participants": {"Site 1": bytes(32)}}, "not a silo name"),
        ({"participants": {"site-1": bytes(31)}}, "31 bytes"),
        ({"participants": {"site-1": bytes(32), "site-2": bytes(32)}}, "same key"),
        ({"participants": {f"s{i}": i.to_bytes(32, "big") for i in range(MAX_ROSTER + 1)}}, "at most 255"),
    ],
)
def test_wrong_parameters_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        made(**change)


def test_participants_cannot_be_changed_afterwards():
    given_ = dict(BASE["participants"])
    parameters = made(participants=given_)
    given_["site-9"] = bytes(32)
    assert "site-9" not in parameters.participants
    with pytest.raises(TypeError):
        parameters.participants["site-9"] = bytes(32)


def test_sketch_terms_must_fit_the_round():
    weights = dict.fromkeys(BASE["participants"], 1)
    with pytest.raises(ValueError, match="segments do not cover"):
        made(sketch=SketchTerms(weights, 1.0, (Segment(BASE["words"] - 1, 4),)))
    with pytest.raises(ValueError, match="exactly the participants"):
        made(sketch=SketchTerms({"stranger": 1}, 1.0, (Segment(BASE["words"], 4),)))
