"""Evaluation without scores leaving: histograms in the masked tail of an update, and what can be read from their sum.

A silo bins the scores of its own test images, class by class, and normalises the bins to a total of exactly 2^20, so
that no count of patients or images leaves, not even inside the mask. The tail is a row of unsigned 64-bit words:

    word 0           1 (the silo evaluated; all words are 0 where it could not)
    word 1           mean loss * 2^20, rounded, at most 2^20 * 2^10
    word 2           1 where the silo's test images hold both classes, else 0
    word 3, word 4   AUC * 2^30, rounded, and the square of that word's AUC * 2^30; both 0 without both classes
    word 5 ...       histogram of class 0, then of class 1, `bins` words each
    the last 3       random numbers below 2^50, which mean nothing

The random words blind the silo's check word (secure_aggregation/check_word.py): without them the few numbers of a small
hospital's evaluation could be guessed until one fits it. 150 random bits, hashed to 61, leave the hash within 2^-44 of
uniform, whatever the rest is.

Sums of tails over silos are sums of words (mod 2^64; 4,096 silos stay below it). What the sum says of one silo: with
two silos that have an AUC, each can work out the other's from the mean; with one, the mean would be that hospital's own
number, so it is withheld, and the spread is withheld below three.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocol.metrics import (
    MAX_BINS,
    CalibrationBin,
    EvaluationError,
    Histograms,
    auc,
    auc_from_histograms,
    auc_interval,
    calibration,
    check_bins,
    histograms,
    roc_points,
    sensitivity_specificity,
)

__all__ = [
    "AUC_UNIT",
    "BLINDS",
    "FRONT",
    "LOSS_CAP",
    "LOSS_UNIT",
    "MAX_BINS",
    "TOTAL",
    "CalibrationBin",
    "Evaluation",
    "EvaluationError",
    "Histograms",
    "auc",
    "auc_from_histograms",
    "auc_interval",
    "calibration",
    "decode_tail",
    "encode_tail",
    "histograms",
    "normalise",
    "roc_points",
    "sensitivity_specificity",
    "tail_length",
]

TOTAL: Final = 2**20
"""The total of one silo's histograms, both classes together."""
FRONT: Final = 5
"""Words before the histograms."""
BLINDS: Final = 3
"""Random words after the histograms."""
BLIND_BITS: Final = 50
LOSS_UNIT: Final = 2**20
LOSS_CAP: Final = 1024.0
"""A mean loss above this is reported as this."""
AUC_UNIT: Final = 2**30


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the sum of the tails says.

    Fields: silos: how many evaluated. loss_mean: over silos, each counting once; None without one. auc_mean: over silos
    with both classes; None below two such silos. auc_std: population standard deviation over them; None below three.
    silos_with_auc: their number. histograms: int64[2, bins], the sum; each silo adds 2^20.
    """

    silos: int
    loss_mean: float | None
    auc_mean: float | None
    auc_std: float | None
    silos_with_auc: int
    histograms: Histograms


def tail_length(bins: int) -> int:
    """Words of a tail with `bins` bins a class."""
    return FRONT + 2 * check_bins(bins) + BLINDS


def normalise(counts: ArrayLike) -> Histograms:
    """Counts [2, bins] scaled to a total of exactly 2^20, by largest remainders (ties: the lower index), without
    floats.

    All zero stays all zero. Raises: EvaluationError for negative or fractional counts, a total above 2^31, another
    shape.
    """
    array = np.asarray(counts)
    if array.ndim != 2 or array.shape[0] != 2 or array.dtype.kind not in "iu":
        raise EvaluationError("histograms must be whole numbers of shape [2, bins]")
    flat = array.astype(np.int64).reshape(-1)
    total = int(flat.sum())
    if flat.min(initial=0) < 0 or total > 2**31:
        raise EvaluationError("histograms must hold counts from 0 on, 2^31 together at most")
    if total == 0:
        return array.astype(np.int64)
    scaled, remainder = np.divmod(flat * TOTAL, total)
    missing = TOTAL - int(scaled.sum())
    scaled[np.argsort(-remainder, kind="stable")[:missing]] += 1
    return scaled.reshape(array.shape)


def encode_tail(*, loss: float | None, auc: float | None, histograms: ArrayLike) -> NDArray[np.uint64]:
    """One silo's tail.

    Parameters: loss: mean loss over its test images, from 0 on; None where there was nothing to score. auc: its own
    AUC, 0 to 1; None where one class is missing. histograms: counts or normalised, [2, bins]; they are normalised here
    in any case, so that no count can slip through.
    Returns: uint64[tail_length(bins)]; another one with each call, for its random words.
    Raises: EvaluationError where the parts contradict each other or are not numbers.
    """
    shares = normalise(histograms)
    tail = np.zeros(tail_length(shares.shape[1]), dtype="<u8")
    tail[-BLINDS:] = [secrets.randbits(BLIND_BITS) for _ in range(BLINDS)]
    if not shares.any():
        if loss is not None or auc is not None:
            raise EvaluationError("a loss or an AUC without any score")
        return tail
    if loss is None or not math.isfinite(loss) or loss < 0:
        raise EvaluationError("the mean loss must be a finite number from 0 on")
    tail[0] = 1
    tail[1] = round(min(loss, LOSS_CAP) * LOSS_UNIT)
    if auc is not None:
        if not 0.0 <= auc <= 1.0 or not shares.any(axis=1).all():
            raise EvaluationError("an AUC lies from 0 to 1 and needs scores of both classes")
        fixed = round(auc * AUC_UNIT)
        tail[2:FRONT] = 1, fixed, (fixed * fixed) // AUC_UNIT
    tail[FRONT:-BLINDS] = shares.reshape(-1)
    return tail


def decode_tail(summed: ArrayLike, n: int) -> Evaluation:
    """What the sum of the tails of `n` silos says.

    Raises: EvaluationError where the words cannot be the sum of n tails (more silos than n, histograms of another
    total, an AUC above 1, squares that no AUCs have, random words beyond their range): the aggregate must then not be
    used.
    """
    row = np.asarray(summed)
    if (
        row.ndim != 1
        or row.dtype != np.dtype("<u8")
        or row.size < FRONT + 4 + BLINDS
        or (row.size - FRONT - BLINDS) % 2
    ):
        raise EvaluationError("a tail is a row of uint64 words: 5, two histograms, and 3")
    raw, blinds = row[:-BLINDS], row[-BLINDS:]
    if int(blinds.max()) > n * (2**BLIND_BITS - 1):
        raise EvaluationError("the tail's random words are out of range")
    bins = (raw.size - FRONT) // 2
    tail_length(bins)
    silos, loss, with_auc, auc_sum, square_sum = (int(word) for word in raw[:FRONT])
    if not 0 <= with_auc <= silos <= n:
        raise EvaluationError("the tail counts more silos than are in the sum")
    if loss > silos * LOSS_CAP * LOSS_UNIT or max(auc_sum, square_sum) > with_auc * AUC_UNIT:
        raise EvaluationError("the tail's loss or AUC is out of range")
    # Of numbers from 0 to 1 the squares sum to no more than they do, and to no less than the mean's would. (Each square is
    # rounded down.)
    if square_sum > auc_sum or auc_sum * auc_sum > with_auc * (square_sum + with_auc) * AUC_UNIT:
        raise EvaluationError("the tail's AUCs and their squares do not fit together")
    if int(raw[FRONT:].max()) > silos * TOTAL or int(raw[FRONT:].sum()) != silos * TOTAL:
        raise EvaluationError("the tail's histograms do not have the total of that many silos")
    mean = auc_sum / (with_auc * AUC_UNIT) if with_auc else 0.0
    variance = square_sum / (with_auc * AUC_UNIT) - mean * mean if with_auc else 0.0
    return Evaluation(
        silos=silos,
        loss_mean=loss / (silos * LOSS_UNIT) if silos else None,
        auc_mean=mean if with_auc >= 2 else None,
        auc_std=math.sqrt(max(variance, 0.0)) if with_auc >= 3 else None,
        silos_with_auc=with_auc,
        histograms=raw[FRONT:].astype(np.int64).reshape(2, bins),
    )
