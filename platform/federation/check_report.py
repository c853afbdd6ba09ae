"""What the checks of a round found, and what rounds together show, as pages say it. Nothing here decides anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.models import Purpose, Round, RoundMessage, Stage
from federation.services.reasons import SKETCH_REASONS
from federation.services.sketches import MICRO
from governance.models import Manifest
from governance.pages_selectors import manifest_content
from protocol.canonical import unb64
from protocol.messages import Sketch
from protocol.secure_aggregation.anomaly import Direction, Gain, RoundRecord, directions, gains

FAILED = ("SKETCH_DIFFERS", "CHECK_MISSING", "SUM_NOT_TRUE")
"""Codes of rounds that failed because their sum was not believed."""
ROUNDS = 200
"""Rounds that are looked at together, the newest ones."""


@dataclass(frozen=True)
class SketchRow:
    """One hospital at the sketch check. bound, median: its length over them; None where it showed no sketch."""

    silo: str
    hospital: str
    bound: float | None
    median: float | None
    cosine: float | None
    kept: bool
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """The checks of one round. sum: a state of words.py, "" before there is a sum; missing: whose check word is not there."""

    sum: str
    missing: list[str]
    rows: list[SketchRow]


def check_report(item: Round, hospitals: Mapping[str, str]) -> CheckReport | None:
    """What the page of a round says about its checks; None for one in which nothing is summed or was checked yet."""
    report = CheckReport(_sum_state(item), _missing(item, hospitals), _rows(item, hospitals))
    return report if report.sum or report.rows else None


def _sum_state(item: Round) -> str:
    if item.verified is not None:
        return "verified" if item.verified else "unverified"
    if item.failure and item.failure["code"] in FAILED:
        return "false"
    return "open" if item.stage in (Stage.NONCE, Stage.CHECK) else ""


def _missing(item: Round, hospitals: Mapping[str, str]) -> list[str]:
    return [hospitals.get(each["silo"], each["silo"]) for each in item.faults if each["code"] == "CHECK_MISSING"]


def _rows(item: Round, hospitals: Mapping[str, str]) -> list[SketchRow]:
    report = item.sketches
    if report is None:
        return []
    rows = []
    for silo in sorted({*report["silos"], *report["missing"]}):
        row = report["silos"].get(silo, {"norm": None, "cosine": None, "code": "SKETCH_MISSING"})
        code = row["code"]
        rows.append(
            SketchRow(
                silo=silo,
                hospital=hospitals.get(silo, silo),
                bound=_over(row["norm"], report["bound"]),
                median=_over(row["norm"], report["median"]),
                cosine=_over(row["cosine"], MICRO),
                kept=not code,
                reason=SKETCH_REASONS.get(code, code) if code else "",
            )
        )
    return rows


def _over(value: int | None, whole: int) -> float | None:
    return value / whole if value is not None and whole else None


@dataclass(frozen=True)
class Together:
    """One hospital over many rounds."""

    silo: str
    hospital: str
    direction: Direction | None
    gain: Gain | None


def together_of(manifest: Manifest | None) -> list[Together]:
    """What the last finished rounds of this version of a study show together; empty where they show nothing."""
    if manifest is None:
        return []
    participants = manifest_content(manifest).participants
    weights = {each.silo: each.weight for each in participants}
    rounds = list(
        Round.objects.filter(manifest=manifest, stage=Stage.FINISHED)
        .exclude(purpose=Purpose.INITIAL)
        .select_related("result")
        .order_by("-pk")[:ROUNDS]
    )[::-1]
    sketches = _sketches(rounds)
    records = [
        RoundRecord(
            {silo: row for silo, row in sketches.get(item.pk, {}).items() if silo in weights},
            item.members or (),
            item.result.auc_mean if hasattr(item, "result") else None,
        )
        for item in rounds
    ]
    pointed, gained = directions(records, weights), gains(records)
    return [
        Together(each.silo, each.organisation, pointed.get(each.silo), gained.get(each.silo))
        for each in participants
        if each.silo in pointed or each.silo in gained
    ]


def _sketches(rounds: list[Round]) -> dict[int, dict[str, NDArray[np.int64]]]:
    """Round -> silo -> the sketch that it signed in time."""
    found: dict[int, dict[str, NDArray[np.int64]]] = {}
    letters = RoundMessage.objects.filter(round__in=rounds, kind=Sketch.STAGE, late=False)
    for number, silo, envelope in letters.values_list("round_id", "silo__name", "envelope"):
        sums = unb64(json.loads(unb64(envelope["payload"]))["sums"])
        found.setdefault(number, {})[silo] = np.frombuffer(sums, dtype="<i8").astype(np.int64)
    return found


def whole_report(item: Round) -> dict[str, Any]:
    """The checks of a round for programs: lengths and cosines in millionths, as in the log."""
    return {"verified": item.verified, "first_list": item.first_list, "sketches": item.sketches}
