"""What `var/demo/summary.json` says of a run: every figure is computed from what portal and silos recorded."""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Sequence
from typing import Any

from demo.hospital import Hospital


def overheads(report: dict[str, Any], hospitals: Sequence[Hospital]) -> list[float]:
    """Seconds of each finished training round, from announcement to end, that its slowest silo did not train or evaluate."""
    slowest: dict[int, float] = {}
    for hospital in hospitals:
        for line in hospital.rounds():
            if line["study"] == report["study"]:
                spent = float(line["train_seconds"]) + float(line["evaluate_seconds"])
                slowest[line["round"]] = max(slowest.get(line["round"], 0.0), spent)
    return [seconds(row) - slowest[row["number"]] for row in trained(report)]


def trained(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished training rounds; the last round, which only evaluates, is not one."""
    return [row for row in report["rounds"] if row["purpose"] == "train" and row["stage"] == "finished"]


def seconds(row: dict[str, Any]) -> float:
    """How long a finished round took."""
    began, ended = (dt.datetime.fromisoformat(row[key]) for key in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def bytes_up(report: dict[str, Any], hospitals: Sequence[Hospital]) -> int:
    """Median of the bytes that one silo sent in one training round, of all its messages."""
    numbers = {row["number"] for row in trained(report)}
    sent = [
        line["bytes_up"]
        for hospital in hospitals
        for line in hospital.rounds()
        if line["study"] == report["study"] and line["round"] in numbers and line["outcome"] == "finished"
    ]
    return int(statistics.median(sent))


def summary(
    report: dict[str, Any], *, hospitals: Sequence[Hospital], entries: int, verified: bool, elapsed: float
) -> dict[str, Any]:
    """The summary.

    The mean AUC comes from the masked sums and counts silos with both classes. A silo's own AUC is null where its test
    images have one class only, or where it did not take part.
    """
    per_silo = {hospital.name: report["auc"]["per_silo"].get(hospital.name) for hospital in hospitals}
    return {
        "silos": len(hospitals),
        "rounds": len(trained(report)),
        "auc": {"mean": report["auc"]["mean"], "per_silo": per_silo},
        "round_overhead_seconds": {"median": round(statistics.median(overheads(report, hospitals)), 3)},
        "bytes_up_per_silo_per_round": bytes_up(report, hospitals),
        "weights": report["weights"],
        "evidence": {"entries": entries, "verified": verified},
        "model": report["model"],
        "seconds": round(elapsed, 1),
    }
