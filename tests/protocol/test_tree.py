"""The Merkle tree against published vectors and against RFC 6962's own recursive definitions."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol.transparency.tree import (
    EMPTY_ROOT,
    ProofError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(os.environ.get("VECTORS", Path(__file__).parents[2].parent / "shared" / "vectors")) / "rfc6962"
LEAVES = [leaf_hash(b"entry %d" % at) for at in range(70)]


# RFC 6962 2.1, 2.1.1 and 2.1.2, written as the RFC writes them: slow, and obviously so.


def slow_root(hashes: Sequence[bytes]) -> bytes:
    n = len(hashes)
    if n == 0:
        return sha256(b"").digest()
    if n == 1:
        return hashes[0]
    k = max(power for power in (2**e for e in range(20)) if power < n)
    return sha256(b"\x01" + slow_root(hashes[:k]) + slow_root(hashes[k:])).digest()


def slow_path(m: int, hashes: Sequence[bytes]) -> list[bytes]:
    n = len(hashes)
    if n == 1:
        return []
    k = max(power for power in (2**e for e in range(20)) if power < n)
    if m < k:
        return [*slow_path(m, hashes[:k]), slow_root(hashes[k:])]
    return [*slow_path(m - k, hashes[k:]), slow_root(hashes[:k])]


def slow_subproof(m: int, hashes: Sequence[bytes], known: bool) -> list[bytes]:
    n = len(hashes)
    if m == n:
        return [] if known else [slow_root(hashes)]
    k = max(power for power in (2**e for e in range(20)) if power < n)
    if m <= k:
        return [*slow_subproof(m, hashes[:k], known), slow_root(hashes[k:])]
    return [*slow_subproof(m - k, hashes[k:], False), slow_root(hashes[:k])]


def vectors(kind: str) -> list[Path]:
    if not VECTORS.is_dir():
        pytest.skip(f"no vectors at {VECTORS}; set VECTORS")
    found = sorted((VECTORS / kind).rglob("*.json"))
    assert len(found) > 50
    return found


def unpack(value: str | None) -> bytes:
    return base64.b64decode(value or "")


def test_published_inclusion_vectors() -> None:
    for path in vectors("inclusion"):
        case = json.loads(path.read_text())
        proof = [unpack(item) for item in case["proof"] or []]
        arguments = (unpack(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, unpack(case["root"]))
        if case["wantErr"]:
            with pytest.raises(ProofError):
                verify_inclusion(*arguments)
                pytest.fail(f"accepted: {path}")
        else:
            verify_inclusion(*arguments)


def test_published_consistency_vectors() -> None:
    for path in vectors("consistency"):
        case = json.loads(path.read_text())
        proof = [unpack(item) for item in case["proof"] or []]
        arguments = (case["size1"], case["size2"], proof, unpack(case["root1"]), unpack(case["root2"]))
        # One vector accepts equal roots of 12 bytes ("don't care 2"); here every hash has exactly 32.
        if case["wantErr"] or len(arguments[3]) != 32:
            with pytest.raises(ProofError):
                verify_consistency(*arguments)
                pytest.fail(f"accepted: {path}")
        else:
            verify_consistency(*arguments)


def test_hashes_have_their_prefixes() -> None:
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert node_hash(b"a" * 32, b"b" * 32) == sha256(b"\x01" + b"a" * 32 + b"b" * 32).digest()
    assert root([]) == EMPTY_ROOT == sha256(b"").digest()


def test_roots_and_proofs_of_all_sizes_are_rfc_6962s() -> None:
    for size in range(len(LEAVES) + 1):
        hashes = LEAVES[:size]
        assert root(hashes) == slow_root(hashes)
        for index in range(size):
            proof = inclusion_proof(LEAVES, index, size)
            assert proof == slow_path(index, hashes)
            verify_inclusion(LEAVES[index], index, size, proof, root(hashes))
        for old in range(1, size + 1):
            proof = consistency_proof(LEAVES, old, size)
            assert proof == slow_subproof(old, hashes, True)
            verify_consistency(old, size, proof, root(LEAVES[:old]), root(hashes))


@given(st.data(), st.integers(1, len(LEAVES)))
@settings(max_examples=200)
def test_a_changed_inclusion_proof_proves_nothing(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(LEAVES, index, size)
    top = root(LEAVES[:size])
    other = data.draw(st.integers(-1, size + 2).filter(lambda value: value != index))
    with pytest.raises(ProofError):
        verify_inclusion(LEAVES[index], other, size, proof, top)
    for wrong in broken(data, proof):
        with pytest.raises(ProofError):
            verify_inclusion(LEAVES[index], index, size, wrong, top)
    with pytest.raises(ProofError):
        verify_inclusion(leaf_hash(b"another"), index, size, proof, top)
    with pytest.raises(ProofError):
        verify_inclusion(LEAVES[index], index, size, proof, root(LEAVES[: size - 1]))


@given(st.data(), st.integers(2, len(LEAVES)))
@settings(max_examples=200)
def test_a_changed_consistency_proof_proves_nothing(data: st.DataObject, size: int) -> None:
    old = data.draw(st.integers(1, size - 1))
    proof = consistency_proof(LEAVES, old, size)
    before, after = root(LEAVES[:old]), root(LEAVES[:size])
    for wrong in broken(data, proof):
        with pytest.raises(ProofError):
            verify_consistency(old, size, wrong, before, after)
    assume(before != after)
    for one, two in [(after, after), (before, before), (after, before)]:
        with pytest.raises(ProofError):
            verify_consistency(old, size, proof, one, two)


def broken(data: st.DataObject, proof: list[bytes]) -> list[list[bytes]]:
    """The proof one hash longer, one shorter, with one bit changed, and with hashes of another length."""
    wrong = [[*proof, bytes(32)], [bytes(32), *proof]]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        flipped = (int.from_bytes(proof[at], "big") ^ 1 << bit).to_bytes(32, "big")
        wrong += [proof[:-1], proof[1:], [*proof[:at], flipped, *proof[at + 1 :]]]
        wrong += [[*proof[:at], proof[at][:-1], *proof[at + 1 :]], [*proof[:at], proof[at] + b"\0", *proof[at + 1 :]]]
    return wrong


def test_edge_rules_of_consistency() -> None:
    one, two = root(LEAVES[:1]), root(LEAVES[:2])
    verify_consistency(2, 2, [], two, two)
    for size1, size2, proof, root1, root2, why in [
        (0, 0, [], EMPTY_ROOT, EMPTY_ROOT, "nothing can be proved"),
        (0, 2, [], EMPTY_ROOT, two, "nothing can be proved"),
        (2, 1, [], two, one, "nothing can be proved"),
        (-1, 1, [], two, one, "nothing can be proved"),
        (2, 2, [one], two, two, "must be empty"),
        (2, 2, [], two, one, "two different roots"),
        (3, 5, [], root(LEAVES[:3]), root(LEAVES[:5]), "is empty"),
        (1, 2, [], one, two, "too short"),
        (1, 2, [LEAVES[1], LEAVES[2]], one, two, "too long"),
        (1, 2, [LEAVES[2]], one, two, "root of size 2"),
        (3, 4, consistency_proof(LEAVES, 3, 4), one, root(LEAVES[:4]), "root of size 3"),
        (1, 2, [LEAVES[1]], one[:31], two, "32 bytes"),
    ]:
        with pytest.raises(ProofError, match=why):
            verify_consistency(size1, size2, proof, root1, root2)


def test_edge_rules_of_inclusion() -> None:
    one, two = root(LEAVES[:1]), root(LEAVES[:2])
    verify_inclusion(LEAVES[0], 0, 1, [], one)
    for index, size, proof, top, why in [
        (0, 0, [], EMPTY_ROOT, "no entry 0"),
        (1, 1, [], one, "no entry 1"),
        (-1, 1, [], one, "no entry -1"),
        (0, 2, [], two, "too short"),
        (0, 1, [LEAVES[1]], one, "too long"),
        (0, 2, [LEAVES[2]], two, "does not lead"),
        (0, 2, [b"short"], two, "32 bytes"),
    ]:
        with pytest.raises(ProofError, match=why):
            verify_inclusion(LEAVES[0], index, size, proof, top)


def test_proofs_that_cannot_be_made_are_refused() -> None:
    for index, size in [(0, 0), (5, 5), (-1, 5)]:
        with pytest.raises(ProofError, match="no entry"):
            inclusion_proof(LEAVES, index, size)
    for size1, size2 in [(0, 5), (6, 5), (-1, 5)]:
        with pytest.raises(ProofError, match="no consistency proof"):
            consistency_proof(LEAVES, size1, size2)
    with pytest.raises(ProofError, match="needs 71"):
        inclusion_proof(LEAVES, 0, 71)
