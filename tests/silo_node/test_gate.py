"""The gate: each reason for a refusal, with its code and a sentence; and that nothing was opened before it."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import pytest

from protocol import canonical
from protocol.canonical import b64, digest
from protocol.messages import State, seal
from protocol.secure_aggregation import StudyLedger
from protocol.signing import Envelope, SigningKey
from protocol.transparency.note import Checkpoint, sign_checkpoint
from protocol.transparency.proof import make_proof
from protocol.transparency.tiles import append, inclusion_from_tiles
from silo_node import gate
from silo_node.errors import Refused
from silo_node.rounds.announcement import Announcement
from tests.silo_node.portal_double import MemoryTiles, PlayedRound


class Door:
    """A silo before the gate of a training round."""

    def __init__(self, silo, portal) -> None:
        self.silo, self.portal = silo, portal
        self.node = silo.node()

    def announcement(self, number=1, attempt=1, **changes):
        portal = self.portal
        if number:
            portal.states[portal.first.digest] = portal.first
            if portal.first.digest not in portal.signatures:
                first = PlayedRound(portal, 0, 1, "initial", None)
                portal.signatures[portal.first.digest] = [
                    first._state_of(partner).as_dict() for partner in portal.partners.values()
                ]
        purpose, model = ("train", portal.first.digest) if number else ("initial", None)
        played = PlayedRound(portal, number, attempt, purpose, model)
        [raw] = [each for each in played.assignments(portal.silo) if each["kind"] == "announce"]
        return Announcement.parse({**raw, **changes})

    def ask(self, announcement=None, manifest=None, now=None):
        return gate.check(
            announcement or self.announcement(), manifest or self.portal.manifest_bytes, node=self.node, now=now
        )

    def refused(self, *arguments, **more):
        with pytest.raises(Refused) as caught:
            self.ask(*arguments, **more)
        assert len(caught.value.sentence.split()) > 3, "a sentence that a person understands"
        return caught.value.code


@pytest.fixture
def door(ready, portal):
    door = Door(ready, portal)
    yield door
    door.node.close()


def test_it_permits_what_the_steward_approved(door):
    permission = door.ask()
    assert permission.manifest.study == door.portal.manifest.study
    assert permission.cohort is None
    assert len(permission.approvals) == 1


def test_it_permits_the_round_that_makes_the_first_model(door):
    assert door.ask(door.announcement(0)).manifest


def test_one_changed_byte_in_the_manifest(door):
    body = bytearray(door.portal.manifest_bytes)
    body[len(body) // 2] ^= 1
    assert door.refused(manifest=bytes(body)) == "MANIFEST_DIFFERS"


def test_another_manifest_that_says_its_digest(door):
    other = json.loads(door.portal.manifest_bytes)
    other["plan"]["local_epochs"] = 7
    from protocol.manifest import freeze

    body = freeze(other)
    assert door.refused(door.announcement(manifest=digest(body)), body) == "APPROVAL_OTHER_MANIFEST"


def test_a_manifest_that_is_none(door):
    assert door.refused(door.announcement(manifest=digest(b"{}")), b"{}") == "MANIFEST_NOT_VALID"


def test_without_an_approval(silo, portal):
    portal.make_study()
    portal.approval_record, portal.approval_index = portal.entries[0], 0
    door = Door(silo, portal)
    assert door.refused() == "APPROVAL_MISSING"
    door.node.close()


def test_a_revoked_approval(door):
    door.silo.decide("revoke", "The ethics committee has doubts.")
    assert door.refused() == "APPROVAL_REVOKED"


def test_an_approval_after_a_revocation_counts_again(door):
    door.silo.decide("revoke", "For a moment.")
    door.silo.decide("approve")
    assert door.ask()


def test_an_expired_approval(ready, portal):
    ready.decide(until=date.today())
    for path in (ready.config.approvals / portal.manifest.study).iterdir():
        statement = json.loads(Envelope.from_dict(json.loads(path.read_text())).payload)
        if statement["not_after"][:10] != date.today().isoformat():
            path.unlink()
    door = Door(ready, portal)
    assert door.refused(now=datetime.now(UTC) + timedelta(days=2)) == "APPROVAL_EXPIRED"
    door.node.close()


def test_an_approval_with_one_changed_byte(door):
    [path] = (door.silo.config.approvals / door.portal.manifest.study).iterdir()
    value = json.loads(path.read_text())
    payload = json.loads(Envelope.from_dict(value).payload)
    payload["limits"]["max_rounds"] += 1
    value["payload"] = b64(json.dumps(payload, separators=(",", ":"), sort_keys=True).encode())
    path.write_text(json.dumps(value))
    assert door.refused() == "APPROVAL_SIGNATURE"


def test_an_approval_that_the_portal_made_itself(door):
    """The portal holds no steward's key; with one of its own it gets nowhere."""
    [path] = (door.silo.config.approvals / door.portal.manifest.study).iterdir()
    payload = Envelope.from_dict(json.loads(path.read_text())).payload
    from protocol.approval import APPROVAL_TYPE
    from protocol.signing import sign_envelope

    path.write_text(json.dumps(sign_envelope(APPROVAL_TYPE, payload, SigningKey.generate()).as_dict()))
    assert door.refused() == "APPROVAL_SIGNATURE"


def test_a_policy_that_changed_since_the_approval(door):
    door.silo.policy(share_metrics=True)
    assert door.refused() == "APPROVAL_OTHER_POLICY"


def test_a_policy_that_denies(door):
    door.silo.policy(permission="DUO:0000007", diseases=["DOID:162"])
    assert door.refused() == "POLICY_DENY"


def test_no_policy(door):
    door.silo.config.policy.unlink()
    assert door.refused() == "POLICY_MISSING"


def test_a_policy_that_is_over(door):
    door.silo.policy(limits={"expires": (date.today() + timedelta(days=90)).isoformat()})
    door.silo.decide()
    assert door.ask()
    # the study ends before the policy does; the policy ends before today
    assert door.refused(now=datetime.now(UTC) + timedelta(days=91)) in ("OUTSIDE_DATES", "POLICY_EXPIRED")


def test_a_policy_that_somebody_else_signed(door):
    value = json.loads(door.silo.config.policy.read_text())
    envelope = Envelope.from_dict(value)
    from protocol.signing import sign_envelope

    forged = sign_envelope(envelope.payload_type, envelope.payload, SigningKey.generate())
    door.silo.config.policy.write_text(json.dumps(forged.as_dict()))
    assert door.refused() == "POLICY_SIGNATURE"


def test_a_trust_file_that_is_gone(door):
    door.silo.config.trust.unlink()
    assert door.refused() == "TRUST_MISSING"


def test_outside_the_dates(door):
    assert door.refused(now=datetime.now(UTC) - timedelta(days=1)) == "OUTSIDE_DATES"
    assert door.refused(now=datetime.now(UTC) + timedelta(days=31)) == "OUTSIDE_DATES"


def test_a_study_that_does_not_name_this_silo_or_names_another_key(silo, portal):
    portal.public, own = SigningKey.generate().public, portal.public
    portal.make_study()
    portal.public = own
    portal.approval_record, portal.approval_index = portal.entries[0], 0
    door = Door(silo, portal)
    assert door.refused() == "OTHER_KEY"
    door.node.close()


def test_another_log_than_the_pinned_one(silo, portal):
    from protocol.transparency.note import LogKey

    portal.make_study(log={"vkey": LogKey("other.example/audit", SigningKey.generate()).vkey})
    silo.decide()
    door = Door(silo, portal)
    assert door.refused() == "OTHER_LOG"
    door.node.close()


def test_a_record_of_something_else(door):
    index = door.portal.log_append(
        {
            "type": "study.approved",
            "outcome": "success",
            "refs": {"manifest": door.portal.manifest_digest, "approval": digest(b"x")},
        }
    )
    door.portal.approval_record, door.portal.approval_index = door.portal.entries[index], index
    assert door.refused() == "LOG_RECORD"


@pytest.mark.parametrize("refs", [[], None, 5, "manifest", {}])
def test_a_record_whose_references_are_none(door, refs):
    record = {"type": "study.approved", "outcome": "success", "refs": refs}
    assert door.refused(door.announcement(record=b64(canonical.encode(record)))) == "LOG_RECORD"


def test_a_record_that_the_log_does_not_hold(door):
    announcement = door.announcement()
    record = json.loads(announcement.record)
    record["data"]["silo"] = "site-9"
    forged = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    assert door.refused(door.announcement(record=b64(forged))) == "LOG_PROOF"


def test_a_log_that_grew_is_followed(door):
    assert door.ask()
    for _ in range(300):
        door.portal.log_append({"type": "something"})
    assert door.ask()
    assert json.loads((door.silo.folder / "portal_log.json").read_text())["note"] == door.portal.note


def test_an_older_checkpoint_of_the_same_log_is_no_reason_to_refuse(door):
    older = door.announcement()
    for _ in range(5):
        door.portal.log_append({"type": "something"})
    assert door.ask()
    assert door.ask(older)
    assert json.loads((door.silo.folder / "portal_log.json").read_text())["note"] == door.portal.note


def other_log(portal, extra):
    """The portal shows this silo a log with the same approval, and another history around it."""
    tiles = MemoryTiles()
    entries = [*portal.entries[: portal.approval_index], portal.entries[portal.approval_index], *extra]
    size, root = append(tiles, 0, entries)
    note = sign_checkpoint(Checkpoint(portal.log_key.origin, size, root), portal.log_key)
    return make_proof(portal.approval_index, inclusion_from_tiles(tiles, portal.approval_index, size), note)


def test_two_logs_of_equal_size_stop_every_study_and_are_kept_as_proof(door):
    door.portal.log_append({"type": "one"})
    assert door.ask()
    proof = other_log(door.portal, [b'{"type":"two"}'])
    assert door.refused(door.announcement(proof=proof)) == "LOG_FORKED"
    [kept] = door.silo.folder.glob("log-fork-*.json")
    assert set(json.loads(kept.read_text())) == {"first", "second"}
    assert door.refused() == "LOG_FORKED"


def test_a_log_that_is_no_continuation(door):
    door.portal.log_append({"type": "one"})
    assert door.ask()
    proof = other_log(door.portal, [b'{"type":"two"}', b'{"type":"three"}'])
    assert door.refused(door.announcement(proof=proof)) in ("LOG_FORKED", "LOG_UNREADABLE")


def test_the_limit_of_rounds(ready, portal):
    ready.decide("revoke", "Fewer rounds.")
    ready.decide(max_rounds=1)
    door = Door(ready, portal)
    announcement = door.announcement(1)
    door.node.journal.put(gate.trained_key(portal.manifest.study, announcement.model), b"1")
    assert door.ask(announcement)
    door.node.journal.put(gate.trained_key(portal.manifest.study, "sha256:" + "0" * 64), b"1")
    assert door.refused(announcement) == "LIMIT_MAX_ROUNDS"
    door.node.close()


def test_the_constant_network_unless_allowed_here(ready, portal):
    text = (ready.folder / "silo.toml").read_text()
    (ready.folder / "silo.toml").write_text(text.replace("allow_constant = true", "allow_constant = false"))
    door = Door(ready, portal)
    assert door.refused() == "NETWORK_NOT_ALLOWED"
    door.node.close()


def test_a_network_outside_the_hospitals_list(ready, portal):
    text = (ready.folder / "silo.toml").read_text()
    (ready.folder / "silo.toml").write_text(text.replace("[training]", '[training]\nnetworks = ["DenseNet"]'))
    door = Door(ready, portal)
    assert door.refused() == "NETWORK_NOT_ALLOWED"
    door.node.close()


def test_a_partner_with_another_key_than_the_pinned_one(door):
    door.silo.policy(partners={"keys": {"site-2": "ab" * 32}, "min_known": 1})
    door.silo.decide()
    assert door.refused() == "PARTNER_KEY_DIFFERS"


def test_a_model_with_too_few_or_foreign_signatures(door):
    states = door.announcement().raw["states"]
    assert door.refused(door.announcement(states=states[:2])) == "MODEL_NOT_SIGNED"
    assert door.refused(door.announcement(states=[])) == "MODEL_NOT_SIGNED"
    assert door.refused(door.announcement(states=[states[0], states[1], states[1]])) == "MODEL_NOT_SIGNED"
    stranger = SigningKey.generate()
    message = State(ctx="0" * 64, silo="site-4", roster=None, state=door.portal.first.digest, table=None)
    forged = seal(message, stranger).as_dict()
    assert door.refused(door.announcement(states=[*states[:2], forged])) == "MODEL_NOT_SIGNED"


def test_signatures_on_another_model(door):
    assert door.refused(door.announcement(model="sha256:" + "1" * 64)) == "MODEL_NOT_SIGNED"


def test_signatures_of_different_rounds_do_not_add_up(door):
    states = door.announcement().raw["states"]
    partner = door.portal.partners["site-4"]
    message = State(ctx="0" * 64, silo="site-4", roster=None, state=door.portal.first.digest, table=None)
    assert (
        door.refused(door.announcement(states=[*states[:2], seal(message, partner.key).as_dict()]))
        == "MODEL_NOT_SIGNED"
    )


def test_an_older_round_than_one_that_was_joined(door):
    StudyLedger(door.node.journal, door.portal.manifest.study).join(2, 1)
    assert door.refused() == "OLD_ROUND"


def test_a_study_paused_here(door):
    path = door.silo.config.studies / door.portal.manifest.study / "paused.json"
    path.write_text(json.dumps({"code": "STUDY_PAUSED", "sentence": "Three lists were signed."}))
    assert door.refused() == "STUDY_PAUSED"


def test_a_disk_that_is_nearly_full(ready, portal):
    text = (ready.folder / "silo.toml").read_text()
    (ready.folder / "silo.toml").write_text(text.replace("free_mb = 0", "free_mb = 1000000000"))
    door = Door(ready, portal)
    assert door.refused() == "SILO_DISK_FULL"
    door.node.close()


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": "x"},
        {"manifest": None},
        {"number": -1},
        {"number": True},
        {"attempt": "1"},
        {"purpose": "steal"},
        {"model": None},
        {"model": "sha256:zz"},
        {"round": "st-abcdefghijklmnop.9.9"},
        {"study": "../../etc"},
        {"record": None},
        {"record": "not base64!"},
        {"proof": 5},
        {"states": [{"payload": "x"}]},
        {"states": 7},
    ],
)
def test_a_malformed_announcement_is_refused_by_field(door, change):
    raw = dict(door.announcement().raw)
    with pytest.raises(Refused) as caught:
        Announcement.parse({**raw, **change})
    assert caught.value.code == "BAD_ANNOUNCEMENT"
