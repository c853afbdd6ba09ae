"""Checkpoints, signed notes and cosignatures (C2SP signed-note, tlog-checkpoint, tlog-cosignature), byte for byte.

    portal.example.org/audit                          origin, also the log's key name
    600                                               size
    3R4pOtIzcsLw312Tq4AkOOOiHQrDCNg8k5r6VdklkSU=      root

    — portal.example.org/audit <base64(keyid[4] || signature[64])>                      Ed25519 over the three lines
    — site-1.example.org/witness <base64(keyid[4] || u64be time || signature[64])>      cosignature/v1

A verifier's key is written as a vkey: name "+" hex(keyid) "+" base64(type byte || public key), type 1 for a log's key
and 4 for a witness's. Signatures by unknown keys are passed over; one by a known key that fails rejects the note.
Errors: everything raises `NoteError`.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocol.canonical import CanonicalError, b64, unb64
from protocol.keys import SignatureError, SigningKey, verify
from protocol.transparency.tree import EMPTY_ROOT, HASH_BYTES

LOG_KIND: Final = 1
WITNESS_KIND: Final = 4
MAX_NOTE: Final = 1_000_000
"""Characters. C2SP asks verifiers to set a limit and to accept at least 16 signatures."""
MAX_SIGNATURES: Final = 100
MAX_SIZE: Final = 2**63 - 1
"""The largest tree, index and time."""

_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_HEX_KEYID = re.compile(r"[0-9a-f]{8}")


class NoteError(Exception):
    """Not a note, checkpoint, signature or key in C2SP's form, or not signed by whom it should be."""


@dataclass(frozen=True)
class VerifierKey:
    """A public key as notes name it. name: key name. kind: LOG_KIND or WITNESS_KIND. public: 32 bytes."""

    name: str
    kind: int
    public: bytes

    @property
    def keyid(self) -> bytes:
        """SHA256(name || 0x0A || kind || public)[:4]."""
        return key_hash(self.name, self.public, self.kind)

    @property
    def text(self) -> str:
        """The vkey."""
        return f"{self.name}+{self.keyid.hex()}+{b64(bytes([self.kind]) + self.public)}"


@dataclass(frozen=True)
class LogKey:
    """A log's private key with its origin, which is its key name."""

    origin: str
    key: SigningKey

    @property
    def vkey(self) -> str:
        """The public part, as a vkey."""
        return vkey(self.origin, self.key.public, LOG_KIND)


@dataclass(frozen=True)
class WitnessKey:
    """A witness's private key with its name. One Ed25519 key never serves two cosigners."""

    name: str
    key: SigningKey

    @property
    def vkey(self) -> str:
        """The public part, as a vkey."""
        return vkey(self.name, self.key.public, WITNESS_KIND)


@dataclass(frozen=True)
class Checkpoint:
    """A log's state. origin: no white space, no '+'. size: entries, 0 to 2^63 - 1. root: 32 bytes.

    Raises: NoteError where a field could not stand in a checkpoint.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_name(self.origin, "origin")
        if not 0 <= self.size <= MAX_SIZE:
            raise NoteError(f"checkpoint: a size of {self.size} is impossible")
        if len(self.root) != HASH_BYTES:
            raise NoteError(f"checkpoint: the root must have {HASH_BYTES} bytes, not {len(self.root)}")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise NoteError("checkpoint: a log without entries has another root")

    @property
    def text(self) -> str:
        """The three lines that are signed, each ended by a newline."""
        return f"{self.origin}\n{self.size}\n{b64(self.root)}\n"


@dataclass(frozen=True)
class NoteSignature:
    """One signature line. name: key name. keyid: 4 bytes. blob: what follows it. line: as it stands, no newline."""

    name: str
    keyid: bytes
    blob: bytes
    line: str


@dataclass(frozen=True)
class Cosignature:
    """A witness's verified statement. vkey: the witness's. time: seconds since 1970, by the witness's clock."""

    vkey: str
    time: int


def key_hash(name: str, public: bytes, kind: int) -> bytes:
    """The 4 byte key id: SHA256(name || 0x0A || kind || public)[:4]."""
    return hashlib.sha256(name.encode("utf-8") + b"\n" + bytes([kind]) + public).digest()[:4]


def vkey(name: str, public: bytes, kind: int = LOG_KIND) -> str:
    """The text by which others verify. Raises: NoteError for a name, kind or key that can't be written so."""
    _check_name(name, "key name")
    if kind not in (LOG_KIND, WITNESS_KIND):
        raise NoteError(f"vkey: signature type {kind} is not known, {LOG_KIND} or {WITNESS_KIND} is needed")
    if len(public) != 32:
        raise NoteError(f"vkey: an Ed25519 public key has 32 bytes, not {len(public)}")
    return VerifierKey(name, kind, public).text


def parse_vkey(text: str) -> VerifierKey:
    """Read a vkey and check that its key id is that of its name and key. Raises: NoteError."""
    name, hexadecimal, encoded = _split_vkey(text)
    _check_name(name, "key name")
    data = _decode(encoded, "vkey")
    if len(data) != 33 or data[0] not in (LOG_KIND, WITNESS_KIND):
        raise NoteError("vkey: must hold a type byte 1 (log) or 4 (witness) and 32 bytes of Ed25519 key")
    key = VerifierKey(name, data[0], data[1:])
    if hexadecimal != key.keyid.hex():
        raise NoteError("vkey: the key id is not that of this name and key")
    return key


def parse_checkpoint(text: str) -> Checkpoint:
    """Read exactly three lines; extension lines are refused. Raises: NoteError."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3]:
        raise NoteError("checkpoint: must be exactly three lines, each ended by a newline")
    return Checkpoint(lines[0], parse_number(lines[1], "checkpoint size"), _decode(lines[2], "checkpoint root"))


def parse_number(text: str, where: str) -> int:
    """A decimal without sign or leading zeros, at most 2^63 - 1. Raises: NoteError naming `where`."""
    if _NUMBER.fullmatch(text) is None or int(text) > MAX_SIZE:
        raise NoteError(f"{where}: must be a decimal number without leading zeros, at most 2^63 - 1")
    return int(text)


def parse_note(note: str) -> tuple[str, tuple[NoteSignature, ...]]:
    """The text and the signature lines of a note, nothing verified.

    Returns: the text with its last newline, and 1 to MAX_SIGNATURES signatures.
    Raises: NoteError for a note longer than MAX_NOTE characters or not in C2SP's form.
    """
    if len(note) > MAX_NOTE:
        raise NoteError(f"note: longer than {MAX_NOTE} characters")
    if _CONTROL.search(note) is not None:
        raise NoteError("note: holds a control character")
    cut = note.rfind("\n\n")
    if cut < 0 or not note.endswith("\n") or cut + 2 == len(note):
        raise NoteError("note: must be text, an empty line, and signature lines, ended by a newline")
    lines = note[cut + 2 : -1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"note: more than {MAX_SIGNATURES} signatures")
    try:
        note.encode("utf-8")
    except UnicodeEncodeError:
        raise NoteError("note: not UTF-8") from None
    return note[: cut + 1], tuple(parse_signature_line(line) for line in lines)


def parse_signature_line(line: str) -> NoteSignature:
    """Read `— <name> <base64>` without its newline. Raises: NoteError."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "—":
        raise NoteError("note: a signature line must be an em dash, a key name and base64, one space between")
    _check_name(parts[1], "key name")
    data = _decode(parts[2], "signature line")
    if len(data) < 5:
        raise NoteError("note: a signature must follow the four bytes of its key id")
    return NoteSignature(parts[1], data[:4], data[4:], line)


def sign_checkpoint(checkpoint: Checkpoint, log_key: LogKey) -> str:
    """The signed note of `checkpoint`. Raises: NoteError where the key is another log's."""
    if checkpoint.origin != log_key.origin:
        raise NoteError("the checkpoint and the key belong to two different logs")
    signature = log_key.key.sign(checkpoint.text.encode("utf-8"))
    return checkpoint.text + "\n" + _line(log_key.origin, log_key.key.public, LOG_KIND, signature)


def open_checkpoint(note: str, vkey: str) -> Checkpoint:
    """The checkpoint of a note that this log signed.

    Verification:
      1. The key is a log's.
      2. The note is in C2SP's form.
      3. Every signature by this key is over the text, and there is at least one.
      4. The text is a checkpoint, of this log.

    Parameters: note: text, as published. vkey: the log's, type 1.
    Raises: NoteError.
    """
    # 1
    key = parse_vkey(vkey)
    if key.kind != LOG_KIND:
        raise NoteError("vkey: a log's key is needed, this is a witness's")
    # 2
    text, signatures = parse_note(note)
    # 3
    found = _signed_by(key, signatures)
    if not found:
        raise NoteError(f"note: no signature by {key.name} with key id {key.keyid.hex()}")
    for signature in found:
        _verify(key, signature.blob, text.encode("utf-8"))
    # 4
    checkpoint = parse_checkpoint(text)
    if checkpoint.origin != key.name:
        raise NoteError("checkpoint: the origin is not the name of the key that signed it")
    return checkpoint


def cosignature_message(text: str, time: int) -> bytes:
    """What a witness signs: `text` is the checkpoint's three lines, `time` seconds since 1970."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def cosign(checkpoint: Checkpoint, witness: WitnessKey, time: int) -> str:
    """A cosignature/v1 line, ended by a newline, to append to the signed note. `time`: seconds since 1970."""
    if not 0 <= time <= MAX_SIZE:
        raise NoteError(f"cosignature: a time of {time} is impossible")
    blob = struct.pack(">Q", time) + witness.key.sign(cosignature_message(checkpoint.text, time))
    return _line(witness.name, witness.key.public, WITNESS_KIND, blob)


def verify_cosignatures(note: str, vkeys: Iterable[str]) -> tuple[Cosignature, ...]:
    """Which of these witnesses cosigned the checkpoint in `note`. The log's own signature is not looked at here.

    Verification:
      1. Each key is a witness's.
      2. The note is in C2SP's form and its text is a checkpoint.
      3. Every line by one of these keys is a time and a signature over time and text.

    Returns: one item a witness that signed, its newest; witnesses that did not sign are absent, so count the result.
    Raises: NoteError; also where a line by a known witness fails.
    """
    # 1
    keys = [parse_vkey(text) for text in vkeys]
    if any(key.kind != WITNESS_KIND for key in keys):
        raise NoteError("vkey: a witness's key is needed, this is a log's")
    # 2
    text, signatures = parse_note(note)
    parse_checkpoint(text)
    # 3
    verified: dict[str, int] = {}
    for key in keys:
        for signature in _signed_by(key, signatures):
            if len(signature.blob) != 72:
                raise NoteError(f"cosignature by {key.name}: must be a time of 8 bytes and a signature of 64")
            (time,) = struct.unpack(">Q", signature.blob[:8])
            if time > MAX_SIZE:
                raise NoteError(f"cosignature by {key.name}: a time of {time} is impossible")
            _verify(key, signature.blob[8:], cosignature_message(text, time))
            verified[key.text] = max(time, verified.get(key.text, 0))
    return tuple(Cosignature(name, time) for name, time in verified.items())


def add_signatures(note: str, lines: str) -> str:
    """`note` with more signature lines, each ended by a newline; those that stand there already are not repeated.

    Raises: NoteError where the result is not a note.
    """
    _, present = parse_note(note)
    known = {signature.line for signature in present}
    for line in lines.removesuffix("\n").split("\n"):
        if line not in known:
            note += line + "\n"
            known.add(line)
    parse_note(note)
    return note


def _signed_by(key: VerifierKey, signatures: Iterable[NoteSignature]) -> list[NoteSignature]:
    return [item for item in signatures if item.name == key.name and item.keyid == key.keyid]


def _verify(key: VerifierKey, signature: bytes, message: bytes) -> None:
    try:
        verify(key.public, signature, message)
    except SignatureError as error:
        raise NoteError(f"signature by {key.name}: {error}") from None


def _line(name: str, public: bytes, kind: int, blob: bytes) -> str:
    return f"— {name} {b64(key_hash(name, public, kind) + blob)}\n"


def _split_vkey(text: str) -> tuple[str, str, str]:
    parts = text.split("+", 2)  # the base64 at the end may hold more of them
    if len(parts) != 3 or _HEX_KEYID.fullmatch(parts[1]) is None:
        raise NoteError("vkey: must be name+<8 hex digits>+<base64>")
    return parts[0], parts[1], parts[2]


def _check_name(name: str, what: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise NoteError(f"{what}: must be 1 to 255 characters without white space and '+'")


def _decode(text: str, where: str) -> bytes:
    try:
        return unb64(text)
    except CanonicalError as error:
        raise NoteError(f"{where}: {error}") from None
