"""Signed notes, checkpoints and cosignatures, byte for byte, and against notes that other tools signed."""

from __future__ import annotations

import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import b64
from protocol.signing import SigningKey
from protocol.transparency.note import (
    LOG_KIND,
    MAX_NOTE,
    MAX_SIZE,
    WITNESS_KIND,
    Checkpoint,
    LogKey,
    NoteError,
    WitnessKey,
    add_signatures,
    cosign,
    open_checkpoint,
    parse_checkpoint,
    parse_note,
    parse_signature_line,
    parse_vkey,
    sign_checkpoint,
    verify_cosignatures,
    vkey,
)
from protocol.transparency.tree import EMPTY_ROOT

LOG = LogKey("portal.example.org/audit", SigningKey.from_bytes(b"l" * 32))
OTHER = LogKey("portal.example.org/audit", SigningKey.from_bytes(b"o" * 32))
ONE = WitnessKey("site-1.example.org/witness", SigningKey.from_bytes(b"1" * 32))
TWO = WitnessKey("site-2.example.org/witness", SigningKey.from_bytes(b"2" * 32))
CHECKPOINT = Checkpoint(LOG.origin, 600, sha256(b"root").digest())
NOTE = sign_checkpoint(CHECKPOINT, LOG)

# The example of Go's package golang.org/x/mod/sumdb/note: made by another program, with a key that is not ours.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_a_note_signed_by_gos_library_verifies() -> None:
    key = parse_vkey(GO_VKEY)
    assert (key.name, key.kind, key.text) == ("PeterNeumann", LOG_KIND, GO_VKEY)
    # The signature holds, and only then is the text found to be no checkpoint.
    with pytest.raises(NoteError, match="three lines"):
        open_checkpoint(GO_NOTE, GO_VKEY)
    with pytest.raises(NoteError, match="signature does not fit"):
        open_checkpoint(GO_NOTE.replace("answer", "ansver"), GO_VKEY)


def test_the_public_log_of_the_go_ecosystem_has_a_vkey_that_we_read() -> None:
    text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert parse_vkey(text).text == text


def test_a_checkpoint_note_is_exactly_these_bytes() -> None:
    keyid = sha256(b"portal.example.org/audit\n\x01" + LOG.key.public).digest()[:4]
    text = f"portal.example.org/audit\n600\n{b64(CHECKPOINT.root)}\n"
    signature = LOG.key.sign(text.encode())
    assert f"{text}\n— portal.example.org/audit {b64(keyid + signature)}\n" == NOTE
    assert LOG.vkey == f"portal.example.org/audit+{keyid.hex()}+{b64(bytes([1]) + LOG.key.public)}"
    assert open_checkpoint(NOTE, LOG.vkey) == CHECKPOINT


def test_a_cosignature_is_exactly_these_bytes() -> None:
    keyid = sha256(b"site-1.example.org/witness\n\x04" + ONE.key.public).digest()[:4]
    message = f"cosignature/v1\ntime 1679315147\n{CHECKPOINT.text}".encode()
    blob = keyid + struct.pack(">Q", 1679315147) + ONE.key.sign(message)
    line = cosign(CHECKPOINT, ONE, 1679315147)
    assert line == f"— site-1.example.org/witness {b64(blob)}\n"
    (found,) = verify_cosignatures(add_signatures(NOTE, line), [ONE.vkey, TWO.vkey])
    assert (found.vkey, found.time) == (ONE.vkey, 1679315147)


def test_one_changed_character_of_a_note_is_refused() -> None:
    for at in range(len(NOTE)):
        for other in ("A", "1", "\n"):
            changed = NOTE[:at] + other + NOTE[at + 1 :]
            if changed != NOTE:
                with pytest.raises(NoteError):
                    open_checkpoint(changed, LOG.vkey)


def test_a_note_by_another_key_or_a_witness_is_no_checkpoint_of_the_log() -> None:
    with pytest.raises(NoteError, match="no signature by"):
        open_checkpoint(NOTE, OTHER.vkey)
    with pytest.raises(NoteError, match="witness's"):
        open_checkpoint(NOTE, ONE.vkey)
    with pytest.raises(NoteError, match="two different logs"):
        sign_checkpoint(CHECKPOINT, LogKey("elsewhere", LOG.key))
    # A key may sign the text of another log; that is not this log's checkpoint.
    liar = LogKey("liar", SigningKey.from_bytes(b"x" * 32))
    stranger = sign_checkpoint(Checkpoint("liar", 0, EMPTY_ROOT), liar)
    line = stranger.split("\n\n")[1].replace("— liar ", "— other ")
    as_other = vkey("other", liar.key.public)
    forged = NOTE.split("\n\n")[0] + "\n\n" + line
    with pytest.raises(NoteError):
        open_checkpoint(forged, as_other)
    text = CHECKPOINT.text
    signed = parse_vkey(as_other).keyid + liar.key.sign(text.encode())
    with pytest.raises(NoteError, match="origin is not the name"):
        open_checkpoint(f"{text}\n— other {b64(signed)}\n", as_other)


def test_unknown_signatures_are_passed_over_and_a_failing_known_one_rejects_all() -> None:
    strangers = "".join(cosign(CHECKPOINT, WitnessKey(f"w{at}", SigningKey.generate()), 5) for at in range(40))
    note = add_signatures(add_signatures(NOTE, strangers), cosign(CHECKPOINT, ONE, 7))
    assert open_checkpoint(note, LOG.vkey) == CHECKPOINT
    assert [item.time for item in verify_cosignatures(note, [ONE.vkey])] == [7]
    same_name = parse_note(sign_checkpoint(CHECKPOINT, OTHER))[1][0].line + "\n"
    assert open_checkpoint(add_signatures(NOTE, same_name), LOG.vkey) == CHECKPOINT
    bad = "— " + LOG.origin + " " + b64(parse_vkey(LOG.vkey).keyid + bytes(64)) + "\n"
    with pytest.raises(NoteError, match="does not fit"):
        open_checkpoint(add_signatures(NOTE, bad), LOG.vkey)


def test_cosignatures_that_do_not_hold_are_refused() -> None:
    elsewhere = cosign(Checkpoint(LOG.origin, 601, CHECKPOINT.root), ONE, 7)
    with pytest.raises(NoteError, match="does not fit"):
        verify_cosignatures(add_signatures(NOTE, elsewhere), [ONE.vkey])
    keyid = parse_vkey(ONE.vkey).keyid
    short = f"— {ONE.name} {b64(keyid + bytes(71))}\n"
    with pytest.raises(NoteError, match="8 bytes"):
        verify_cosignatures(add_signatures(NOTE, short), [ONE.vkey])
    late = f"— {ONE.name} {b64(keyid + struct.pack('>Q', 2**63) + bytes(64))}\n"
    with pytest.raises(NoteError, match="impossible"):
        verify_cosignatures(add_signatures(NOTE, late), [ONE.vkey])
    with pytest.raises(NoteError, match="this is a log's"):
        verify_cosignatures(NOTE, [LOG.vkey])
    with pytest.raises(NoteError, match="impossible"):
        cosign(CHECKPOINT, ONE, -1)
    assert verify_cosignatures(NOTE, [ONE.vkey]) == ()
    assert verify_cosignatures(NOTE, []) == ()


def test_the_newest_cosignature_of_a_witness_counts() -> None:
    note = add_signatures(NOTE, cosign(CHECKPOINT, ONE, 9) + cosign(CHECKPOINT, ONE, 7) + cosign(CHECKPOINT, TWO, 8))
    found = {item.vkey: item.time for item in verify_cosignatures(note, [ONE.vkey, TWO.vkey])}
    assert found == {ONE.vkey: 9, TWO.vkey: 8}
    assert add_signatures(note, cosign(CHECKPOINT, ONE, 9)) == note


def test_a_note_may_hold_empty_lines_and_splits_at_the_last() -> None:
    text, signatures = parse_note("a\n\nb\n\n— key AAAAAAA=\n")
    assert text == "a\n\nb\n"
    assert [(item.name, item.keyid, item.blob) for item in signatures] == [("key", bytes(4), b"\0")]


@pytest.mark.parametrize(
    ("note", "why"),
    [
        ("", "empty line"),
        ("text\n", "empty line"),
        ("text\n\n", "empty line"),
        ("text\n\n— key AAAAAAA=", "empty line"),
        ("text\r\n\n— key AAAAAAA=\n", "control"),
        ("te\0xt\n\n— key AAAAAAA=\n", "control"),
        ("te\txt\n\n— key AAAAAAA=\n", "control"),
        ("te\ud800xt\n\n— key AAAAAAA=\n", "UTF-8"),
        ("text\n\n- key AAAAAAA=\n", "em dash"),
        ("text\n\n—  key AAAAAAA=\n", "em dash"),
        ("text\n\n— key AAAAAAA= \n", "em dash"),
        ("text\n\n— key AAAAAAA\n", "base64"),
        ("text\n\n— key AAAAAA==\n", "four bytes"),
        ("text\n\n— ke+y AAAAAAA=\n", "white space"),
        ("text\n\n— ke\u00a0y AAAAAAA=\n", "white space"),
        ("text\n\n— " + "k" * 256 + " AAAAAAA=\n", "255"),
        ("text\n\n" + "— key AAAAAAA=\n" * 101, "more than"),
        ("t" * (MAX_NOTE + 1), "longer"),
    ],
)
def test_what_is_no_note_is_refused(note: str, why: str) -> None:
    with pytest.raises(NoteError, match=why):
        parse_note(note)


ROOT = b64(bytes(32))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "three lines"),
        (f"origin\n1\n{ROOT}", "three lines"),
        (f"origin\n1\n{ROOT}\nextension\n", "three lines"),
        (f"origin\n1\n{ROOT}\n\n", "three lines"),
        (f"\n1\n{ROOT}\n", "origin"),
        (f"ori gin\n1\n{ROOT}\n", "origin"),
        (f"ori+gin\n1\n{ROOT}\n", "origin"),
        (f"origin\n01\n{ROOT}\n", "leading zeros"),
        (f"origin\n-1\n{ROOT}\n", "leading zeros"),
        (f"origin\n+1\n{ROOT}\n", "leading zeros"),
        (f"origin\n١\n{ROOT}\n", "leading zeros"),
        (f"origin\n{2**63}\n{ROOT}\n", "2\\^63"),
        (f"origin\n{'9' * 5000}\n{ROOT}\n", "leading zeros"),
        (f"origin\n1\n{ROOT[:-1]}\n", "base64"),
        ("origin\n1\nAAAA\n", "32 bytes"),
        (f"origin\n0\n{ROOT}\n", "without entries"),
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str, why: str) -> None:
    with pytest.raises(NoteError, match=why):
        parse_checkpoint(text)


def test_sizes_at_both_ends() -> None:
    assert parse_checkpoint(Checkpoint("o", 0, EMPTY_ROOT).text).size == 0
    assert parse_checkpoint(Checkpoint("o", MAX_SIZE, bytes(32)).text).size == MAX_SIZE
    with pytest.raises(NoteError, match="impossible"):
        Checkpoint("o", MAX_SIZE + 1, bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        LOG.vkey.replace("+", "-", 1),
        LOG.vkey.upper(),
        "x" + LOG.vkey,
        LOG.vkey[:-4] + "AAA=",
        LOG.vkey + "A",
        LOG.vkey.replace("/", " ", 1),
        f"name+00000000+{b64(bytes([2]) + bytes(32))}",
        f"name+00000000+{b64(bytes([1]) + bytes(31))}",
    ],
)
def test_what_is_no_vkey_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        parse_vkey(text)


def test_a_vkey_that_cannot_be_written_is_refused() -> None:
    for name, public, kind in [("a b", bytes(32), 1), ("", bytes(32), 1), ("a", bytes(31), 1), ("a", bytes(32), 2)]:
        with pytest.raises(NoteError):
            vkey(name, public, kind)
    assert parse_vkey(vkey("a", ONE.key.public, WITNESS_KIND)).kind == WITNESS_KIND


@given(st.text(max_size=200) | st.text("— \norigin019+=AB", max_size=120))
def test_parsers_never_fail_with_another_error(text: str) -> None:
    for parse in (parse_note, parse_checkpoint, parse_vkey, parse_signature_line):
        try:
            parse(text)
        except NoteError as error:
            assert str(error)


@given(st.integers(1, MAX_SIZE), st.binary(min_size=32, max_size=32))
def test_every_checkpoint_is_read_back(size: int, top: bytes) -> None:
    checkpoint = Checkpoint(LOG.origin, size, top)
    assert parse_checkpoint(checkpoint.text) == checkpoint
    assert open_checkpoint(sign_checkpoint(checkpoint, LOG), LOG.vkey) == checkpoint
