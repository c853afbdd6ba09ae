"""From "in" to "out" of a case in sparse_vectors.json, by the slow reference: one function a section, named like it.

Bytes are hex, or base64 where the protocol sends base64.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tests.protocol.secure_aggregation import slow_reference as slow
from tests.protocol.secure_aggregation.slow_answers import h, values
from tests.protocol.secure_aggregation.sparse import slow_sparse as sparse


def context(**fields: Any) -> str:
    return sparse.context(**fields).hex()


def least_set(n: int, min_participants: int) -> int:
    return sparse.least_set(n, min_participants)


def bounds(n: int, colluding: str, lost: str, privacy: int, failure: int) -> dict[str, int]:
    return sparse.bounds(n, Fraction(colluding), Fraction(lost), privacy, failure)


def stated(participants: list[str], values: dict[str, str]) -> dict[str, Any]:
    return sparse.stated(participants, values)


def entry(participants: list[str], values: dict[str, str], silo: str) -> dict[str, Any]:
    return sparse.entry(participants, values, silo)


def ready_value(nonce: str, ready: str) -> str:
    return sparse.ready_value(nonce, ready)


def message(stage: str, ctx: str, silo: str, roster: str | None, fields: dict[str, Any], signing_key: str) -> Any:
    content = sparse.payload(stage, h(ctx), silo, roster, fields)
    return {"payload": content.decode(), "envelope": sparse.envelope(stage, content, h(signing_key))}


def check_nonces(nonces: dict[str, str]) -> str:
    return sparse.check_nonces(values(nonces))


def draw(seed: str, below: int, count: int) -> list[int]:
    return sparse.draw(h(seed), below, count)


def row(attempt: dict[str, Any], participants: list[str], silo: str, roster: str, g: str) -> dict[str, Any]:
    names = slow.by_name(participants)
    hood = sparse.bounds(len(names))
    ctx = sparse.context(**attempt, neighbours=hood["neighbours"], threshold=hood["threshold"])
    seed = sparse.row_seed(ctx, silo, roster, h(g))
    drawn = sparse.row(seed, names.index(silo), len(names), hood["neighbours"])
    return {"seed": seed.hex(), "row": [names[k] for k in drawn]}


def box(
    ctx: str,
    roster: str,
    mlkem_seed: str,
    x25519_key: str,
    sender: str,
    receiver: str,
    hashes: list[str] | None,
    box: str,
) -> dict[str, str]:
    key, info = slow.hpke_key(h(mlkem_seed), h(x25519_key)), sparse.box_info(h(ctx), sender, receiver, roster)
    opened = slow.open_box(key, info, base64.b64decode(box))
    if hashes is None:
        assert len(opened) == 32
    else:
        assert len(opened) == 96
        assert hashes == [
            sparse.share_hash(h(ctx), "self share", sender, receiver, opened[32:64]),
            sparse.share_hash(h(ctx), "list share", sender, receiver, opened[64:]),
        ]
    public = slow.hpke_public(h(mlkem_seed), h(x25519_key))
    return {"hpke_public": slow.b64(public), "info": info.hex(), "plaintext": opened.hex()}


def box_plaintext(r: str, self_share: str | None, list_share: str | None) -> str:
    shares = [None if share is None else h(share) for share in (self_share, list_share)]
    return sparse.box_plaintext(h(r), *shares).hex()


def share_hash(ctx: str, what: str, owner: str, holder: str, share: str) -> str:
    return sparse.share_hash(h(ctx), what, owner, holder, h(share))


def list_box(ctx: str, list_key: str, silo: str, roster: str, seeds: list[str]) -> str:
    return slow.b64(slow.seal_list(h(ctx), h(list_key), silo, roster, [h(seed) for seed in seeds]))


ANSWERS: dict[str, Callable[..., Any]] = {
    answer.__name__: answer
    for answer in (
        *(context, least_set, bounds),
        *(stated, entry, ready_value),
        *(message, check_nonces),
        *(draw, row),
        *(box_plaintext, box, share_hash, list_box),
    )
}
