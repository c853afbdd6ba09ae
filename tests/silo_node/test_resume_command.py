"""`silo resume`: three lists for one model pause a study; only its stewards' signature lets it go on, and only once."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from protocol.approval import utc_text
from protocol.canonical import b64
from protocol.secure_aggregation import ProtocolViolation, StudyLedger, StudyPaused
from protocol.secure_aggregation.resume import Resume, sign_resume
from protocol.signing import SigningKey, sign_envelope
from protocol.trust import TRUST_TYPE, freeze_trust
from silo_node.errors import Refused, UsageError
from silo_node.steward import pauses, resumes
from silo_node.steward.approvals import steward_key_path
from tests.silo_node.conftest import PASSPHRASE
from tests.silo_node.test_gate import Door

ALL = ["site-1", "site-2", "site-3", "site-4"]
SECOND = b"another steward's passphrase"


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    return path


def signed_lists(node, study, model, count, start=901):
    """As after `count` rounds that failed after this silo had signed their list; the second is without site-3."""
    ledger = StudyLedger(node.journal, study)
    for number in range(start, start + count):
        members = [name for name in ALL if (number, name) != (start + 1, "site-3")]
        ledger.spend(number, model, {"attempt": 1, "members": members}, final=True)
    return ledger


@pytest.fixture
def paused(ready, portal):
    """A silo that has paused its study."""
    door = Door(ready, portal)
    announcement = door.announcement()
    ledger = signed_lists(door.node, portal.manifest.study, announcement.model, 3)
    with pytest.raises(StudyPaused) as caught:
        ledger.check_open(announcement.model)
    pauses.note(door.node, announcement, caught.value)
    yield door
    door.node.close()


def sign(door, reason="The portal's disk was full.", passphrase=PASSPHRASE):
    pause = resumes.waiting(door.silo.config, door.portal.manifest.study)
    return resumes.sign(door.node, pause, passphrase=passphrase, reason=reason)


def test_a_running_silo_takes_a_signed_resume_up_with_the_next_round(ready, portal, passphrase):
    study = portal.manifest.study
    node = ready.node()
    signed_lists(node, study, portal.first.digest, 3)
    node.close()
    run = ready.start()
    portal.holding = True
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    portal.go_on(hold=True)
    portal.wait(lambda: portal.refused())
    assert portal.refused()[0][0] == "STUDY_PAUSED"
    ready.until(lambda: (ready.config.studies / study / "paused.json").exists())
    assert [each["study"] for each in ready.status()["paused"]] == [study]
    done = ready.command(
        "resume", str(ready.folder), study, "--passphrase-file", str(passphrase), "--reason", "Disk full.", "--yes"
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "has signed 3 lists" in said
    assert "differ by one hospital only: site-3." in said
    assert "from the next round" in said
    portal.wait(lambda: portal.finished(1))
    portal.go_on()
    portal.wait(lambda: portal.finished(2))
    assert "site-1" in portal.round(2).members
    assert len(portal.refused()) == 1
    assert run.poll() is None
    assert ready.status()["paused"] == []
    ready.close()
    node = ready.node()
    steps = [record["data"]["step"] for record in node.evidence.records("study.resumed")]
    assert steps == ["signed", "in force"]
    assert node.evidence.records("study.paused")[0]["reasons"] == ["STUDY_PAUSED"]
    assert node.evidence.records("study.resumed")[0]["actor"]["role"] == "steward"
    assert "Disk full" not in json.dumps(node.evidence.records())
    node.close()


def test_it_says_what_is_risked_before_it_asks_and_nothing_is_signed_without_a_yes(paused, passphrase):
    paused.node.close()
    arguments = ("resume", str(paused.silo.folder), paused.portal.manifest.study)
    done = paused.silo.command(
        *arguments, "--passphrase-file", str(passphrase), "--reason", "A network fault.", input="n\n"
    )
    assert done.returncode == 2
    assert "give away that hospital's update" in " ".join(done.stdout.split())
    assert "nothing was signed" in done.stderr
    assert not paused.silo.config.resumes.exists()
    done = paused.silo.command(*arguments, "--passphrase-file", str(passphrase), "--yes")
    assert done.returncode == 2
    assert "--reason" in done.stderr
    done = paused.silo.command("resume", str(paused.silo.folder), "st-other", "--reason", "x", "--yes", "--json")
    assert done.returncode == 2
    assert "nothing to resume" in json.loads(done.stdout)["error"]["sentence"]


def test_a_resume_holds_once(paused):
    sign(paused)
    announcement = paused.announcement()
    assert paused.refused(announcement) == "STUDY_PAUSED", "signing alone changes nothing: the silo takes it up"
    assert pauses.take_up(paused.node, announcement) is not None
    assert paused.ask(announcement)
    ledger = signed_lists(paused.node, paused.portal.manifest.study, announcement.model, 3, start=950)
    with pytest.raises(StudyPaused) as caught:
        ledger.check_open(announcement.model)
    pauses.note(paused.node, announcement, caught.value)
    assert pauses.take_up(paused.node, announcement) is None
    assert paused.refused(announcement) == "STUDY_PAUSED"


def test_a_crash_between_the_journal_and_the_note_is_put_right(paused):
    envelope, _ = sign(paused)
    announcement = paused.announcement()
    StudyLedger(paused.node.journal, announcement.study).resume(announcement.model, envelope.digest)
    assert pauses.take_up(paused.node, announcement) is None
    assert paused.ask(announcement)


@pytest.mark.parametrize("signer", ["stranger", "silo"])
def test_a_resume_that_no_steward_signed_is_refused(paused, signer):
    pause = resumes.waiting(paused.silo.config, paused.portal.manifest.study)
    key = SigningKey.generate() if signer == "stranger" else paused.node.keys.silo
    forged = sign_resume(resumes._statement(paused.silo.config, pause, "The portal says so."), key)
    path = paused.silo.config.resumes / pause.study / "forged.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(forged.as_dict()))
    with pytest.raises(Refused) as caught:
        pauses.take_up(paused.node, paused.announcement())
    assert caught.value.code == "RESUME_NOT_VALID"
    assert paused.refused() == "STUDY_PAUSED"
    # What somebody else put there does not keep the steward from signing.
    sign(paused)
    assert pauses.take_up(paused.node, paused.announcement()) is not None


def test_a_resume_of_other_lists_than_the_journals_does_not_hold_and_the_next_one_does(paused):
    """The note is not believed: a copy with smaller numbers gives a resume that the journal refuses."""
    path = paused.silo.config.studies / paused.portal.manifest.study / "paused.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lists": 1}))
    sign(paused)
    with pytest.raises(Refused) as caught:
        pauses.take_up(paused.node, paused.announcement())
    assert caught.value.code == "RESUME_NOT_VALID"
    assert "1 lists" in caught.value.sentence
    assert paused.refused() == "STUDY_PAUSED"
    sign(paused)
    assert pauses.take_up(paused.node, paused.announcement()) is not None


def test_where_two_stewards_must_agree_one_signature_is_not_enough(paused):
    config = paused.silo.config
    old = paused.silo.node()
    from silo_node.steward import documents
    from silo_node.steward.approvals import load_steward

    first = load_steward(config, documents.load_trust(config), PASSPHRASE)
    old.close()
    second = SigningKey.generate()
    second.save(steward_key_path(config, second.keyid), SECOND)
    until = utc_text(datetime.now(UTC) + timedelta(days=9))
    keys = {
        key.keyid: {"kind": "ed25519", "public": b64(key.public), "role": "steward", "person": name, "not_after": until}
        for key, name in ((first, "Dr. Steward"), (second, "Dr. Second"))
    }
    document = {"schema": "consilium/trust/1", "version": 1, "keys": keys, "roles": {"steward": 2}}
    from protocol.trust import add_signature

    trust = add_signature(sign_envelope(TRUST_TYPE, freeze_trust(document), first), second)
    config.trust.write_text(json.dumps(trust.as_dict()))
    assert sign(paused)[1] == 1
    with pytest.raises(Refused) as caught:
        pauses.take_up(paused.node, paused.announcement())
    assert "signed by 1 of the 2 people" in caught.value.sentence
    with pytest.raises(UsageError, match="another reason"):
        sign(paused, "Something else.", SECOND)
    with pytest.raises(UsageError, match="signed the envelope already"):
        sign(paused, "")
    envelope, missing = sign(paused, "", SECOND)
    assert missing == 0
    assert len(envelope.signatures) == 2
    assert pauses.take_up(paused.node, paused.announcement()) is not None


def test_a_key_that_is_over_resumes_nothing(paused):
    pause = resumes.waiting(paused.silo.config, paused.portal.manifest.study)
    with pytest.raises(UsageError):
        resumes.sign(
            paused.node, pause, passphrase=PASSPHRASE, reason="Late.", now=datetime.now(UTC) + timedelta(days=731)
        )
    sign(paused)
    with pytest.raises(Refused):
        pauses.take_up(paused.node, paused.announcement(), now=datetime.now(UTC) + timedelta(days=731))


def test_another_list_after_an_unmasking_waits_for_a_steward_too(ready, portal):
    door = Door(ready, portal)
    announcement = door.announcement()
    ledger = signed_lists(door.node, announcement.study, announcement.model, 1)
    ledger.unmask(901, announcement.model, ALL)
    with pytest.raises(ProtocolViolation) as caught:
        ledger.check_members(announcement.model, ALL[:3])
    pauses.note(door.node, announcement, caught.value)
    assert door.ask(announcement), "a round of the same silos may still run"
    said = " ".join(resumes.risk(resumes.waiting(ready.config, announcement.study), "site-1"))
    assert "helped to unmask 1" in said
    sign(door)
    assert pauses.take_up(door.node, announcement) is not None
    ledger.check_members(announcement.model, ALL[:3])
    door.node.close()


def test_a_file_that_is_no_resume_is_named_and_changes_nothing(paused):
    path = paused.silo.config.resumes / paused.portal.manifest.study / "note.json"
    path.parent.mkdir(parents=True)
    for content in ("{}", "not json", json.dumps(sign_envelope("a/b", b"{}", SigningKey.generate()).as_dict())):
        path.write_text(content)
        with pytest.raises(Refused, match=r"note\.json") as caught:
            pauses.take_up(paused.node, paused.announcement())
        assert str(paused.silo.folder) not in caught.value.sentence
    assert paused.refused() == "STUDY_PAUSED"


def test_a_statement_says_exactly_what_was_shown(paused):
    envelope, _ = sign(paused)
    statement = Resume.parse(envelope.payload)
    assert (statement.silo, statement.study) == ("site-1", paused.portal.manifest.study)
    assert (statement.model, statement.lists, statement.unmasked) == (paused.announcement().model, 3, 0)
