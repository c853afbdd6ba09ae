"""Was one patient in the cohort of one round? A file that proves yes or no to whoever trusts the silo's log key.

A silo logs `round.cohort` before it opens a round's first image, with `cohort_root`: the Merkle root over the sorted pseudonyms,
HMAC-SHA256(k_study, patient id), 32 bytes each. Sorted, so two neighbours prove that nothing lies between them.

    {"schema":"consilium/cohort-proof/1","pseudonym":"<hex>","member":true|false,"size":17,"salt":"<base64>",
     "leaves":[{"index":3,"pseudonym":"<hex>","path":["<base64>",..]}],"record":"<base64>","proof":"c2sp.org/tlog-proof@v1.."}

leaves: the patient's own (member); else the neighbours in order, one where the patient would be first or last, none in an
empty cohort. salt: opens the record's private payload, {"patients": size}. record, proof: round.cohort and its tlog-proof.

The file shows the exact size and at most two other pseudonyms, and no id: without k_study, which never leaves the hospital,
nobody can tell whose they are. That a pseudonym is a given patient's is the hospital's word.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.canonical import CanonicalError, b64, decode, encode, unb64
from protocol.transparency.note import Checkpoint, Cosignature
from protocol.transparency.proof import MAX_HASHES, parse_proof
from protocol.transparency.record import RecordError, check_record, private_digest
from protocol.transparency.tree import EMPTY_ROOT, HASH_BYTES, ProofError, inclusion_proof, leaf_hash, verify_inclusion

SCHEMA: Final = "consilium/cohort-proof/1"
MAX_BYTES: Final = 1_048_576
RECORD_TYPE: Final = "round.cohort"

OpenNote = Callable[[str], tuple[Checkpoint, tuple[Cosignature, ...]]]
"""Signed note -> its checkpoint and cosignatures, or an exception: a vkey's or a policy's `open`."""

_KEYS: Final = {"schema", "pseudonym", "member", "size", "salt", "leaves", "record", "proof"}


class MembershipError(Exception):
    """A file that does not prove what it says."""


@dataclass(frozen=True)
class Membership:
    """What a file proves. pseudonym: hex. size: patients in the cohort. round, time: of the log's record."""

    member: bool
    pseudonym: str
    size: int
    round: str
    time: str
    entry: int
    checkpoint: Checkpoint
    cosignatures: tuple[Cosignature, ...]


def make_membership(pseudonyms: Sequence[bytes], pseudonym: bytes, *, salt: bytes, record: bytes, proof: str) -> bytes:
    """The file for one pseudonym.

    Parameters: pseudonyms: the cohort's, sorted, 32 bytes each. salt: of the record's private payload. record: the leaf
    data. proof: its tlog-proof.
    """
    size = len(pseudonyms)
    at = bisect_left(pseudonyms, pseudonym)
    member = at < size and pseudonyms[at] == pseudonym
    hashes = [leaf_hash(each) for each in pseudonyms]
    shown = [at] if member else [index for index in (at - 1, at) if 0 <= index < size]
    return encode(
        {
            "schema": SCHEMA,
            "pseudonym": pseudonym.hex(),
            "member": member,
            "size": size,
            "salt": b64(salt),
            "leaves": [
                {
                    "index": index,
                    "pseudonym": pseudonyms[index].hex(),
                    "path": [b64(item) for item in inclusion_proof(hashes, index, size)],
                }
                for index in shown
            ],
            "record": b64(record),
            "proof": proof,
        }
    )


def verify_membership(data: bytes, *, open_note: OpenNote) -> Membership:
    """Check a file.

    Verification:
      1. The file is canonical JSON with exactly its fields.
      2. The log whose key is trusted holds the record.
      3. The record is a round.cohort with a root, and its private payload says the size.
      4. Every leaf shown is in the tree of that root and size.
      5. A member's leaf is the pseudonym itself. Otherwise the leaves shown are the neighbours of the place where it would
         be: next to each other, or the first, or the last, or none in an empty cohort; and it lies strictly between them.

    Parameters: open_note: checks the log's signature (and what else is asked of it) and gives the checkpoint.
    Raises: MembershipError; what `open_note` raises.
    """
    try:
        # 1
        body = _body(data)
        # 2
        proof = parse_proof(body["proof"])
        checkpoint, cosignatures = open_note(proof.note)
        leaf_data = unb64(body["record"])
        verify_inclusion(leaf_hash(leaf_data), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
        # 3
        record = check_record(leaf_data)
        size = body["size"]
        root = _root(record, private_digest(unb64(body["salt"]), {"patients": size}))
        # 4
        leaves = [_leaf(item) for item in body["leaves"]]
        for index, pseudonym, path in leaves:
            verify_inclusion(leaf_hash(pseudonym), index, size, path, root)
        # 5
        own = _hex(body["pseudonym"])
        places = [(index, pseudonym) for index, pseudonym, _ in leaves]
        if body["member"]:
            if [pseudonym for _, pseudonym in places] != [own]:
                raise MembershipError("a member's proof shows the member's leaf and no other")
        else:
            _between(own, places, size, root)
    except (ProofError, RecordError, CanonicalError) as error:
        raise MembershipError(str(error)) from error
    return Membership(
        member=body["member"],
        pseudonym=own.hex(),
        size=size,
        round=str(record["subject"]["id"]),
        time=record["time"],
        entry=proof.index,
        checkpoint=checkpoint,
        cosignatures=cosignatures,
    )


def _body(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise MembershipError(f"a cohort proof has at most {MAX_BYTES} bytes")
    body = decode(data)
    if not isinstance(body, dict) or set(body) != _KEYS or body["schema"] != SCHEMA:
        raise MembershipError(f"not a {SCHEMA}: it must have exactly {', '.join(sorted(_KEYS))}")
    if not isinstance(body["member"], bool) or not _is_count(body["size"]):
        raise MembershipError("member must be true or false, and size a number of patients")
    if not isinstance(body["proof"], str) or not isinstance(body["leaves"], list):
        raise MembershipError("proof must be text, and leaves a list")
    return body


def _root(record: dict[str, Any], private: str) -> bytes:
    if record["type"] != RECORD_TYPE or record["subject"]["kind"] != "round":
        raise MembershipError("the record is not that of a round's cohort")
    if record["private"] != private:
        raise MembershipError("the record does not have the size that the file says")
    root = record["refs"].get("cohort_root")
    if not isinstance(root, str) or not root.startswith("sha256:"):
        raise MembershipError("the record has no cohort_root: the round opened no image")
    return _hex(root.removeprefix("sha256:"))


def _leaf(item: object) -> tuple[int, bytes, list[bytes]]:
    if not isinstance(item, dict) or set(item) != {"index", "pseudonym", "path"}:
        raise MembershipError("a leaf has exactly index, pseudonym and path")
    if not _is_count(item["index"]) or not isinstance(item["path"], list) or len(item["path"]) > MAX_HASHES:
        raise MembershipError(f"a leaf's index is a number from 0, its path a list of at most {MAX_HASHES} hashes")
    return item["index"], _hex(item["pseudonym"]), [unb64(text) for text in item["path"]]


def _between(own: bytes, places: list[tuple[int, bytes]], size: int, root: bytes) -> None:
    if size == 0:
        if places or root != EMPTY_ROOT:
            raise MembershipError("the cohort is not empty")
        return
    if not 1 <= len(places) <= 2:
        raise MembershipError("two neighbours are shown, or one at the beginning or the end")
    index, pseudonym = places[0]
    if len(places) == 2:
        if places[1][0] != index + 1 or not pseudonym < own < places[1][1]:
            raise MembershipError("the two leaves shown are not the neighbours of the patient's place")
    elif not ((index == 0 and own < pseudonym) or (index == size - 1 and own > pseudonym)):
        raise MembershipError("the one leaf shown is neither the first with the patient before it nor the last")


def _hex(text: object) -> bytes:
    if not isinstance(text, str) or len(text) != 2 * HASH_BYTES or text.strip("0123456789abcdef"):
        raise MembershipError(f"a pseudonym or root must be {2 * HASH_BYTES} lower hex digits")
    return bytes.fromhex(text)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
