"""A witness cosigns one history only, remembers it on disk, and answers with tlog-witness's meanings."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import b64
from protocol.signing import SigningKey
from protocol.transparency.note import (
    Checkpoint,
    LogKey,
    NoteError,
    WitnessKey,
    add_signatures,
    open_checkpoint,
    sign_checkpoint,
    verify_cosignatures,
)
from protocol.transparency.tree import EMPTY_ROOT, consistency_proof, leaf_hash, root
from protocol.transparency.witness import (
    FolderWitnessStore,
    RequestError,
    add_checkpoint,
    parse_request,
    write_request,
)

LOG = LogKey("portal.example.org/audit", SigningKey.from_bytes(b"l" * 32))
WITNESS = WitnessKey("site-1.example.org/witness", SigningKey.from_bytes(b"w" * 32))
LOGS = {LOG.origin: LOG.vkey}
LEAVES = [leaf_hash(b"%d" % at) for at in range(20)]
FORK = [*LEAVES[:3], *(leaf_hash(b"fork %d" % at) for at in range(17))]


def note_at(size: int, leaves: list[bytes] = LEAVES, log: LogKey = LOG) -> str:
    return sign_checkpoint(Checkpoint(log.origin, size, root(leaves[:size])), log)


def request(old: int, size: int, leaves: list[bytes] = LEAVES) -> bytes:
    return write_request(old, consistency_proof(leaves, old, size) if old else [], note_at(size, leaves))


@pytest.fixture
def store(tmp_path: Path) -> FolderWitnessStore:
    return FolderWitnessStore(tmp_path / "witness")


def ask(store: FolderWitnessStore, body: bytes, now: int = 1000) -> tuple[int, bytes]:
    return add_checkpoint(body, witness=WITNESS, logs=LOGS, store=store, now=now)


def test_a_log_that_grows_is_cosigned_each_time(store: FolderWitnessStore) -> None:
    old = 0
    for now, size in enumerate((1, 4, 5, 16, 20, 20), 1000):
        status, lines = ask(store, request(old, size), now)
        assert status == 200
        note = add_signatures(note_at(size), lines.decode())
        assert [item.time for item in verify_cosignatures(note, [WITNESS.vkey])] == [now]
        assert store.newest(LOG.origin) == note_at(size)
        old = size


def test_the_whole_note_is_on_disk_before_the_answer(store: FolderWitnessStore) -> None:
    ask(store, request(0, 7))
    again = FolderWitnessStore(store.folder)
    newest = again.newest(LOG.origin)
    assert newest == note_at(7) and open_checkpoint(newest, LOG.vkey).size == 7
    assert ask(again, request(0, 9)) == (409, b"7\n")


def test_another_size_than_the_last_seen_is_answered_with_it(store: FolderWitnessStore) -> None:
    assert ask(store, request(3, 5)) == (409, b"0\n")
    ask(store, request(0, 5))
    assert ask(store, request(4, 8)) == (409, b"5\n")
    assert ask(store, request(0, 8)) == (409, b"5\n")
    assert ask(store, request(3, 4)) == (409, b"5\n")  # an older checkpoint never comes back
    assert store.newest(LOG.origin) == note_at(5)


def test_two_roots_of_one_size_are_kept_as_proof_and_nothing_is_cosigned_again(store: FolderWitnessStore) -> None:
    ask(store, request(0, 5))
    assert not store.accused(LOG.origin)
    assert ask(store, request(5, 5, FORK)) == (409, b"5\n")
    assert store.accused(LOG.origin)
    (evidence,) = store.folder.glob("*.misbehaviour")
    assert evidence.read_text() == note_at(5) + "\n" + note_at(5, FORK)
    assert ask(store, request(5, 9)) == (409, b"5\n")
    assert store.newest(LOG.origin) == note_at(5)
    ask(store, request(5, 5, [leaf_hash(b"third")] * 20))
    assert evidence.read_text() == note_at(5) + "\n" + note_at(5, FORK)


def test_a_wrong_proof_is_422_and_accuses_nobody(store: FolderWitnessStore) -> None:
    ask(store, request(0, 5))
    for body in (
        write_request(5, [], note_at(8)),
        write_request(5, consistency_proof(FORK, 5, 8), note_at(8, FORK)),
        write_request(5, [bytes(32)], note_at(5)),
    ):
        assert ask(store, body)[0] == 422
    assert not store.accused(LOG.origin) and store.newest(LOG.origin) == note_at(5)


def test_the_first_contact_has_no_proof(store: FolderWitnessStore) -> None:
    assert ask(store, write_request(0, [bytes(32)], note_at(5)))[0] == 422
    empty = sign_checkpoint(Checkpoint(LOG.origin, 0, EMPTY_ROOT), LOG)
    assert ask(store, write_request(0, [], empty))[0] == 200
    assert ask(store, request(0, 5))[0] == 200


def test_unknown_logs_and_bad_signatures(store: FolderWitnessStore) -> None:
    stranger = LogKey("elsewhere", SigningKey.generate())
    assert ask(store, write_request(0, [], note_at(5, log=stranger)))[0] == 404
    impostor = LogKey(LOG.origin, SigningKey.generate())
    assert ask(store, write_request(0, [], note_at(5, log=impostor)))[0] == 403
    assert ask(store, write_request(6, [], note_at(5)))[0] == 400
    assert store.newest(LOG.origin) is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "line 1"),
        (b"\xff", "UTF-8"),
        (b"new 0\n\n" + note_at(5).encode(), "line 1"),
        (b"old 00\n\n" + note_at(5).encode(), "leading zeros"),
        (b"old 0\nAAAA\n\n" + note_at(5).encode(), "line 2: a hash"),
        (b"old 0\n!\n\n" + note_at(5).encode(), "line 2: not"),
        (b"old 0\n" + f"{b64(bytes(32))}\n".encode() * 64 + b"\n" + note_at(5).encode(), "more than 63"),
        (b"old 0\n\nno note", "note"),
        (b"old 0\n\nno\ncheckpoint\n\n" + "— k AAAAAAA=\n".encode(), "three lines"),
    ],
)
def test_malformed_requests_are_400_and_say_which_line(store: FolderWitnessStore, body: bytes, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        parse_request(body)
    status, answer = ask(store, body)
    assert status == 400 and answer.endswith(b"\n")


def test_a_request_survives_its_text() -> None:
    found = parse_request(request(5, 9))
    assert (found.old, list(found.proof), found.note) == (5, consistency_proof(LEAVES, 5, 9), note_at(9))
    with pytest.raises(RequestError):
        write_request(-1, [], note_at(5))


@given(st.binary(max_size=100) | st.text("old 0123\nA=— ", max_size=80).map(str.encode))
def test_a_body_of_anything_is_answered(body: bytes) -> None:
    class Nothing:
        def newest(self, origin: str) -> str | None:
            return None

        def swap(self, origin: str, old: str | None, new: str) -> bool:
            raise AssertionError("nothing of this may be kept")

        def accuse(self, origin: str, first: str, second: str) -> None:
            raise AssertionError("nobody may be accused")

        def accused(self, origin: str) -> bool:
            return False

    status, _ = add_checkpoint(body, witness=WITNESS, logs=LOGS, store=Nothing(), now=0)
    assert status == 400


def test_of_two_requests_at_once_one_is_cosigned(store: FolderWitnessStore) -> None:
    """Both saw size 5 as the newest; whoever swaps second gets the new size, not a cosignature."""
    ask(store, request(0, 5))
    both_read = threading.Barrier(2)

    class Slow(FolderWitnessStore):
        def accused(self, origin: str) -> bool:
            both_read.wait(20)  # after newest() was read, before anything is written
            return super().accused(origin)

    slow = Slow(store.folder)
    answers: dict[int, tuple[int, bytes]] = {}

    def send(size: int) -> None:
        answers[size] = ask(slow, request(5, size))

    threads = [threading.Thread(target=send, args=(size,)) for size in (8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (winner,) = [size for size, (status, _) in answers.items() if status == 200]
    (loser,) = [answer for answer in answers.values() if answer[0] != 200]
    assert loser == (409, b"%d\n" % winner)
    assert store.newest(LOG.origin) == note_at(winner)


def test_a_store_that_lost_its_note_meanwhile_answers_zero(store: FolderWitnessStore) -> None:
    class Losing(FolderWitnessStore):
        def swap(self, origin: str, old: str | None, new: str) -> bool:
            return False

    assert ask(Losing(store.folder), request(0, 5)) == (409, b"0\n")


def test_a_swap_needs_the_note_that_is_there(store: FolderWitnessStore) -> None:
    assert not store.swap("log", "something", "new")
    assert store.swap("log", None, "new")
    assert not store.swap("log", None, "newer")
    assert store.newest("log") == "new"


def test_a_damaged_memory_stops_the_witness(store: FolderWitnessStore) -> None:
    store.swap(LOG.origin, None, "damaged")
    with pytest.raises(NoteError):
        ask(store, request(0, 5))
