"""What one silo can do that keeps to every check: the limits that docs/poisoning.md names."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np

from protocol.model_state import TensorSpec
from protocol.secure_aggregation import sketch
from protocol.secure_aggregation.parameters import Segment
from protocol.secure_aggregation.scales import FixedPoint
from protocol.secure_aggregation.sketch import SKETCH_WORDS


def test_two_equal_spikes_hide_from_the_sketch_once_in_two_times_256_rounds() -> None:
    words = 64 * SKETCH_WORDS
    segments, draw = (Segment(words, 8),), np.random.default_rng(1)
    honest = [draw.integers(-4, 5, words).astype("<i4") for _ in range(3)]  # about 330 long, 1.3 in the model's units
    bad = honest[0].copy()
    bad[[7, 11]] = 1 << 20  # 5,800 in the model's units
    passed = 0
    for number in range(4 * SKETCH_WORDS):
        seed = hashlib.sha256(number.to_bytes(4, "big")).digest()
        # Only the two cells matter for who is asked; all are judged where they cancel.
        sums = sketch.sketch(seed, segments, [bad])
        if int(np.abs(sums).max()) > 1 << 19:
            continue
        rows = {f"site-{i}": sketch.sketch(seed, segments, [row]) for i, row in enumerate([bad, *honest])}
        verdict = sketch.judge(rows, dict.fromkeys(rows, 1), clip_norm=20.0, segments=segments)
        assert verdict.excluded == {}
        passed += 1
    assert 1 <= passed <= 8  # 2 expected of 1,024


def test_one_silo_within_all_bounds_keeps_scales_coarse() -> None:
    """Spikes of 5 times the usual norm, a part in each tensor, need not fall out of the sum; it sets the next scales."""
    table = tuple(TensorSpec(f"t{k}", (1600,)) for k in range(20))
    fixed = FixedPoint(word_bits=16, fraction_bits=None, clip_norm=20.0, silos=4)
    usual = Fraction(2, 179)  # a norm of 2 over 32,000 weights; the mean's largest is about 4 of these
    spike = Fraction(9 * 2, 2 * 5)  # 4.5 times a norm of 2, over 20 tensors: 9 / sqrt(20) = 2.0 > 1.8 each

    def after(rounds: int, extra: Fraction) -> int:
        scales = fixed.initial(table)
        for _ in range(rounds):
            maxima = []
            for (_, bits), scale in zip(_places(fixed, table, scales), scales, strict=True):
                mean = min(4 * usual, Fraction(2) ** scale) * 4 + extra
                maxima.append(int(min(mean, 4 * Fraction(2) ** scale) * 2**bits))
            scales = fixed.next_scales(table, scales, maxima, total_weight=4)
        return scales[0]

    assert after(12, spike) - after(12, Fraction(0)) == 3
    # As soon as it stops, a power of two a round comes back.
    assert fixed.next_scales(table, (1,) * 20, (1,) * 20, total_weight=4) == (0,) * 20


def _places(fixed, table, scales):
    return [
        (spec.size, fixed.segments((spec,), (scale,))[0].fraction_bits)
        for spec, scale in zip(table, scales, strict=True)
    ]
