"""One record's proof in one file (C2SP tlog-proof): index, inclusion proof and signed checkpoint.

    c2sp.org/tlog-proof@v1
    index 73894
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=      from the leaf's sibling up, one hash a line

    portal.example.org/audit                          the signed checkpoint, verbatim, with its cosignatures
    ...

C2SP's optional `extra` line is refused: nothing signs it, and we never write one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocol.canonical import CanonicalError, b64, unb64
from protocol.transparency.note import Checkpoint, NoteError, open_checkpoint, parse_note, parse_number
from protocol.transparency.tree import HASH_BYTES, ProofError, leaf_hash, verify_inclusion

HEADER: Final = "c2sp.org/tlog-proof@v1"
MAX_HASHES: Final = 63
"""A tree of 2^63 entries has no longer path."""


@dataclass(frozen=True)
class TlogProof:
    """A parsed proof, not verified. index: the entry's, from 0. hashes: 32 bytes each. note: the signed checkpoint."""

    index: int
    hashes: tuple[bytes, ...]
    note: str


def make_proof(index: int, hashes: Sequence[bytes], note: str) -> str:
    """The text of a `.tlog-proof` file. Raises: ProofError for what `parse_proof` would refuse."""
    lines = [HEADER, f"index {index}", *(b64(item) for item in hashes)]
    text = "\n".join(lines) + "\n\n" + note
    parse_proof(text)
    return text


def parse_proof(text: str) -> TlogProof:
    """Read a `.tlog-proof` file. Raises: ProofError naming the line."""
    head, empty, note = text.partition("\n\n")
    lines = head.split("\n")
    if not empty or lines[0] != HEADER:
        raise ProofError(f"proof: must begin with the line {HEADER}, and have an empty line before the checkpoint")
    word, _, number = lines[1].partition(" ") if len(lines) > 1 else ("", "", "")
    if word != "index":
        raise ProofError("proof, line 2: must be `index` and a number")
    if len(lines) - 2 > MAX_HASHES:
        raise ProofError(f"proof: more than {MAX_HASHES} hashes")
    hashes = []
    for at, line in enumerate(lines[2:], 3):
        try:
            hashes.append(unb64(line))
        except CanonicalError as error:
            raise ProofError(f"proof, line {at}: {error}") from None
        if len(hashes[-1]) != HASH_BYTES:
            raise ProofError(f"proof, line {at}: a hash has {HASH_BYTES} bytes")
    try:
        index = parse_number(number, "proof, line 2")
        parse_note(note)
    except NoteError as error:
        raise ProofError(str(error)) from None
    return TlogProof(index, tuple(hashes), note)


def verify_proof(text: str, *, leaf_data: bytes, vkey: str) -> Checkpoint:
    """Check that a log holds this record.

    Verification:
      1. The proof is in its form.
      2. The log signed the checkpoint. (Cosignatures: `verify_cosignatures` on `parse_proof(text).note`.)
      3. The record is entry `index` of that checkpoint's tree.

    Parameters: text: the `.tlog-proof` file. leaf_data: the record's exact bytes. vkey: the log's.
    Returns: the checkpoint that the proof leads to. Raises: ProofError, NoteError.
    """
    # 1
    proof = parse_proof(text)
    # 2
    checkpoint = open_checkpoint(proof.note, vkey)
    # 3
    verify_inclusion(leaf_hash(leaf_data), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    return checkpoint
