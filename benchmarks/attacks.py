"""What a poisoning silo sends instead of its honest update: used by `benchmarks.poisoning`.

Gross attacks pass by the silo's own clip and send whatever words they like; quiet ones keep to every rule that can be
checked, the norm bound included, and differ in what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.six_silos import Held

Update = NDArray[np.float64]
PATCH = 8
"""Side of the backdoor's bright square, in pixels of 64."""
STALE_ROUNDS = 5


@dataclass(frozen=True)
class Turn:
    """The attacker's turn in one round. honest(change): its update, trained on its pictures, or on changed ones.
    earlier: its honest updates of the rounds before, oldest first. clip_norm: the study's bound. rng: its own."""

    honest: Callable[[Callable[[Held], Held] | None], Update]
    earlier: list[Update]
    clip_norm: float
    rng: np.random.Generator


@dataclass(frozen=True)
class Attack:
    """quiet: it clips and rounds as it should. make: what it sends."""

    name: str
    words: str
    quiet: bool
    make: Callable[[Turn], Update]


def flipped(held: Held) -> Held:
    """All labels the other way round."""
    return Held(held.pixels, 1 - held.labels)


def with_patch(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same pictures with a bright square in the lower right corner."""
    patched = pixels.copy()
    patched[:, -PATCH - 2 : -2, -PATCH - 2 : -2] = 1.0
    return patched


def backdoored(held: Held) -> Held:
    """The same pictures, and once more those of label 1 with the patch and label 0."""
    chosen = held.pixels[held.labels == 1]
    return Held(
        np.concatenate([held.pixels, with_patch(chosen)]),
        np.concatenate([held.labels, np.zeros(len(chosen), dtype=np.int64)]),
    )


def _to_length(update: Update, length: float) -> Update:
    return update * (length / float(np.linalg.norm(update)))


def _noise(turn: Turn) -> Update:
    honest = turn.honest(None)
    return _to_length(turn.rng.normal(size=honest.shape), float(np.linalg.norm(honest)))


ATTACKS = (
    Attack("three", "honest update times 3", False, lambda turn: 3 * turn.honest(None)),
    Attack("ten", "honest update times 10", False, lambda turn: 10 * turn.honest(None)),
    Attack("negated", "honest update times -5", False, lambda turn: -5 * turn.honest(None)),
    Attack("unclipped", "honest direction at twice the norm bound", False,
           lambda turn: _to_length(turn.honest(None), 2 * turn.clip_norm)),
    Attack("backdoor_five", "backdoor, times 5", False, lambda turn: 5 * turn.honest(backdoored)),
    Attack("garbage", "words drawn at random over the whole range", False,
           lambda turn: turn.rng.uniform(-1e9, 1e9, turn.honest(None).shape)),
    Attack("zero", "nothing: all words 0", False, lambda turn: 0 * turn.honest(None)),
    Attack("nan", "an update that is not finite", True, lambda turn: turn.honest(None) * np.nan),
    Attack("sign_flip", "honest update times -1", True, lambda turn: -turn.honest(None)),
    Attack("label_flip", "trained on flipped labels", True, lambda turn: turn.honest(flipped)),
    Attack("backdoor", "trained on pictures with a patch as label 0 too", True, lambda turn: turn.honest(backdoored)),
    Attack("noise", "normal noise of the honest update's norm", True, _noise),
    Attack("stale", f"its honest update of {STALE_ROUNDS} rounds before", True,
           lambda turn: (turn.earlier[-STALE_ROUNDS:] or [turn.honest(None)])[0]),
)  # fmt: skip
GROSS = tuple(attack for attack in ATTACKS if not attack.quiet or attack.name == "nan")
"""Those that are to be left out at once. A silo's own quantiser refuses what is not finite."""
QUIET = tuple(attack for attack in ATTACKS if attack not in GROSS)
