"""A study goes back to an older model: refused here until the hospital's own steward signs it, for exactly that model, once."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from protocol.secure_aggregation import ProtocolViolation, StudyLedger
from protocol.secure_aggregation.resume import sign_resume
from protocol.signing import SigningKey
from silo_node import gate
from silo_node.errors import Refused
from silo_node.steward import pauses, resumes
from tests.silo_node.conftest import PASSPHRASE
from tests.silo_node.test_gate import Door

ALL = ["site-1", "site-2", "site-3", "site-4"]
LATER = "sha256:" + "9" * 64


@pytest.fixture
def asked(ready, portal):
    """A silo that worked on the first model and on one that round 3 made, and is asked in round 5 to go back to the first."""
    door = Door(ready, portal)
    announcement = door.announcement(5)
    ledger = StudyLedger(door.node.journal, announcement.study)
    for number, members in ((1, ALL), (2, ALL[:3])):
        ledger.spend(number, announcement.model, {"attempt": 1, "members": members}, final=True)
    ledger.unmask(1, announcement.model, ALL)
    ledger.work_on(announcement.model, 0, 1)
    ledger.work_on(LATER, 3, 1)
    with pytest.raises(Refused) as caught:
        door.ask(announcement)
    assert caught.value.code == "MODEL_OLDER"
    pauses.note(door.node, announcement, caught.value)
    yield door, announcement, ledger
    door.node.close()


def sign(door, reason="Three hospitals saw it get worse."):
    pause = resumes.waiting(door.silo.config, door.portal.manifest.study)
    return resumes.sign(door.node, pause, passphrase=PASSPHRASE, reason=reason)


def test_a_study_that_got_worse_goes_back_only_once_the_steward_signed(silo, portal, tmp_path):
    """The whole path over sockets: the older model announced, refused, looked at, signed, trained on, and left again."""
    portal.rounds = 8
    study = portal.make_study()
    silo.decide()
    secret = tmp_path / "passphrase"
    secret.write_bytes(PASSPHRASE + b"\n")

    portal.holding = True
    run = silo.start()
    portal.begin()
    for number in range(4):
        portal.wait(lambda number=number: portal.finished(number))
        if number < 3:
            portal.go_on(hold=True)
    older = portal.round(2).model
    assert portal.origins[older]["number"] == 1
    # The partners wait, so that nothing comes of it before this hospital has decided.
    portal.absent = dict.fromkeys(portal.partners, "keys")
    portal.back_to = older
    portal.go_on(hold=True)
    portal.wait(lambda: portal.refused())
    assert portal.refused()[0][0] == "MODEL_OLDER"
    [paused] = silo.until(lambda: silo.status()["paused"])
    assert paused["study"] == study
    assert f"round 4 goes back to the model that round 1 made ({older})" in paused["sentence"]
    assert "what rounds 2 to 3 made is thrown away" in paused["sentence"]
    portal.again()
    portal.wait(lambda: len(portal.refused()) == 2)
    assert portal.refused()[1][0] == "STUDY_PAUSED", "asking again changes nothing"
    told = silo.command("status", str(silo.folder))
    assert "waits for a steward (`silo resume`): round 4 goes back" in " ".join(told.stdout.split())
    done = silo.command(
        "resume", str(silo.folder), study, "--passphrase-file", str(secret), "--reason", "Seen by three.", "--yes"
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "start again from an older model" in said and "rounds 2 to 3 made since is thrown away" in said
    assert "Round 2: site-1, site-2, site-3, site-4." in said and "helped to unmask 1 of them" in said
    assert "their difference is, nearly, the update of those that are in one only" in said
    portal.absent, portal.partner_word = {}, portal.partner_word + 5
    portal.again()
    portal.wait(lambda: portal.finished(4))
    again = portal.round(4, 3)
    assert again.model == older and "site-1" in again.members
    portal.go_on(hold=True)
    portal.wait(lambda: portal.finished(5))
    assert portal.round(5).model == again.next_state.digest and "site-1" in portal.round(5).members
    assert len(portal.refused()) == 2 and silo.status()["paused"] == [] and run.poll() is None
    # The models that were left stay left.
    portal.absent = dict.fromkeys(portal.partners, "keys")
    portal.back_to = portal.round(3).model
    portal.go_on(hold=True)
    portal.wait(lambda: len(portal.refused()) == 3)
    assert portal.refused()[2][0] == "MODEL_OLDER"
    silo.close()
    node = silo.node()
    steps = [
        (record["data"]["step"], record["data"].get("made_in")) for record in node.evidence.records("study.resumed")
    ]
    assert steps == [("signed", None), ("in force", 1)]
    assert [each["reasons"] for each in node.evidence.records("study.paused")] == [["MODEL_OLDER"], ["MODEL_OLDER"]]
    assert "Seen by three" not in json.dumps(node.evidence.records())
    node.close()


def test_the_steward_is_told_what_is_risked_before_a_key_is_asked_for(asked):
    door, announcement, _ = asked
    pause = resumes.waiting(door.silo.config, announcement.study)
    assert (pause.made, pause.asked, pause.back) == ((0, 1), 5, {"round": 3, "attempt": 1, "returns": 0})
    said = " ".join(resumes.risk(pause, "site-1"))
    assert "what rounds 1 to 4 made" in pause.sentence
    assert "helped to unmask 1 of them" in said
    assert "The lists of rounds 1 and 2 differ by one hospital only: site-4." in said
    assert "exactly this model at this silo, once" in said
    assert "counts as a round of training" in said


def test_signing_lets_exactly_this_model_in_once(asked):
    door, announcement, ledger = asked
    sign(door)
    assert door.refused(announcement) == "STUDY_PAUSED", "the running silo takes it up"
    assert pauses.take_up(door.node, announcement) is not None
    assert door.ask(announcement)
    ledger.check_members(announcement.model, ALL[:3])
    ledger.work_on(announcement.model, 0, 1)
    assert door.ask(door.announcement(5, 2)), "a round that failed is done again"
    ledger.work_on("sha256:" + "8" * 64, 5, 1)
    with pytest.raises(Refused) as caught:
        door.ask(door.announcement(7))
    pauses.note(door.node, door.announcement(7), caught.value)
    assert pauses.take_up(door.node, door.announcement(7)) is None, "the old statement is of another going back"
    assert door.refused(door.announcement(7)) == "STUDY_PAUSED"


def test_until_then_no_round_of_the_study_runs_here_not_even_on_what_the_others_made_of_it(asked):
    door, announcement, _ = asked
    assert pauses.take_up(door.node, announcement) is None
    assert door.refused(door.announcement(6, origin={**door.portal.first_origin, "number": 5})) == "STUDY_PAUSED"


def test_the_journal_decides_where_the_note_is_gone(asked):
    door, announcement, _ = asked
    (door.silo.config.studies / announcement.study / "paused.json").unlink()
    assert pauses.take_up(door.node, announcement) is None
    assert door.refused(announcement) == "MODEL_OLDER"


@pytest.mark.parametrize(
    "change", [{"back": None}, {"model": LATER}, {"back": {"round": 3, "attempt": 1, "returns": 1}}]
)
def test_a_note_that_was_changed_gives_a_statement_that_the_journal_refuses(asked, change):
    door, announcement, _ = asked
    path = door.silo.config.studies / announcement.study / "paused.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    sign(door)
    with suppress(Refused):  # a statement of the lists alone is true, and goes back to nothing
        pauses.take_up(door.node, announcement)
    path.unlink(missing_ok=True)
    assert door.refused(announcement) == "MODEL_OLDER"


@pytest.mark.parametrize("signer", ["stranger", "silo"])
def test_nobody_but_a_steward_lets_it_go_back(asked, signer):
    door, announcement, _ = asked
    pause = resumes.waiting(door.silo.config, announcement.study)
    key = SigningKey.generate() if signer == "stranger" else door.node.keys.silo
    forged = sign_resume(resumes._statement(door.silo.config, pause, "The portal says so."), key)
    path = door.silo.config.resumes / pause.study / "forged.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(forged.as_dict()))
    with pytest.raises(Refused, match="RESUME_NOT_VALID"):
        pauses.take_up(door.node, announcement)
    assert door.refused(announcement) == "STUDY_PAUSED"


def test_a_crash_between_the_journal_and_the_note_is_put_right(asked):
    door, announcement, ledger = asked
    envelope, _ = sign(door)
    ledger.resume(announcement.model, envelope.digest)
    with pytest.raises(ProtocolViolation):
        ledger.check_age(announcement.model, 0, 1)
    assert door.refused(announcement) == "STUDY_PAUSED"
    ledger.go_back(announcement.model, envelope.digest)
    assert pauses.take_up(door.node, announcement) is None
    assert door.ask(announcement)


def test_a_crash_between_the_two_rows_of_the_journal_is_taken_up_again(asked):
    door, announcement, ledger = asked
    envelope, _ = sign(door)
    ledger.resume(announcement.model, envelope.digest)
    assert pauses.take_up(door.node, announcement) is not None
    assert door.ask(announcement)


def test_going_back_counts_as_a_round_of_training(asked):
    door, announcement, _ = asked
    most = door.portal.manifest.plan.stopping.max_rounds
    sign(door)
    pauses.take_up(door.node, announcement)
    for number in range(most - 2):
        door.node.journal.put(gate.trained_key(announcement.study, f"sha256:{number:064x}"), b"1")
    assert door.ask(announcement), "this model and the one going back are the last two"
    door.node.journal.put(gate.trained_key(announcement.study, "sha256:" + "f" * 64), b"1")
    assert door.refused(announcement) == "LIMIT_MAX_ROUNDS"


def test_a_silo_that_was_away_since_that_model_needs_no_signature(ready, portal):
    door = Door(ready, portal)
    announcement = door.announcement(5)
    StudyLedger(door.node.journal, announcement.study).work_on(announcement.model, 0, 1)
    assert door.ask(announcement)
    door.node.close()
