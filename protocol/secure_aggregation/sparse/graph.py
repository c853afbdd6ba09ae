"""Who is whose neighbour: each silo draws its own row, with randomness that it fixed before anybody knew the roster.

One seed from everybody's opened nonces could be chosen among many by holding openings back. Here row i depends on
nobody's nonce but i's: SHA256(ctx, roster, i, g_i) with g_i committed to in `keys`, which the roster's root names. The
portal and its colluders may choose their own rows freely and gain nothing: a silo's shares go to the silos of its own
row only, so a colluder's row decides who holds the colluder's secrets; that it adds a mask to some honest silo takes
none away. Only in-degree could hurt, as work, so that is capped (bounds.py).
"""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.secure_aggregation.sparse.parameters import PROTOCOL, SparseParameters

_WORD: Final = 4
_RANGE: Final = 1 << 8 * _WORD


def row(parameters: SparseParameters, roster: str, silo: str, nonce: bytes) -> tuple[str, ...]:
    """The h silos that hold this silo's shares and mask with it, sorted.

    Parameters:
        roster: the root, "sha256:<64 hex>".
        nonce: g of this silo, 32 bytes.
    """
    me, n = parameters.positions[silo], len(parameters.members)
    head = f"{PROTOCOL} row\n{silo}\n{roster}\n".encode()
    seed = hashlib.sha256(head + parameters.ctx + nonce).digest()
    drawn = draw(seed, n - 1, parameters.neighbourhood.h)
    # Positions from me on are one further, so that nobody draws itself.
    return tuple(parameters.members[position + (position >= me)] for position in sorted(drawn))


def draw(seed: bytes, n: int, h: int) -> list[int]:
    """h of the numbers 0 to n-1, each choice equally likely: a shuffle from SHAKE-256 that stops after h steps."""
    moved: dict[int, int] = {}
    drawn, words, at = [], b"", 0
    for step in range(h):
        room = n - step
        while True:
            if at == len(words):
                words = hashlib.shake_256(seed).digest(2 * at + 2 * _WORD * h)
            number = int.from_bytes(words[at : at + _WORD], "big")
            at += _WORD
            if number < _RANGE - _RANGE % room:  # the rest would make small remainders likelier
                break
        other = step + number % room
        drawn.append(moved.get(other, other))
        moved[other] = moved.get(step, step)
    return drawn
