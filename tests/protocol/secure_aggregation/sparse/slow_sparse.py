"""Secure aggregation with many silos once more, slowly: docs/wire-many.md as plain Python, in the page's order.

Written from that page alone and never from `protocol/`, which it must not import. What the page says is "as in wire.md"
comes from slow_reference.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from tests.protocol.secure_aggregation import slow_reference as slow

PROTOCOL = "consilium-secagg-sparse/1"
LF = b"\n"

# Attempt


def context(
    study: str, manifest: str, round: int, attempt: int, model: str | None, neighbours: int, threshold: int
) -> bytes:
    fields = {"study": study, "manifest": manifest, "round": round, "attempt": attempt, "model": model}
    both = {"neighbours": neighbours, "threshold": threshold}
    return hashlib.sha256(slow.jcs({"protocol": PROTOCOL, **fields, **both})).digest()


def least_set(n: int, min_participants: int) -> int:
    return max(2 * n // 3 + 1, min_participants)


def bounds(
    n: int, colluding: Fraction = Fraction(1, 5), lost: Fraction = Fraction(1, 10), privacy: int = 40, failure: int = 30
) -> dict[str, int]:
    """h, t and most_in, by the four conditions of many-silos.md; other fractions and bits than the page's make small graphs."""
    c, gone = math.floor(colluding * n), math.ceil(lost * n)
    rare_failure, rare_leak = Fraction(1, 2**failure), Fraction(1, 2**privacy)

    def hyp(marked: int, h: int) -> list[Fraction]:
        """The chance of 0 .. h of `marked` silos among h of n − 1."""
        ways = [math.comb(marked, k) * math.comb(n - 1 - marked, h - k) for k in range(h + 1)]
        return [Fraction(way, math.comb(n - 1, h)) for way in ways]

    def holds(h: int, t: int) -> bool:
        fails = n * sum(p for k, p in enumerate(hyp(gone, h)) if h - k < t)
        two_stories = (n - c) * sum(p for k, p in enumerate(hyp(c, h)) if 2 * t <= h + k)
        if fails > rare_failure or two_stories > rare_leak:
            return False
        islands = Fraction(0)
        for s in range(1, (n - c) // 2 + 1):
            chance = math.comb(n - c, s) * sum(hyp(c + s - 1, h)[t:], Fraction(0)) ** s
            islands += Fraction(math.ceil(chance * 2**200), 2**200)  # upwards, so that the numbers stay short
        return islands <= rare_leak

    h, t = next((h, t) for h in range(1, min(255, n - 1) + 1) for t in range(1, h + 1) if holds(h, t))
    above = Fraction(0)  # the chance that more than most_in silos draw one
    for most_in in range(n - 1, -1, -1):
        above += Fraction(math.comb(n - 1, most_in) * h**most_in * (n - 1 - h) ** (n - 1 - most_in), (n - 1) ** (n - 1))
        if n * above > rare_failure:
            return {"neighbours": h, "threshold": t, "most_in": most_in}
    raise AssertionError("a silo that nobody draws at a chance of 1")


# Sets


def leaf(silo: str, value: str | None) -> bytes:
    return slow.jcs({"silo": silo, "value": value})


def _hash(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = _split(len(leaves))
    return hashlib.sha256(b"\x01" + _hash(leaves[:k]) + _hash(leaves[k:])).digest()


def _split(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def _path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, section 2.1.1: from the sibling of leaf m up."""
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if m < k:
        return [*_path(m, leaves[:k]), _hash(leaves[k:])]
    return [*_path(m - k, leaves[k:]), _hash(leaves[:k])]


def _leaves(participants: Sequence[str], values: Mapping[str, str]) -> list[bytes]:
    return [leaf(silo, values.get(silo)) for silo in slow.by_name(participants)]


def stated(participants: Sequence[str], values: Mapping[str, str]) -> dict[str, Any]:
    """`values`: {member: value}."""
    root = "sha256:" + _hash(_leaves(participants, values)).hex()
    return {"root": root, "size": len(values)}


def entry(participants: Sequence[str], values: Mapping[str, str], silo: str) -> dict[str, Any]:
    position = slow.by_name(participants).index(silo)
    path = _path(position, _leaves(participants, values))
    return {"silo": silo, "value": values.get(silo), "path": [slow.b64(node) for node in path]}


def roster_value(keys: bytes) -> str:
    return slow.digest(keys)


def ready_value(nonce: str, ready: str) -> str:
    """`nonce`: the commitment to the second nonce; `ready`: the digest of the silo's `ready`."""
    return slow.digest(slow.jcs({"nonce": nonce, "ready": ready}))


SUMMED = "summed"

# Messages

AS_IN_WIRE_MD = ("nonce", "check", "state")


def payload(stage: str, ctx: bytes, silo: str, roster: str | None, fields: Mapping[str, Any]) -> bytes:
    return slow.payload(stage if stage in AS_IN_WIRE_MD else f"sparse-{stage}", ctx, silo, roster, fields)


def envelope(stage: str, content: bytes, signing_key: bytes) -> dict[str, Any]:
    return slow.envelope(stage if stage in AS_IN_WIRE_MD else f"sparse-{stage}", content, signing_key)


def check_nonces(nonces: Mapping[str, bytes]) -> str:
    """The field "nonces" of `check`."""
    return slow.digest(slow.jcs([[silo, slow.b64(nonces[silo])] for silo in slow.by_name(nonces)]))


# Row


def row_seed(ctx: bytes, silo: str, roster: str, g: bytes) -> bytes:
    head = f"{PROTOCOL} row".encode() + LF + silo.encode() + LF + roster.encode() + LF
    return hashlib.sha256(head + ctx + g).digest()


def draw(seed: bytes, below: int, count: int) -> list[int]:
    """`count` distinct numbers below `below`."""
    stream = hashlib.shake_256(seed).digest(4 * (count + 64))  # 64 more for numbers that are thrown away
    places: dict[int, int] = {}  # what lies at a place, where it is not the place's own number
    drawn: list[int] = []
    read = 0
    while len(drawn) < count:
        number = int.from_bytes(stream[4 * read : 4 * read + 4], "big")
        read += 1
        s = len(drawn)
        left = below - s
        if number >= 2**32 - 2**32 % left:
            continue
        j = s + number % left
        drawn.append(places.get(j, j))
        places[j] = places.get(s, s)
    return drawn


def row(seed: bytes, position: int, n: int, h: int) -> list[int]:
    """The positions that a silo draws, in order; names sort as positions do."""
    return sorted(k if k < position else k + 1 for k in draw(seed, n - 1, h))


def neighbours(rows: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """`rows`: {position: its row} of who opened one."""
    return {i: sorted({*mine, *(j for j, theirs in rows.items() if i in theirs)}) for i, mine in rows.items()}


# Boxes, shares, list


def box_info(ctx: bytes, sender: str, receiver: str, roster: str) -> bytes:
    lines = (f"{PROTOCOL} box", sender, receiver, roster)
    return b"".join(line.encode() + LF for line in lines) + ctx


def box_plaintext(r: bytes, self_share: bytes | None, list_share: bytes | None) -> bytes:
    """With shares to a silo of the own row."""
    return r if self_share is None or list_share is None else r + self_share + list_share


def share_hash(ctx: bytes, what: str, owner: str, holder: str, share: bytes) -> str:
    head = {"protocol": PROTOCOL, "what": what, "ctx": ctx.hex(), "silo": owner, "holder": holder}
    return slow.digest(slow.jcs(head) + LF + share)


# Unmasking


def unmasked(
    ctx: bytes,
    sent: Mapping[int, Sequence[int]],
    bits: int,
    b: Mapping[int, bytes],
    outside: Mapping[int, Mapping[int, bytes]],
    tail: bool,
) -> list[int]:
    """The sum's words. `outside`: {position in R outside L1: {a neighbour in L1: pair seed}}."""
    n = len(next(iter(sent.values())))
    total = [sum(column) for column in zip(*sent.values(), strict=True)]

    def add(sign: int, seed: bytes, label: str) -> None:
        for k, word in enumerate(slow.mask(ctx, seed, "tail" if tail else label, bits, 0, n)):
            total[k] += sign * word

    for secret in b.values():
        add(-1, secret, "self")
    for j, seeds in outside.items():
        for i, seed in seeds.items():
            add(-1 if i < j else 1, seed, "pair")
    return [word % 2**bits for word in total]
