"""A study goes back to an older model: only where a steward signed it, to exactly that model, once."""

from __future__ import annotations

import pytest

from protocol import canonical
from protocol.secure_aggregation import ProtocolViolation, Resume, StudyLedger, resume
from protocol.secure_aggregation.resume import PAYLOAD_TYPE, sign_resume
from protocol.signing import SigningKey, sign_envelope

STEWARD = SigningKey.from_bytes(b"\x77" * 32)
STEWARDS = {STEWARD.keyid: STEWARD.public}

OLD, MID, NEW = (f"sha256:{digit * 64}" for digit in "abc")


@pytest.fixture
def worked(world):
    """worked((model, round), ..) -> (a journal, its ledger) of a silo that has worked on models made in these rounds."""

    def make(*made):
        journal = world(4).journals["site-01"]
        ledger = StudyLedger(journal, "st-abc")
        for model, number in made:
            ledger.work_on(model, number, 1)
        return journal, ledger

    return make


def again(journal, envelope):
    return resume(journal, envelope, silo="site-01", study="st-abc", stewards=STEWARDS)


def go_back(journal, model, **changes):
    ledger = StudyLedger(journal, "st-abc")
    content = {**ledger.counts(model), "back": ledger.front(), "reason": "It got worse."} | changes
    statement = Resume(silo="site-01", study="st-abc", model=model, **content)
    envelope = sign_resume(statement, STEWARD)
    assert Resume.parse(envelope.payload) == statement
    again(journal, envelope)
    return envelope


def test_a_model_only_goes_forward_until_a_steward_signs(worked, refused):
    _, ledger = worked((OLD, 1), (NEW, 3))
    assert ledger.front() == {"round": 3, "attempt": 1, "returns": 0}
    refused("MODEL_OLDER", ledger.check_age, OLD, 1, 1)
    refused("MODEL_OLDER", ledger.work_on, MID, 2, 7)
    ledger.work_on(NEW, 3, 1)
    ledger.check_age("sha256:" + "d" * 64, 3, 2)
    assert worked()[1].front() is None
    worked()[1].check_age(OLD, 1, 1)


def test_a_steward_lets_a_study_go_back_to_exactly_one_model_once(worked, refused):
    journal, ledger = worked((OLD, 1), (MID, 2), (NEW, 3))
    ledger.unmask(2, OLD, ["site-01", "site-02"])
    refused("OTHER_LIST_UNMASKED", ledger.check_members, OLD, ["site-01", "site-03"])
    envelope = go_back(journal, OLD)
    ledger.check_members(OLD, ["site-01", "site-03"])
    ledger.work_on(OLD, 1, 1)
    ledger.work_on(OLD, 1, 1)  # a round that failed is done again
    for left, number in ((MID, 2), (NEW, 3)):
        refused("MODEL_OLDER", ledger.work_on, left, number, 1)
    assert ledger.front() == {"round": 3, "attempt": 1, "returns": 1}
    refused("STALE_RESUME", again, journal, envelope)
    ledger.work_on("sha256:" + "d" * 64, 6, 1)
    refused("MODEL_OLDER", ledger.work_on, OLD, 1, 1)
    refused("STALE_RESUME", again, journal, envelope)
    go_back(journal, OLD)
    ledger.work_on(OLD, 1, 1)


def test_a_resume_of_lists_alone_does_not_go_back(worked, refused):
    journal, ledger = worked((OLD, 1), (NEW, 3))
    ledger.unmask(2, OLD, ["site-01", "site-02"])
    go_back(journal, OLD, back=None)
    refused("MODEL_OLDER", ledger.check_age, OLD, 1, 1)


def test_a_crash_between_the_two_rows_leaves_the_study_where_it_was_and_the_statement_good(worked, refused):
    journal, ledger = worked((OLD, 1), (NEW, 3))
    ledger.unmask(2, OLD, ["site-01", "site-02"])
    ledger.resume(OLD, "sha256:" + "e" * 64)
    refused("MODEL_OLDER", ledger.check_age, OLD, 1, 1)
    go_back(journal, OLD)
    ledger.check_age(OLD, 1, 1)


@pytest.mark.parametrize(
    "back",
    [
        {"round": 3, "attempt": 1, "returns": 1},
        {"round": 2, "attempt": 1, "returns": 0},
        {"round": 3, "attempt": 1},
        {"round": 3, "attempt": 1, "returns": True},
        {"round": -3, "attempt": 1, "returns": 0},
        {"round": 3, "attempt": 1, "returns": 0, "more": 1},
        {},
        [3, 1, 0],
    ],
)
def test_a_resume_that_goes_back_from_elsewhere_is_refused(worked, back):
    journal, ledger = worked((OLD, 1), (NEW, 3))
    plain = Resume(silo="site-01", study="st-abc", model=OLD, lists=0, unmasked=0, reason="x")
    value = canonical.decode(plain.to_payload())
    envelope = sign_envelope(PAYLOAD_TYPE, canonical.encode({**value, "back": back}), STEWARD)
    with pytest.raises(ProtocolViolation, match="RESUME"):
        again(journal, envelope)
    with pytest.raises(ProtocolViolation, match="MODEL_OLDER"):
        ledger.check_age(OLD, 1, 1)


def test_a_silo_that_has_worked_on_nothing_has_nowhere_to_go_back_from(worked, refused):
    _, ledger = worked()
    refused("STALE_RESUME", ledger.go_back, OLD, "sha256:" + "e" * 64)
