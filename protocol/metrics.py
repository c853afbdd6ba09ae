"""Numbers from scores, and from histograms of scores: AUC with its interval, ROC, sensitivity, calibration.

Ties count half everywhere: within a bin nobody can tell which score was the higher one. Histograms are whole numbers of shape
[2, bins] (class 0, class 1), counts or normalised: nothing here depends on their total.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_BINS: Final = 1024

Histograms = NDArray[np.int64]
"""int64[2, bins]: class 0, class 1; bin k holds scores in [k/bins, (k+1)/bins), the last one 1 as well."""


class EvaluationError(ValueError):
    """Scores, histograms or a tail that cannot be used. The message never holds a score."""


def check_bins(bins: int) -> int:
    """`bins` itself. Raises EvaluationError where it is no whole number from 2 to 1024."""
    if type(bins) is not int or not 2 <= bins <= MAX_BINS:
        raise EvaluationError(f"bins must be a whole number from 2 to {MAX_BINS}")
    return bins


def histograms(labels: ArrayLike, scores: ArrayLike, bins: int) -> Histograms:
    """Exact counts, for use inside the silo only: `encode_tail` takes them through `normalise`.

    Parameters: labels: 0 or 1, [n]. scores: probabilities of class 1 in [0, 1], [n]. bins: 2 to 1024.
    Raises: EvaluationError for other values, or lengths that differ.
    """
    check_bins(bins)
    truth, probability = _labels_scores(labels, scores)
    if probability.size and not (probability.min() >= 0.0 and probability.max() <= 1.0):
        raise EvaluationError("scores must be probabilities from 0 to 1")
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return np.stack([np.bincount(index[truth == label], minlength=bins) for label in (0, 1)]).astype(np.int64)


def auc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The area under the ROC curve: P(a positive scores above a negative), ties counting half. None without both
    classes.

    Parameters: labels: 0 or 1, [n]. scores: any finite numbers, [n]. Raises: EvaluationError.
    """
    truth, score = _labels_scores(labels, scores)
    positives = int(truth.sum())
    negatives = truth.size - positives
    if positives == 0 or negatives == 0:
        return None
    _, where, ties = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(ties) - (ties - 1) / 2.0  # the mean rank of each distinct score, from 1
    return float((rank[where][truth == 1].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def auc_from_histograms(counts: ArrayLike) -> float | None:
    """The AUC of binned scores [2, bins], ties within a bin counting half. None without both classes."""
    negative, positive = _pair(counts)
    pairs = int(negative.sum()) * int(positive.sum())
    if pairs == 0:
        return None
    below = np.cumsum(negative) - negative
    return float(np.sum(positive * (2 * below + negative))) / (2 * pairs)


def auc_interval(counts: ArrayLike, *, scored: int, level: float = 0.95) -> tuple[float, float] | None:
    """A confidence interval of `auc_from_histograms` by DeLong (1988), on the logit scale so that it stays inside 0 to
    1.

    DeLong's components are means over the distributions, so normalised histograms give them exactly (up to the bins);
    only the division by the number of images needs one, and exact numbers do not leave the hospitals. So `scored` is a
    lower bound of how many images were scored together (silos that evaluated, times the fewest at one), parted into
    classes by the histograms: the interval is then at least as wide as the true one. Images of one patient are not
    independent, so count patients where they are known.

    Parameters: scored: from 2 on. level: between 0 and 1.
    Returns: (low, high); None without both classes, or where the AUC is 0 or 1 (the variance would be 0 and mislead).
    """
    if type(scored) is not int or scored < 2 or not 0.0 < level < 1.0:
        raise EvaluationError("scored must be a whole number from 2 on, level between 0 and 1")
    area = auc_from_histograms(counts)
    if area is None or area in (0.0, 1.0):
        return None
    negative, positive = (part / part.sum() for part in _pair(counts))
    totals = _pair(counts).sum(axis=1)
    share = float(totals[1] / totals.sum())
    v10 = np.cumsum(negative) - negative / 2.0  # of a positive in this bin: the negatives below it
    v01 = 1.0 - (np.cumsum(positive) - positive / 2.0)  # of a negative in this bin: the positives above it
    s10 = float(np.sum(positive * (v10 - area) ** 2))
    s01 = float(np.sum(negative * (v01 - area) ** 2))
    m, n = max(scored * share, 1.0), max(scored * (1.0 - share), 1.0)
    half = NormalDist().inv_cdf(0.5 + level / 2.0) * math.sqrt(s10 / m + s01 / n) / (area * (1.0 - area))
    logit = math.log(area / (1.0 - area))
    return 1.0 / (1.0 + math.exp(half - logit)), 1.0 / (1.0 + math.exp(-half - logit))


def roc_points(counts: ArrayLike) -> list[tuple[float, float]]:
    """(1 - specificity, sensitivity) from (0, 0) to (1, 1), one point a bin's lower edge; empty without both "
    "classes."""
    negative, positive = _pair(counts)
    if not negative.any() or not positive.any():
        return []
    false = np.cumsum(negative[::-1]) / negative.sum()
    true = np.cumsum(positive[::-1]) / positive.sum()
    return [(0.0, 0.0), *((float(x), float(y)) for x, y in zip(false, true, strict=True))]


def sensitivity_specificity(counts: ArrayLike, threshold: float = 0.5) -> tuple[float | None, float | None]:
    """Shares of positives at or above, and of negatives below, the threshold, moved to the nearest edge of a bin.

    Returns: (sensitivity, specificity); each None where its class is missing. Raises: EvaluationError.
    """
    if not 0.0 <= threshold <= 1.0:
        raise EvaluationError("the threshold must lie from 0 to 1")
    negative, positive = _pair(counts)
    edge = round(threshold * negative.size)
    return (
        float(positive[edge:].sum() / positive.sum()) if positive.any() else None,
        float(negative[:edge].sum() / negative.sum()) if negative.any() else None,
    )


@dataclass(frozen=True)
class CalibrationBin:
    """Scores from `low` to `high`: their mean (bins counted at their middle), the share of class 1 among them, and
    which share of all scores lies here."""

    low: float
    high: float
    predicted: float
    observed: float
    weight: float


def calibration(counts: ArrayLike, groups: int = 10) -> list[CalibrationBin]:
    """Predicted against observed, in `groups` equal ranges of the score; empty ranges are left out.

    The histograms weigh each silo alike, so `observed` is the mean over hospitals, not over patients.
    """
    pair = _pair(counts)
    bins = pair.shape[1]
    if type(groups) is not int or not 1 <= groups <= bins:
        raise EvaluationError(f"groups must be a whole number from 1 to {bins}")
    both = pair.sum(axis=0)
    middle = (np.arange(bins) + 0.5) / bins
    edges = [group * bins // groups for group in range(groups + 1)]
    result = []
    for first, last in pairwise(edges):
        inside = int(both[first:last].sum())
        if inside:
            result.append(
                CalibrationBin(
                    low=first / bins,
                    high=last / bins,
                    predicted=float((both[first:last] * middle[first:last]).sum() / inside),
                    observed=float(pair[1, first:last].sum() / inside),
                    weight=inside / int(both.sum()),
                )
            )
    return result


def _labels_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth = np.asarray(labels)
    score = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != score.shape:
        raise EvaluationError("labels and scores must be two rows of equal length")
    if not bool(np.isin(truth, (0, 1)).all()):
        raise EvaluationError("labels must be 0 or 1")
    if not bool(np.isfinite(score).all()):
        raise EvaluationError("a score is not a finite number")
    return truth.astype(np.int64), score


def _pair(counts: ArrayLike) -> Histograms:
    pair = np.asarray(counts)
    if pair.ndim != 2 or pair.shape[0] != 2 or pair.dtype.kind not in "iu" or pair.min(initial=0) < 0:
        raise EvaluationError("histograms must be whole numbers from 0 on, of shape [2, bins]")
    return pair.astype(np.int64)
