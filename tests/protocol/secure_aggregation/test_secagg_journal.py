"""kill -9 at any moment: the same bytes go out again, or nothing does; and what was spent stays spent."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.secure_aggregation import (
    JournalConflict,
    ProtocolViolation,
    Resume,
    SiloRound,
    StudyLedger,
    StudyPaused,
    resume,
)
from protocol.secure_aggregation.parameters import CHUNK_WORDS
from protocol.secure_aggregation.resume import sign_resume
from protocol.signing import SigningKey

STEPS = ("keys", "bundles", "ready", "update", "list", "unmask")
STEWARD = SigningKey.from_bytes(b"\x77" * 32)
STEWARDS = {STEWARD.keyid: STEWARD.public}


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_silo_killed_at_any_write_goes_on_with_the_same_bytes(world):
    """One silo dies before and after each of its writes, is rebuilt from the journal alone, and repeats the step."""
    count = world(4).play(*STEPS).journals["site-02"].puts
    assert count > 10
    for at in range(1, count + 1):
        for when in ("before", "after"):
            this = world(4)
            journal = this.journals["site-02"]
            journal.kill_at = (at, when)
            deaths = 0
            for step in STEPS:
                for name in this.silos:
                    try:
                        this.play(step, who=[name])
                    except this.Killed:
                        deaths += 1
                        journal.kill_at = None
                        this.machines[name] = this.rebuild(name)
                        this.play(step, who=[name])
            assert deaths == 1
            this.check_all()
            this.assert_sum(this.silos)


@pytest.mark.parametrize("kept", [1, 2])
def test_silo_killed_while_it_joins_leaves_no_secret_of_an_older_attempt(world, kept):
    """kept: rows of the attempt in which it died that were written; the next attempt is another one."""
    this = world(4).play("keys")
    journal = this.journals["site-02"]
    this.attempt(attempt=1)
    journal.kill_at = (journal.puts + kept, "after")
    with pytest.raises(this.Killed):
        this.machines["site-02"].keys()
    journal.kill_at = None
    this.attempt(attempt=2)
    this.machines["site-02"].keys()
    assert [key for key in journal.rows if key.startswith("round/")] == ["round/st-abc/1/2/keys"]


def test_silo_killed_while_it_spends_a_round_notes_the_list_that_it_signs_then(world):
    """The steward is shown these lists; a round's second one must not stand under the first one's names."""
    this = world(5).play("keys", "bundles", "ready", "update")
    journal = this.journals["site-02"]
    journal.kill_at = (journal.puts + 1, "after")
    with pytest.raises(this.Killed):
        this.machines["site-02"].sign_list(this.relayed("update"))
    journal.kill_at = None
    this.rebuild("site-02").sign_list(this.relayed("update", this.silos[:4]))
    lists = StudyLedger(journal, "st-abc").lists(this.parameters.model)
    assert [row["members"] for row in lists] == [list(this.silos), list(this.silos[:4])]


def test_silo_killed_in_the_middle_of_an_upload_sends_the_same_bytes_again(world, refused):
    this = world(4, words=CHUNK_WORDS + 100, tail=4).play("keys", "bundles", "ready")
    machine = this.machines["site-02"]
    machine.accept_ready(this.relayed("ready"))
    assert not machine.update_begun
    words, tail = (array.copy() for array in this.updates["site-02"])
    machine.begin_update(words, tail)
    first = machine.masked_chunk(0)
    words[:] = 0  # what the caller does with its array afterwards changes nothing
    del machine
    again = this.rebuild("site-02")
    assert again.update_begun
    assert again.masked_chunk(0) == first
    rest = [again.masked_chunk(k) for k in (2, 1)]
    signed = again.finish_update()
    third = this.rebuild("site-02")
    assert third.finish_update() == signed
    assert [third.masked_chunk(k) for k in (2, 1)] == rest
    # Trained, noised or rounded again: never under the same masks.
    other = this.updates["site-02"][0].copy()
    other[-1] += 1
    refused("SECOND_UPDATE", third.begin_update, other, tail)
    refused("SECOND_UPDATE", third.begin_update, this.updates["site-02"][0], tail + np.uint64(1))
    third.begin_update(this.updates["site-02"][0], tail)
    assert third.masked_chunk(0) == first


def test_journaled_chunk_of_another_length_is_never_sent(world, refused):
    """It would wear the masks of other words."""
    this = world(4, words=5).play("keys", "bundles", "ready")
    machine = this.machines["site-02"]
    machine.accept_ready(this.relayed("ready"))
    machine.begin_update(*this.updates["site-02"])
    rows = this.journals["site-02"].rows
    (key,) = (key for key in rows if key.endswith("chunk/0"))
    for words in (rows[key][:-4], rows[key] + bytes(4)):
        rows[key] = words
        refused("BAD_UPDATE", machine.masked_chunk, 0)


def test_update_signed_without_masking_here_is_that_of_the_chunks_sent_before(world):
    this = world(4).play("keys", "bundles", "ready", "update")
    journal = this.journals["site-01"]
    del journal.rows["round/st-abc/1/0/update"]  # killed after the last chunk, before the last message
    assert this.rebuild("site-01").finish_update() == this.mail["update"]["site-01"]


def test_words_half_written_were_never_sent_and_may_be_replaced(world, refused):
    this = world(4).play("keys", "bundles", "ready")
    machine, journal = this.machines["site-01"], this.journals["site-01"]
    machine.accept_ready(this.relayed("ready"))
    journal.kill_at = (journal.puts + 2, "before")
    with pytest.raises(this.Killed):
        machine.begin_update(*this.updates["site-01"])
    journal.kill_at = None
    again = this.rebuild("site-01")
    refused("OUT_OF_STAGE", again.masked_chunk, 0)
    this.updates["site-01"] = tuple(array + array.dtype.type(1) for array in this.updates["site-01"])
    this.machines["site-01"] = again
    this.play("update", "list", "unmask")
    this.assert_sum(this.silos)


def test_two_processes_on_one_journal_never_mask_two_vectors(world, refused):
    """Both passed the check for an update; the journal lets only one write."""
    this = world(4).play("keys", "bundles", "ready")
    one, journal = this.machines["site-01"], this.journals["site-01"]
    one.accept_ready(this.relayed("ready"))
    words, tail = this.updates["site-01"]
    journal.put("round/st-abc/1/0/chunk/1", b"of another process")
    refused("JOURNAL_CONFLICT", one.begin_update, words, tail)
    assert not one.update_begun
    refused("OUT_OF_STAGE", one.masked_chunk, 0)


def test_words_that_vanish_from_the_journal_end_the_upload(world, refused):
    this = world(4).play("keys", "bundles", "ready", "update")
    del this.journals["site-01"].rows["round/st-abc/1/0/chunk/0"]
    refused("ROUND_OVER", this.machines["site-01"].masked_chunk, 0)


def test_each_step_again_gives_the_same_bytes(world):
    this = world(4).play(*STEPS)
    before = {kind: dict(mails) for kind, mails in this.mail.items()}
    this.play(*STEPS)
    assert this.mail == before
    this.machines = {name: this.rebuild(name) for name in this.silos}
    this.play(*STEPS)
    assert this.mail == before


def test_no_step_has_an_effect_before_it_is_in_the_journal(world):
    """A silo whose disk fails at the record of a step returns nothing, so nothing can have left."""
    for step, record in (
        ("keys", "keys"),
        ("bundles", "roster"),
        ("ready", "bundles"),
        ("list", "list"),
        ("unmask", "unmask"),
    ):
        this = world(4)
        for each in STEPS[: STEPS.index(step)]:
            this.play(each)
        journal = this.journals["site-01"]

        def put(key: str, value: bytes, record: str = record, put=journal.put) -> None:
            if key.endswith(f"/{record}"):
                raise OSError("disk full")
            put(key, value)

        journal.put = put
        with pytest.raises(OSError, match="disk full"):
            this.play(step, who=["site-01"])
        assert "site-01" not in this.mail[step]


# --- spending --------------------------------------------------------------------------------------------------------


def failing_round(this, number: int, *steps: str) -> None:
    """A round that signs its list and then fails."""
    this.attempt(round=number, attempt=0)
    this.play(*steps)


def test_three_signed_lists_for_one_model_state_pause_the_study(world):
    this = world(4)
    for number in (1, 2, 3):
        failing_round(this, number, *STEPS[:5])
    this.attempt(round=4, attempt=0)
    with pytest.raises(StudyPaused, match="3 lists"):
        this.machines["site-01"].keys()
    # Another model state goes on.
    this.attempt(round=4, attempt=0, model="sha256:" + "d" * 64)
    this.play(*STEPS)
    this.assert_sum(this.silos)


def test_list_that_would_be_the_fourth_is_not_signed_either(world):
    """Joined before the third list was signed, as a crash may order it."""
    this = world(4)
    for number in (1, 2):
        failing_round(this, number, *STEPS[:5])
    failing_round(this, 3, *STEPS[:4])
    ledger = StudyLedger(this.journals["site-01"], "st-abc")
    ledger.spend(99, this.parameters.model, {"members": list(this.silos)}, final=True)
    with pytest.raises(StudyPaused):
        this.play("list", who=["site-01"])
    this.play("list", who=this.silos[1:])
    with pytest.raises(StudyPaused):
        this.machines["site-01"].unmask(this.relayed("list"))


def test_stewards_signed_resume_lets_a_paused_study_go_on_once(world):
    this = world(4)
    for number in (1, 2, 3):
        failing_round(this, number, *STEPS[:5])
    this.attempt(round=4, attempt=0)
    for name in this.silos:
        journal = this.journals[name]
        counts = StudyLedger(journal, "st-abc").counts(this.parameters.model)
        assert counts == {"lists": 3, "unmasked": 0}
        # What the steward is shown before signing: every list, oldest first.
        shown = StudyLedger(journal, "st-abc").lists(this.parameters.model)
        assert shown == [{"round": number, "members": list(this.silos)} for number in (1, 2, 3)]
        statement = Resume(silo=name, study="st-abc", model=this.parameters.model, reason="network repaired", **counts)
        envelope = sign_resume(statement, STEWARD)
        assert resume(journal, envelope, silo=name, study="st-abc", stewards=STEWARDS) == statement
        with pytest.raises(ProtocolViolation, match="STALE_RESUME"):
            resume(journal, envelope, silo=name, study="st-abc", stewards=STEWARDS)
    for number in (4, 5, 6):
        failing_round(this, number, *STEPS[:5])
    this.attempt(round=7, attempt=0)
    with pytest.raises(StudyPaused, match="6 lists"):
        this.machines["site-01"].keys()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"silo": "site-02"}, "BAD_RESUME"),
        ({"study": "st-x"}, "BAD_RESUME"),
        ({"lists": 2}, "STALE_RESUME"),
        ({"unmasked": 1}, "STALE_RESUME"),
        ({"lists": -1}, "BAD_RESUME"),
        ({"lists": True}, "BAD_RESUME"),
        ({"model": "sha256:x"}, "BAD_RESUME"),
        ({"model": "sha256:" + "d" * 64}, "STALE_RESUME"),
        ({"reason": " "}, "BAD_RESUME"),
        ({"silo": 5}, "BAD_RESUME"),
        ({"study": "../x"}, "BAD_RESUME"),
    ],
)
def test_resume_that_does_not_fit_is_refused(world, change, code):
    this = world(4)
    for number in (1, 2, 3):
        failing_round(this, number, *STEPS[:5])
    content = {
        "silo": "site-01",
        "study": "st-abc",
        "model": this.parameters.model,
        "lists": 3,
        "unmasked": 0,
        "reason": "seen",
    }
    envelope = sign_resume(Resume(**(content | change)), STEWARD)
    with pytest.raises(ProtocolViolation) as caught:
        resume(this.journals["site-01"], envelope, silo="site-01", study="st-abc", stewards=STEWARDS)
    assert caught.value.code == code
    this.attempt(round=4, attempt=0)
    with pytest.raises(StudyPaused):
        this.machines["site-01"].keys()


def test_resume_not_signed_by_a_trusted_steward_is_refused(world):
    this = world(4)
    statement = Resume(silo="site-01", study="st-abc", model=this.parameters.model, lists=0, unmasked=0, reason="x")
    for envelope in (
        sign_resume(statement, SigningKey.generate()),
        sign_resume(statement, world.keys["site-01"]),
    ):
        with pytest.raises(ProtocolViolation, match="BAD_RESUME"):
            resume(this.journals["site-01"], envelope, silo="site-01", study="st-abc", stewards=STEWARDS)
    for payload in (
        b"",
        b"{}",
        b"[]",
        b'{"schema":"consilium/resume/2"}',
        statement.to_payload().replace(b"/2", b"/1"),
    ):
        with pytest.raises(ProtocolViolation, match="BAD_RESUME"):
            Resume.parse(payload)


def test_second_unmasking_of_one_model_state_is_for_the_same_silos_only(world, refused):
    """Two sums over different silos of the same model differ by one hospital's update."""
    this = world(5)
    failing_round(this, 1, *STEPS)
    failing_round(this, 2, "keys", "bundles", "ready", "update")
    del this.mail["update"]["site-05"]
    refused("OTHER_LIST_UNMASKED", this.machines["site-01"].sign_list, this.relayed("update"))
    # The same silos may be summed again.
    failing_round(this, 3, *STEPS)
    this.assert_sum(this.silos)
    # After a steward's resume others may too.
    this.attempt(round=4, attempt=0)
    for name in this.silos:
        ledger = StudyLedger(this.journals[name], "st-abc")
        statement = Resume(
            silo=name, study="st-abc", model=this.parameters.model, reason="ok", **ledger.counts(this.parameters.model)
        )
        resume(this.journals[name], sign_resume(statement, STEWARD), silo=name, study="st-abc", stewards=STEWARDS)
    live = this.silos[:4]
    this.play("keys", "bundles", "ready", "update", "list", "unmask", who=live)
    this.assert_sum(live)


def test_unmasking_without_having_signed_counts_too(world, refused):
    this = world(5)
    failing_round(this, 1, "keys", "bundles", "ready", "update")
    this.play("list", who=this.silos[:4])
    this.play("unmask")
    failing_round(this, 2, "keys", "bundles", "ready")
    del this.mail["ready"]["site-01"]
    this.play("update", who=this.silos[1:])
    refused("OTHER_LIST_UNMASKED", this.machines["site-05"].sign_list, this.relayed("update"))


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_ledger_finds_its_last_row_whatever_their_number(world, refused):
    journal = world.Journal()
    ledger = StudyLedger(journal, "st-abc")
    assert ledger.newest() is None
    for number in range(1, 40):
        ledger.join(number, 0)
        ledger.join(number, 0)
        assert ledger.newest() == (number, 0)
    refused("OLD_ROUND", ledger.join, 38, 5)
    assert len(journal.rows) == 39


def test_studies_in_one_journal_do_not_touch_each_other(world, refused):
    journal = world.Journal()
    for study in ("st-a", "st-ab"):
        StudyLedger(journal, study).join(3, 0)
    parameters = world(4, study="st-a", round=3).parameters
    machine = SiloRound(parameters, silo="site-01", key=world.keys["site-01"], journal=journal)
    refused("ROUND_OVER", machine.keys)
    journal.put("round/st-a/3/01/keys", b"{}")
    journal.put("round/st-a/3/0/keys", b"{}")
    machine.destroy()
    assert "round/st-a/3/01/keys" in journal.rows
    assert "round/st-a/3/0/keys" not in journal.rows


def test_memory_journal_of_these_tests_puts_once(world):
    journal = world.Journal()
    journal.put("a", b"1")
    journal.put("a", b"1")
    with pytest.raises(JournalConflict):
        journal.put("a", b"2")
    assert journal.get("a") == b"1"
