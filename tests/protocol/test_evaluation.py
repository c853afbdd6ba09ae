"""Evaluation from sums of histograms: no exact count leaves, and the numbers are the right ones."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocol.evaluation import (
    AUC_UNIT,
    BLIND_BITS,
    BLINDS,
    FRONT,
    TOTAL,
    EvaluationError,
    auc,
    auc_from_histograms,
    auc_interval,
    calibration,
    decode_tail,
    encode_tail,
    histograms,
    normalise,
    roc_points,
    sensitivity_specificity,
    tail_length,
)

COUNTS = st.integers(2, 12).flatmap(lambda bins: arrays(np.int64, (2, bins), elements=st.integers(0, 50)))
SCORED = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), max_size=40)


def brute_force(labels: list[int], scores: list[float]) -> float | None:
    positive = [s for label, s in zip(labels, scores, strict=True) if label == 1]
    negative = [s for label, s in zip(labels, scores, strict=True) if label == 0]
    if not positive or not negative:
        return None
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative))
    return wins / (len(positive) * len(negative))


@given(SCORED)
def test_auc_equals_counting_every_pair(scored: list[tuple[int, float]]) -> None:
    labels, scores = [label for label, _ in scored], [score for _, score in scored]
    expected = brute_force(labels, scores)
    assert auc(labels, scores) == (expected if expected is None else pytest.approx(expected, abs=1e-12))


@given(SCORED, st.integers(2, 16))
def test_auc_of_histograms_equals_the_auc_of_binned_scores(scored: list[tuple[int, float]], bins: int) -> None:
    labels, scores = [label for label, _ in scored], [score for _, score in scored]
    counts = histograms(labels, scores, bins)
    binned = [min(int(score * bins), bins - 1) / bins for score in scores]
    expected = brute_force(labels, binned)
    assert auc_from_histograms(counts) == (expected if expected is None else pytest.approx(expected, abs=1e-12))
    assert counts.sum() == len(scored) and counts[1].sum() == sum(labels)


@given(COUNTS, st.integers(2, 1000))
def test_no_count_of_patients_leaves(counts: Any, factor: int) -> None:
    """Ten times the patients with the same distribution give the same tail, and every tail has the same total."""
    shares = normalise(counts)
    assert shares.sum() == (TOTAL if counts.any() else 0)
    assert np.array_equal(normalise(counts * factor), shares)
    assert np.array_equal(normalise(shares), shares)
    assert (shares[counts == 0] == 0).all()
    if counts.any():
        assert np.abs(shares - counts * TOTAL / counts.sum()).max() <= 1
        tail = encode_tail(loss=0.5, auc=None, histograms=counts)
        assert tail[FRONT:-BLINDS].sum() == TOTAL


@given(st.lists(st.tuples(COUNTS.map(lambda c: np.resize(c, (2, 6))), st.floats(0, 5)), min_size=1, max_size=6))
def test_the_sum_of_tails_gives_mean_spread_and_pooled_histograms(silos: list[tuple[Any, float]]) -> None:
    tails, areas, losses, pooled = [], [], [], np.zeros((2, 6), dtype=np.int64)
    for counts, loss in silos:
        area = auc_from_histograms(counts)
        scored = bool(counts.any())
        tails.append(encode_tail(loss=loss if scored else None, auc=area, histograms=counts))
        if scored:
            losses.append(loss)
            pooled += normalise(counts)
        if area is not None:
            areas.append(area)
    result = decode_tail(np.sum(tails, axis=0, dtype=np.uint64), len(silos))
    assert result.silos == len(losses) and result.silos_with_auc == len(areas)
    assert np.array_equal(result.histograms, pooled)
    assert result.loss_mean == (pytest.approx(np.mean(losses), abs=1e-6) if losses else None)
    assert result.auc_mean == (pytest.approx(np.mean(areas), abs=1e-8) if len(areas) >= 2 else None)
    assert result.auc_std == (pytest.approx(np.std(areas), abs=1e-3) if len(areas) >= 3 else None)


def test_the_layout_of_the_tail_is_pinned() -> None:
    tail = encode_tail(loss=0.25, auc=0.75, histograms=[[3, 1], [0, 4]])
    assert tail.dtype == np.dtype("<u8") and tail.size == tail_length(2) == 12
    assert tail[:-BLINDS].tolist() == [1, 2**18, 1, 3 * 2**28, 9 * 2**26, 3 * 2**17, 2**17, 0, 2**19]
    assert encode_tail(loss=1e9, auc=None, histograms=[[1, 0], [0, 0]])[1] == 1024 * 2**20


def test_random_words_blind_every_tail_and_their_sum_cannot_wrap_round() -> None:
    tails = [encode_tail(loss=None, auc=None, histograms=np.zeros((2, 4), dtype=int)) for _ in range(200)]
    blinds = np.array([tail[-BLINDS:] for tail in tails])
    assert len(set(blinds.reshape(-1).tolist())) == blinds.size
    assert blinds.max() < 2**BLIND_BITS and blinds.max() > 2 ** (BLIND_BITS - 1)
    assert 4096 * 2**BLIND_BITS < 2**64


def test_a_silo_that_could_not_evaluate_adds_nothing() -> None:
    assert not encode_tail(loss=None, auc=None, histograms=np.zeros((2, 4), dtype=int))[:-BLINDS].any()


def test_one_hospitals_own_auc_is_not_shown_as_a_mean() -> None:
    both = encode_tail(loss=0.1, auc=0.75, histograms=[[3, 1], [0, 4]])
    one_class = encode_tail(loss=0.1, auc=None, histograms=[[3, 1], [0, 0]])
    result = decode_tail(both + one_class, 2)
    assert result.silos_with_auc == 1 and result.auc_mean is None and result.auc_std is None
    two = decode_tail(both + both, 2)
    assert two.auc_mean == 0.75 and two.auc_std is None
    assert decode_tail(both * np.uint64(3), 3).auc_std == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"loss": None, "auc": None, "histograms": [[1, 0], [0, 0]]}, "loss"),
        ({"loss": math.nan, "auc": None, "histograms": [[1, 0], [0, 0]]}, "loss"),
        ({"loss": -0.1, "auc": None, "histograms": [[1, 0], [0, 0]]}, "loss"),
        ({"loss": 0.1, "auc": None, "histograms": [[0, 0], [0, 0]]}, "without any score"),
        ({"loss": None, "auc": 0.5, "histograms": [[0, 0], [0, 0]]}, "without any score"),
        ({"loss": 0.1, "auc": 0.5, "histograms": [[1, 0], [0, 0]]}, "both classes"),
        ({"loss": 0.1, "auc": 1.5, "histograms": [[1, 0], [0, 1]]}, "0 to 1"),
        ({"loss": 0.1, "auc": math.nan, "histograms": [[1, 0], [0, 1]]}, "0 to 1"),
        ({"loss": 0.1, "auc": None, "histograms": [[1, -1], [0, 1]]}, "from 0 on"),
        ({"loss": 0.1, "auc": None, "histograms": [[1.5, 0], [0, 1]]}, "whole numbers"),
        ({"loss": 0.1, "auc": None, "histograms": [1, 0]}, "whole numbers"),
        ({"loss": 0.1, "auc": None, "histograms": [[1, 0]] * 3}, "whole numbers"),
        ({"loss": 0.1, "auc": None, "histograms": [[2**31, 1], [0, 1]]}, "2\\^31"),
        ({"loss": 0.1, "auc": None, "histograms": [[1], [1]]}, "bins"),
    ],
)
def test_a_tail_that_contradicts_itself_is_not_encoded(arguments: Any, why: str) -> None:
    with pytest.raises(EvaluationError, match=why):
        encode_tail(**arguments)


def test_a_sum_that_cannot_be_right_is_refused() -> None:
    good = encode_tail(loss=0.1, auc=0.75, histograms=[[3, 1], [0, 4]])
    decode_tail(good, 1)
    for position, value, why in [
        (0, 2, "more silos"),
        (2, 2, "more silos"),
        (1, 2**40, "out of range"),
        (3, AUC_UNIT + 1, "out of range"),
        (4, AUC_UNIT + 1, "out of range"),
        (4, AUC_UNIT, "do not fit"),
        (4, AUC_UNIT // 2, "do not fit"),
        (5, 1, "total"),
        (5, 2**63, "total"),
        (9, 2**50, "random words"),
        (11, 2**50, "random words"),
    ]:
        bad = good.copy()
        bad[position] = value
        with pytest.raises(EvaluationError, match=why):
            decode_tail(bad, 1)
    wrapped = good.copy()
    wrapped[5:9] = 2**62  # wraps round to 0 mod 2^64 when added up
    with pytest.raises(EvaluationError, match="total"):
        decode_tail(wrapped, 1)
    for shape in (good[:11], good[:10], good.astype("<i8"), good.reshape(3, 4)):
        with pytest.raises(EvaluationError, match="row of uint64"):
            decode_tail(shape, 1)
    with pytest.raises(EvaluationError, match="bins"):
        decode_tail(np.zeros(FRONT + 2 * 1025 + BLINDS, dtype="<u8"), 1)


def test_a_sum_of_no_silo_says_nothing() -> None:
    result = decode_tail(np.zeros(tail_length(2), dtype="<u8"), 4)
    assert result.loss_mean is None and result.auc_mean is None and result.silos == 0


@pytest.mark.parametrize(
    ("labels", "scores", "why"),
    [
        ([0, 1], [0.5], "equal length"),
        ([[0, 1]], [[0.5, 0.5]], "equal length"),
        ([0, 2], [0.5, 0.5], "labels"),
        ([0, 1], [0.5, math.nan], "finite"),
        ([0, 1], [0.5, 1.5], "probabilities"),
        ([0, 1], [-0.5, 0.5], "probabilities"),
    ],
)
def test_scores_that_are_none_are_refused(labels: Any, scores: Any, why: str) -> None:
    with pytest.raises(EvaluationError, match=why):
        histograms(labels, scores, 4)


@pytest.mark.parametrize("bins", [1, 1025, True, 4.0])
def test_bins_out_of_range_are_refused(bins: int) -> None:
    with pytest.raises(EvaluationError, match="bins"):
        tail_length(bins)


def delong(labels: np.ndarray, scores: np.ndarray) -> float:
    """The variance of the AUC, straight from the definition (with divisor n, as for a distribution)."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return float(wins.mean(axis=1).var() / positive.size + wins.mean(axis=0).var() / negative.size)


def test_the_interval_is_delongs() -> None:
    random = np.random.default_rng(5)
    labels = np.repeat([0, 1], [60, 40])
    scores = np.clip(np.round((random.normal(size=100) + labels) / 8 + 0.5, 2), 0, 0.99) + 0.001
    counts = histograms(labels, scores, 100)
    area = auc(labels, scores)
    assert area is not None and auc_from_histograms(counts) == pytest.approx(area)
    low, high = auc_interval(counts, scored=100) or (0.0, 0.0)
    error = math.sqrt(delong(labels, scores)) / (area * (1 - area)) * 1.959963984540054
    assert math.log(low / (1 - low)) == pytest.approx(math.log(area / (1 - area)) - error)
    assert math.log(high / (1 - high)) == pytest.approx(math.log(area / (1 - area)) + error)
    assert auc_interval(normalise(counts), scored=100) == pytest.approx((low, high), abs=1e-4)
    wider = auc_interval(counts, scored=50)
    assert wider is not None and wider[0] < low < area < high < wider[1]


def test_there_is_no_interval_where_the_variance_would_mislead() -> None:
    assert auc_interval([[4, 0], [0, 4]], scored=8) is None
    assert auc_interval([[0, 4], [4, 0]], scored=8) is None
    assert auc_interval([[4, 4], [0, 0]], scored=8) is None
    for arguments in ({"scored": 1}, {"scored": True}, {"scored": 8, "level": 1.0}):
        with pytest.raises(EvaluationError, match="scored"):
            auc_interval([[4, 1], [1, 4]], **arguments)  # type: ignore[arg-type]


@given(COUNTS)
def test_the_roc_curve_encloses_the_auc(counts: Any) -> None:
    points = roc_points(counts)
    area = auc_from_histograms(counts)
    if area is None:
        assert points == []
        return
    assert points[0] == (0.0, 0.0) and points[-1] == pytest.approx((1.0, 1.0))
    assert points == sorted(points)
    trapezoids = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    assert trapezoids == pytest.approx(area)


def test_sensitivity_and_specificity_at_a_threshold() -> None:
    counts = [[6, 2, 1, 1], [1, 1, 3, 5]]
    assert sensitivity_specificity(counts) == (0.8, 0.8)
    assert sensitivity_specificity(counts, 0.25) == (0.9, 0.6)
    assert sensitivity_specificity(counts, 0.0) == (1.0, 0.0)
    assert sensitivity_specificity([[1, 1], [0, 0]]) == (None, 0.5)
    assert sensitivity_specificity([[0, 0], [1, 1]]) == (0.5, None)
    with pytest.raises(EvaluationError, match="threshold"):
        sensitivity_specificity(counts, math.nan)


def test_calibration_compares_predicted_with_observed() -> None:
    first, last = calibration([[6, 2, 0, 0, 0, 2], [0, 2, 0, 0, 0, 8]], groups=3)
    assert (first.low, first.high, last.low, last.high) == (0.0, 1 / 3, 2 / 3, 1.0)
    assert first.observed == 0.2 and last.observed == 0.8
    assert first.predicted == pytest.approx((6 / 12 + 4 * 3 / 12) / 10) and last.predicted == pytest.approx(11 / 12)
    assert first.weight == last.weight == 0.5
    assert calibration([[0, 0], [0, 0]], groups=1) == []
    for groups in (0, 7, True):
        with pytest.raises(EvaluationError, match="groups"):
            calibration([[1] * 6, [1] * 6], groups=groups)


@pytest.mark.parametrize("counts", [[1, 2], [[1, 2]], [[1.0], [2.0]], [[-1, 2], [1, 1]]])
def test_histograms_that_are_none_are_refused(counts: Any) -> None:
    with pytest.raises(EvaluationError, match="whole numbers"):
        auc_from_histograms(counts)
