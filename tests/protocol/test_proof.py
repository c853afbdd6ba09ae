"""One record's proof in one file."""

from __future__ import annotations

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
    cosign,
    sign_checkpoint,
)
from protocol.transparency.proof import HEADER, make_proof, parse_proof, verify_proof
from protocol.transparency.tree import ProofError, inclusion_proof, leaf_hash, root

LOG = LogKey("portal.example.org/audit", SigningKey.from_bytes(b"l" * 32))
DATAS = [b"record %d" % at for at in range(9)]
HASHES = [leaf_hash(data) for data in DATAS]
CHECKPOINT = Checkpoint(LOG.origin, 9, root(HASHES))
NOTE = sign_checkpoint(CHECKPOINT, LOG)
PROOF = make_proof(5, inclusion_proof(HASHES, 5, 9), NOTE)


def test_the_file_is_exactly_these_lines() -> None:
    hashes = [b64(item) for item in inclusion_proof(HASHES, 5, 9)]
    assert "\n".join(["c2sp.org/tlog-proof@v1", "index 5", *hashes, "", NOTE]) == PROOF
    assert parse_proof(PROOF).note == NOTE


def test_every_record_of_every_size_is_proved() -> None:
    for size in range(1, len(DATAS) + 1):
        note = sign_checkpoint(Checkpoint(LOG.origin, size, root(HASHES[:size])), LOG)
        for index in range(size):
            text = make_proof(index, inclusion_proof(HASHES, index, size), note)
            assert verify_proof(text, leaf_data=DATAS[index], vkey=LOG.vkey).size == size


def test_a_proof_carries_cosignatures_verbatim() -> None:
    witness = WitnessKey("w", SigningKey.from_bytes(b"w" * 32))
    note = add_signatures(NOTE, cosign(CHECKPOINT, witness, 9))
    text = make_proof(5, inclusion_proof(HASHES, 5, 9), note)
    assert text.endswith(cosign(CHECKPOINT, witness, 9))
    assert verify_proof(text, leaf_data=DATAS[5], vkey=LOG.vkey) == CHECKPOINT


def test_another_record_key_or_index_proves_nothing() -> None:
    with pytest.raises(ProofError, match="does not lead"):
        verify_proof(PROOF, leaf_data=DATAS[4], vkey=LOG.vkey)
    with pytest.raises(ProofError, match="does not lead"):
        verify_proof(PROOF, leaf_data=DATAS[5] + b" ", vkey=LOG.vkey)
    with pytest.raises(NoteError):
        verify_proof(PROOF, leaf_data=DATAS[5], vkey=LogKey(LOG.origin, SigningKey.generate()).vkey)
    with pytest.raises(ProofError):
        verify_proof(PROOF.replace("index 5", "index 4"), leaf_data=DATAS[5], vkey=LOG.vkey)
    with pytest.raises(ProofError, match="no entry 9"):
        verify_proof(PROOF.replace("index 5", "index 9"), leaf_data=DATAS[5], vkey=LOG.vkey)


def test_one_changed_character_is_refused() -> None:
    for at in range(len(PROOF)):
        for other in ("B", "7", "\n", " "):
            changed = PROOF[:at] + other + PROOF[at + 1 :]
            if changed != PROOF:
                with pytest.raises((ProofError, NoteError)):
                    verify_proof(changed, leaf_data=DATAS[5], vkey=LOG.vkey)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", HEADER),
        (HEADER, HEADER),
        (f"{HEADER}\n\n{NOTE}", "line 2"),
        (f"{HEADER}\nextra AAAA\nindex 0\n\n{NOTE}", "line 2"),
        (f"{HEADER}\nindex 00\n\n{NOTE}", "leading zeros"),
        (f"{HEADER}\nindex -1\n\n{NOTE}", "leading zeros"),
        (f"{HEADER}\nindex\n\n{NOTE}", "leading zeros"),
        (f"{HEADER}\nindex 0\nAAAA\n\n{NOTE}", "line 3: a hash has 32"),
        (f"{HEADER}\nindex 0\nnot base64\n\n{NOTE}", "line 3: not standard"),
        (f"{HEADER}\nindex 0\n" + f"{b64(bytes(32))}\n" * 64 + f"\n{NOTE}", "more than 63"),
        (f"{HEADER}\nindex 0\n\nno note", "note"),
        (f"c2sp.org/tlog-proof@v2\nindex 0\n\n{NOTE}", HEADER),
        (f"{HEADER}\r\nindex 0\n\n{NOTE}", HEADER),
    ],
)
def test_what_is_no_proof_is_refused(text: str, why: str) -> None:
    with pytest.raises(ProofError, match=why):
        parse_proof(text)


def test_a_proof_that_could_not_be_read_is_not_made() -> None:
    for index, hashes, note in [(-1, [], NOTE), (0, [b"short"], NOTE), (0, [], "no note")]:
        with pytest.raises(ProofError):
            make_proof(index, hashes, note)


@given(st.text(max_size=200) | st.text("\n index0123=A", max_size=80).map(lambda tail: HEADER + "\nindex 1" + tail))
def test_the_parser_never_fails_with_another_error(text: str) -> None:
    with pytest.raises(ProofError):
        parse_proof(text)
