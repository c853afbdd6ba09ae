"""The Merkle tree of RFC 6962: hashes, proofs, and their verification as in RFC 9162 sections 2.1.3.2 and 2.1.4.2.

Every hash is 32 raw bytes; indices and sizes count leaves. A tree of n > 1 leaves splits at the largest power of two
below n.
Errors: everything raises `ProofError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""

RangeHash = Callable[[int, int], bytes]
"""(start, end) -> the hash of the subtree over leaves start..end-1; start < end, as the tree's splits give them."""


class ProofError(Exception):
    """A proof that does not prove what it should, or one that cannot be made."""


def leaf_hash(data: bytes) -> bytes:
    """SHA256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def root(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, level by level; an odd last node goes up as it is, which equals RFC 6962's splits."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def inclusion_proof(hashes: Sequence[bytes], index: int, size: int) -> list[bytes]:
    """PATH(index, D[size]) of RFC 6962 2.1.1, from the leaf's sibling up. `hashes`: at least `size` leaf hashes."""
    return inclusion_path(_over(hashes, size), index, size)


def consistency_proof(hashes: Sequence[bytes], size1: int, size2: int) -> list[bytes]:
    """PROOF(size1, D[size2]) of RFC 6962 2.1.2; empty for equal sizes. `hashes`: at least `size2` leaf hashes."""
    return consistency_path(_over(hashes, size2), size1, size2)


def inclusion_path(range_hash: RangeHash, index: int, size: int) -> list[bytes]:
    """`inclusion_proof` over any source of subtree hashes (tiles, for one)."""
    if not 0 <= index < size:
        raise ProofError(f"there is no entry {index} in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + split(end - start)
        if index < middle:
            path.append(range_hash(middle, end))
            end = middle
        else:
            path.append(range_hash(start, middle))
            start = middle
    return path[::-1]


def consistency_path(range_hash: RangeHash, size1: int, size2: int) -> list[bytes]:
    """`consistency_proof` over any source of subtree hashes."""
    if not 0 < size1 <= size2:
        raise ProofError(f"no consistency proof leads from size {size1} to size {size2}")
    path: list[bytes] = []
    start, end = 0, size2
    while end != size1:
        middle = start + split(end - start)
        if size1 <= middle:
            path.append(range_hash(middle, end))
            end = middle
        else:
            path.append(range_hash(start, middle))
            start = middle
    # The old tree's last complete subtree; where it is the whole old tree, the verifier knows its hash: root1.
    if start:
        path.append(range_hash(start, end))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf` (a leaf hash) is entry `index` of the tree with this size and root.

    Verification (RFC 9162 2.1.3.2):
      1. All hashes have 32 bytes and the index lies inside the tree.
      2. The proof, no hash too few or too many, leads from the leaf to the root.

    Raises: ProofError.
    """
    # 1
    _check_hashes([leaf, root, *proof])
    if not 0 <= index < size:
        raise ProofError(f"there is no entry {index} in a tree of {size}")
    # 2
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise ProofError("the inclusion proof is too short")
    if found != root:
        raise ProofError(f"the inclusion proof of entry {index} does not lead to the root of size {size}")


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """Check that the tree of size1 and root1 is the beginning of the tree of size2 and root2.

    Verification (RFC 9162 2.1.4.2):
      1. All hashes have 32 bytes; size1 is neither zero, which would prove nothing, nor larger than size2.
      2. Equal sizes have equal roots and an empty proof.
      3. The proof, no hash too few or too many, leads from one complete subtree to both roots.

    Raises: ProofError.
    """
    # 1
    _check_hashes([root1, root2, *proof])
    if not 0 < size1 <= size2:
        raise ProofError(f"nothing can be proved from size {size1} to size {size2}")
    # 2
    if size1 == size2:
        if proof:
            raise ProofError("a consistency proof between equal sizes must be empty")
        if root1 != root2:
            raise ProofError(f"two different roots of the same size {size1}")
        return
    # 3
    hashes = list(proof)
    if size1 & (size1 - 1) == 0:
        hashes.insert(0, root1)
    if not hashes:
        raise ProofError("the consistency proof is empty")
    at, last = size1 - 1, size2 - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    found1 = found2 = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if at & 1 or at == last:
            found1, found2 = node_hash(sibling, found1), node_hash(sibling, found2)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found2 = node_hash(found2, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise ProofError("the consistency proof is too short")
    if found1 != root1:
        raise ProofError(f"the consistency proof does not lead to the root of size {size1}")
    if found2 != root2:
        raise ProofError(f"the consistency proof does not lead to the root of size {size2}")


def _over(hashes: Sequence[bytes], size: int) -> RangeHash:
    if size > len(hashes):
        raise ProofError(f"a tree of {size} needs {size} leaf hashes, {len(hashes)} are given")
    return lambda start, end: root(hashes[start:end])


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(item) != HASH_BYTES for item in hashes):
        raise ProofError(f"a hash has {HASH_BYTES} bytes")
