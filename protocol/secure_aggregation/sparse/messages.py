"""The messages of a sparse round; DSSE types and strictness as in `protocol.messages`. roster: the roster's root.

After `unmask` come the dense protocol's own `Nonce`, `Check` and `State`; `Check.nonces` is then `OpenedNonces.digest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from protocol.message_fields import DIGEST, SILO, Codec, by_silo_field, bytes_field, integer_field, list_field
from protocol.messages import Check, Message, Nonce, State

MOST_NEIGHBOURS: Final = 1024
"""More than h and the in-degree's bound together, for any n."""
_SIZE: Final = integer_field(1, 1 << 16)
_NEIGHBOURS: Final = list_field(SILO, 0, MOST_NEIGHBOURS, ascending=True)


def _named(codec: Codec, *, shown: bool = True) -> Any:
    """A dataclass field with its codec. shown: whether a repr may hold it, which a log may hold."""
    return field(metadata={"codec": codec}, repr=shown)


@dataclass(frozen=True, kw_only=True)
class SparseKeys(Message):
    """1. A fresh HPKE public key, and a commitment to the nonce that will draw this silo's row."""

    STAGE = "sparse-keys"
    ROSTER = False
    hpke_public: bytes = _named(bytes_field(1216))
    graph: str = _named(DIGEST)


@dataclass(frozen=True, kw_only=True)
class SparseRow(Message):
    """2. The nonce, opened after the roster was accepted."""

    STAGE = "sparse-row"
    nonce: bytes = _named(bytes_field(32), shown=False)


@dataclass(frozen=True, kw_only=True)
class SparseBundles(Message):
    """3. To each neighbour a sealed box; for each holder of shares the hashes of its share of b and of K."""

    STAGE = "sparse-bundles"
    boxes: Mapping[str, bytes] = _named(by_silo_field(bytes_field(most=4096), MOST_NEIGHBOURS))
    hashes: Mapping[str, tuple[str, ...]] = _named(by_silo_field(list_field(DIGEST, 2, 2), MOST_NEIGHBOURS))


@dataclass(frozen=True, kw_only=True)
class SparseReady(Message):
    """4. Hashes of b and K; the sealed list of pair seeds, in the order of `senders`: whose boxes could be opened; and a
    commitment to the second nonce."""

    STAGE = "sparse-ready"
    self_hash: str = _named(DIGEST)
    list_hash: str = _named(DIGEST)
    list_box: bytes = _named(bytes_field(most=32 * MOST_NEIGHBOURS + 16))
    senders: tuple[str, ...] = _named(_NEIGHBOURS)
    nonce: str = _named(DIGEST)


@dataclass(frozen=True, kw_only=True)
class SparseUpdate(Message):
    """5. The last message of an upload: the root of R, whose masks it wears, and the digest of each chunk."""

    STAGE = "sparse-update"
    ready_set: str = _named(DIGEST)
    chunks: tuple[str, ...] = _named(list_field(DIGEST, 1, 1 << 16))


@dataclass(frozen=True, kw_only=True)
class SparseList(Message):
    """6. The list L1 of those whose update is complete, by root and stated size, and the root of R."""

    STAGE = "sparse-list"
    ready_set: str = _named(DIGEST)
    ready_size: int = _named(_SIZE)
    members: str = _named(DIGEST)
    size: int = _named(_SIZE)


@dataclass(frozen=True, kw_only=True)
class SparseUnmask(Message):
    """7. Of those whose shares this silo holds: of b for the members of L1, of K for the rest of R. Never both."""

    STAGE = "sparse-unmask"
    self_shares: Mapping[str, bytes] = _named(by_silo_field(bytes_field(32), MOST_NEIGHBOURS), shown=False)
    list_shares: Mapping[str, bytes] = _named(by_silo_field(bytes_field(32), MOST_NEIGHBOURS), shown=False)


SPARSE: Final[Mapping[str, type[Message]]] = MappingProxyType(
    {
        kind.STAGE.removeprefix("sparse-"): kind
        for kind in (
            *(SparseKeys, SparseRow, SparseBundles, SparseReady, SparseUpdate, SparseList, SparseUnmask),
            *(Nonce, Check, State),
        )
    }
)
"""Stage -> class, in the order of a round."""
