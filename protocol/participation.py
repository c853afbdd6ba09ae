"""Who takes part in a training round, where the manifest has fewer than all drawn: an honest portal chooses nobody.

A silo does not check it: it does not know who could have been asked.

The silos are ranked by

    SHA-256(canonical {"draw": "consilium/draw/1", "model": <digest of the model that is trained>, "round": n, "silo": name})

and the first `count` are drawn. The model's digest was signed by the hospitals of the round before and is not known before
its sum is, so neither the portal nor a hospital can know, or shape, who comes next; another attempt at a round has the
same draw, so failing one on purpose changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from protocol import canonical


def draw(silos: Iterable[str], *, count: int | None, model: str, round_number: int) -> tuple[str, ...]:
    """The silos that take part, sorted.

    Parameters:
        silos: names of all that could.
        count: how many are drawn; None, or as many as there are and more: all.
        model: digest of the model that is trained, "sha256:<64 hex>".

    Raises:
        ValueError: count is less than 1, or model is no digest.
    """
    if not canonical.is_digest(model):
        raise ValueError("model is not a digest 'sha256:<64 hex>'")
    if count is not None and count < 1:
        raise ValueError(f"at least one silo is drawn, not {count}")
    names = set(silos)
    ranked = sorted(names, key=lambda silo: _rank(silo, model, round_number))
    return tuple(sorted(ranked[:count]))


def _rank(silo: str, model: str, round_number: int) -> bytes:
    facts = {"draw": "consilium/draw/1", "model": model, "round": round_number, "silo": silo}
    return hashlib.sha256(canonical.encode(facts)).digest()
