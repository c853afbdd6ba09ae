"""Membership of one patient in one round's cohort: what holds, and that nothing else can be made to hold."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol.canonical import b64, decode, encode, unb64
from protocol.signing import SigningKey
from protocol.transparency import verify
from protocol.transparency.log_policy import write_log_policy
from protocol.transparency.membership import Membership, MembershipError, make_membership, verify_membership
from protocol.transparency.note import Checkpoint, LogKey, NoteError, open_checkpoint, sign_checkpoint
from protocol.transparency.proof import make_proof
from protocol.transparency.record import private_digest
from protocol.transparency.tree import inclusion_proof, leaf_hash, root

LOG = LogKey("consilium/silo/site-1", SigningKey.from_bytes(b"l" * 32))
SALT = b"s" * 32
KEY = b"k" * 32


def pseudonym(patient: str) -> bytes:
    return hmac.new(KEY, patient.encode(), sha256).digest()


def cohort(size: int) -> list[bytes]:
    return sorted(pseudonym(f"P{number}") for number in range(size))


def record(leaves: list[bytes], **changes: Any) -> bytes:
    return encode(
        {
            "v": 1,
            "id": "0193a5f0-1234-7abc-8def-000000000001",
            "time": "2026-11-23T10:00:00.000Z",
            "type": "round.cohort",
            "actor": {"id": "site-1", "role": "silo", "org": None, "auth": None},
            "subject": {"kind": "round", "id": "st-a.1.1", "version": None},
            "outcome": "success",
            "reasons": [],
            "refs": {"cohort_root": "sha256:" + root([leaf_hash(each) for each in leaves]).hex()},
            "data": {},
            "private": private_digest(SALT, {"patients": len(leaves)}),
            **changes,
        }
    )


def logged(data: bytes, log: LogKey = LOG) -> str:
    """The record as entry 2 of a log of 5."""
    hashes = [leaf_hash(each) for each in (b"a", b"b", data, b"c", b"d")]
    note = sign_checkpoint(Checkpoint(log.origin, 5, root(hashes)), log)
    return make_proof(2, inclusion_proof(hashes, 2, 5), note)


def file_for(leaves: list[bytes], own: bytes, **changes: Any) -> bytes:
    data = record(leaves, **changes)
    return make_membership(leaves, own, salt=SALT, record=data, proof=logged(data))


def check(data: bytes) -> Membership:
    return verify_membership(data, open_note=lambda note: (open_checkpoint(note, LOG.vkey), ()))


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    body = decode(data)
    change(body)
    return encode(body)


@pytest.mark.parametrize("size", range(1, 18))
def test_everybody_in_a_cohort_is_proved_to_be_in_it_and_nobody_else(size):
    leaves = cohort(size)
    for own in leaves:
        found = check(file_for(leaves, own))
        assert (found.member, found.pseudonym, found.size, found.round) == (True, own.hex(), size, "st-a.1.1")
        assert (found.entry, found.checkpoint.size, found.time) == (2, 5, "2026-11-23T10:00:00.000Z")
    for own in (bytes(32), b"\xff" * 32, pseudonym("P99"), *(bytes([*each[:-1], each[-1] ^ 1]) for each in leaves)):
        assert check(file_for(leaves, own)).member is False


def test_nobody_is_in_an_empty_cohort():
    assert check(file_for([], pseudonym("P1"))).size == 0
    with pytest.raises(MembershipError, match="not empty"):
        check(file_for([], pseudonym("P1"), refs={"cohort_root": "sha256:" + "0" * 64}))


def test_a_proof_shows_at_most_two_other_pseudonyms():
    leaves = cohort(100)
    body = decode(file_for(leaves, pseudonym("P1000")))
    assert len(body["leaves"]) == 2
    assert len(decode(file_for(leaves, leaves[7]))["leaves"]) == 1
    shown = json.dumps(body)
    assert sum(each.hex() in shown for each in leaves) == 2


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.booleans(), st.data())
def test_one_changed_byte_is_refused_or_is_about_somebody_else(size, member, data):
    leaves = cohort(size)
    own = data.draw(st.sampled_from(leaves)) if member else pseudonym("nobody")
    file = bytearray(file_for(leaves, own))
    at = data.draw(st.integers(0, len(file) - 1))
    file[at] ^= data.draw(st.integers(1, 255))
    try:
        found = check(bytes(file))
    except (MembershipError, NoteError):
        return
    # Another pseudonym between the same neighbours is not in the cohort either: true, and about somebody else.
    assert not member
    assert not found.member
    assert found.pseudonym != own.hex()
    assert bytes.fromhex(found.pseudonym) not in leaves


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(0, 60), st.data())
def test_no_leaves_that_a_liar_may_show_deny_a_member(size, claimed, data):
    """With every honest path at hand, and a record that says another size, a member can't be made to be outside."""
    leaves = cohort(size)
    own = data.draw(st.sampled_from(leaves))
    hashes = [leaf_hash(each) for each in leaves]
    body = decode(file_for(leaves, own, private=private_digest(SALT, {"patients": claimed})))
    body |= {"member": False, "size": claimed}
    shown = data.draw(st.lists(st.integers(0, size - 1), max_size=2, unique=True).map(sorted))
    offset = data.draw(st.integers(-2, 2))
    body["leaves"] = [
        {
            "index": max(0, index + offset),
            "pseudonym": leaves[index].hex(),
            "path": [b64(item) for item in inclusion_proof(hashes, index, size)],
        }
        for index in shown
    ]
    with pytest.raises(MembershipError):
        check(encode(body))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 64))
def test_another_size_than_the_records_is_refused(size, other):
    assume(size != other)
    leaves = cohort(size)
    with pytest.raises(MembershipError, match="does not have the size"):
        check(changed(file_for(leaves, leaves[0]), lambda body: body.update(size=other)))


def test_the_root_of_another_cohort_is_refused():
    leaves = cohort(7)
    other = record(cohort(8))
    data = make_membership(leaves, leaves[0], salt=SALT, record=other, proof=logged(other))
    with pytest.raises(MembershipError):
        check(data)


def test_another_logs_signature_is_refused():
    leaves = cohort(3)
    data = record(leaves)
    other = LogKey("consilium/silo/site-1", SigningKey.from_bytes(b"o" * 32))
    file = make_membership(leaves, leaves[0], salt=SALT, record=data, proof=logged(data, other))
    with pytest.raises(NoteError):
        check(file)


def test_a_record_that_the_log_does_not_hold_is_refused():
    leaves = cohort(3)
    file = make_membership(leaves, leaves[0], salt=SALT, record=record(leaves), proof=logged(record(cohort(4))))
    with pytest.raises(MembershipError, match="does not lead to the root"):
        check(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "round.started"}, "not that of a round's cohort"),
        ({"subject": {"kind": "study", "id": "st-a.1.1", "version": None}}, "not that of a round's cohort"),
        ({"private": None}, "does not have the size"),
        ({"refs": {}}, "opened no image"),
        ({"refs": {"cohort_root": "md5:0"}}, "opened no image"),
        ({"refs": {"cohort_root": "sha256:00"}}, "64 lower hex digits"),
        ({"outcome": "perhaps"}, "outcome: not in its form"),
    ],
)
def test_another_record_is_refused(changes, words):
    leaves = cohort(3)
    with pytest.raises(MembershipError, match=words):
        check(file_for(leaves, leaves[0], **changes))


def own_leaf(body: dict[str, Any]) -> dict[str, Any]:
    return dict(body["leaves"][0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body.update(schema="consilium/cohort-proof/2"), "must have exactly"),
        (lambda body: body.update(extra=1), "must have exactly"),
        (lambda body: body.pop("salt"), "must have exactly"),
        (lambda body: body.update(member=1), "member must be true or false"),
        (lambda body: body.update(size=True), "size a number"),
        (lambda body: body.update(size=-1), "size a number"),
        (lambda body: body.update(proof=None), "proof must be text"),
        (lambda body: body.update(leaves={}), "leaves a list"),
        (lambda body: body.update(salt="AA=="), "salt must have 32 bytes"),
        (lambda body: body.update(record="?"), "base64"),
        (lambda body: body.update(pseudonym="A" * 64), "lower hex digits"),
        (lambda body: body.update(pseudonym=1), "lower hex digits"),
        (lambda body: body.update(leaves=[]), "the member's leaf and no other"),
        (lambda body: body["leaves"].append(own_leaf(body)), "the member's leaf and no other"),
        (lambda body: body.update(member=False), "neither the first"),
        (lambda body: body.update(member=False, leaves=[]), "two neighbours are shown"),
        (lambda body: body["leaves"].append(3), "exactly index"),
        (lambda body: body["leaves"][0].update(x=1), "exactly index"),
        (lambda body: body["leaves"][0].update(index=-1), "a number from 0"),
        (lambda body: body["leaves"][0].update(path="x"), "a list of at most"),
        (lambda body: body["leaves"][0].update(path=["AA=="] * 64), "a list of at most"),
        (lambda body: body["leaves"][0].update(path=["AA=="]), "32 bytes"),
    ],
)
def test_a_file_of_another_form_is_refused(change, words):
    leaves = cohort(5)
    with pytest.raises(MembershipError, match=words):
        check(changed(file_for(leaves, leaves[2]), change))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a":1,"a":2}', b" " * 1_048_577])
def test_what_is_no_such_file_is_refused(data):
    with pytest.raises(MembershipError):
        check(data)


def test_leaves_that_are_not_neighbours_are_refused():
    leaves = cohort(9)
    hashes = [leaf_hash(each) for each in leaves]
    own = bytes([*leaves[4][:-1], leaves[4][-1] ^ 1])

    def show(*indices: int) -> Callable[[dict[str, Any]], object]:
        return lambda body: body.update(
            leaves=[
                {"index": at, "pseudonym": leaves[at].hex(), "path": [b64(x) for x in inclusion_proof(hashes, at, 9)]}
                for at in indices
            ]
        )

    for indices in ((3, 5), (2, 6), (0, 1), (7, 8), (5, 4)):
        with pytest.raises(MembershipError, match="not the neighbours"):
            check(changed(file_for(leaves, own), show(*indices)))
    for index in (0, 4, 8):
        with pytest.raises(MembershipError, match="neither the first"):
            check(changed(file_for(leaves, own), show(index)))
    with pytest.raises(MembershipError, match="two neighbours"):
        check(changed(file_for(leaves, own), show(3, 4, 5)))


def run(path: Path, *arguments: str) -> int:
    return verify.main(["membership", str(path), *arguments])


def test_the_command_says_who_was_in_and_who_was_not(tmp_path, capsys):
    leaves, path = cohort(12), tmp_path / "proof.json"
    path.write_bytes(file_for(leaves, leaves[3]))
    assert run(path, "--vkey", LOG.vkey) == 0
    said = capsys.readouterr().out
    assert f"{leaves[3].hex()} was in the cohort of round st-a.1.1, of 12 patients" in said
    assert "the hospital's word" in said and "witness  none" in said
    path.write_bytes(file_for(leaves, pseudonym("P99")))
    policy = tmp_path / "policy"
    policy.write_text(write_log_policy([LOG.vkey], [], 0))
    assert run(path, "--policy", str(policy)) == 0
    assert "was NOT in the cohort" in capsys.readouterr().out
    assert run(path, "--policy", str(policy), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["member"], found["size"], found["log"]["size"]) == (True, False, 12, 5)


def test_the_command_fails_where_the_proof_does(tmp_path, capsys):
    path, other = tmp_path / "proof.json", LogKey("elsewhere", SigningKey.from_bytes(b"o" * 32))
    file = file_for(cohort(3), pseudonym("P1"))
    path.write_bytes(file)
    assert run(path, "--vkey", other.vkey) == 1
    assert "FAILED: 1 fault" in capsys.readouterr().out
    path.write_bytes(file.replace(b'"size":3', b'"size":4'))
    assert run(path, "--vkey", LOG.vkey, "--json") == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    with pytest.raises(SystemExit):
        run(path)


def test_the_salt_in_a_file_opens_the_size_and_nothing_else():
    body = decode(file_for(cohort(3), pseudonym("P1")))
    assert decode(unb64(body["record"]))["private"] == private_digest(unb64(body["salt"]), {"patients": 3})
