"""The sketch check at the portal: the manifest's rule over all sketches, and what page and log say of it.

`Round.sketches` holds whole numbers only; lengths are millionths in the units of the model's weights, cosines millionths:

    {"digest": of all signed sketches, "bound", "median": lengths, "missing": [silo, ..],
     "silos": {silo: {"norm": length, "cosine": with the others' sum or null, "code": why it is left out or null}}}
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from federation.models import Round
from federation.services.facts import Facts, coordinator_of, parameters_of
from federation.services.mail import Mail
from federation.services.reasons import SKETCH_REASONS
from protocol.secure_aggregation import checks

MICRO = 1_000_000
_MOST = (1 << 53) - 1


class Judged(NamedTuple):
    """Whom the rule leaves in the sum, sorted; and the report."""

    members: tuple[str, ...]
    report: dict[str, Any]


def sketches_judge(item: Round, mail: Mail, facts: Facts) -> Judged:
    """Apply the manifest's rule to all sketches that came in time; that enough are left is for the caller to see.

    Raises ProtocolViolation where too few sketches came.
    """
    parameters, coordinator = parameters_of(item), coordinator_of(item)
    roster = coordinator.roster(mail.envelopes("keys", item.roster))
    ready = mail.envelopes("ready", item.ready_set)
    first, _ = coordinator.first(roster, ready, mail.envelopes("list"))
    shown = coordinator.sketches(roster, ready, mail.envelopes("list"), mail.envelopes("sketch"))
    verdict = checks.judge(parameters, shown)
    squares = sorted(norm * norm for norm in verdict.norms.values())
    median = math.sqrt((squares[(len(squares) - 1) // 2] + squares[len(squares) // 2]) / 2)
    return Judged(
        verdict.members,
        {
            "digest": shown.digest,
            "bound": _micro(facts.fixed.clip_norm),
            "median": _micro(median),
            "missing": sorted(set(first.members) - set(shown.sums)),
            "silos": {
                silo: {
                    "norm": _micro(norm),
                    "cosine": None if (cosine := verdict.cosines[silo]) is None else _micro(cosine),
                    "code": verdict.excluded.get(silo),
                }
                for silo, norm in verdict.norms.items()
            },
        },
    )


def left_out(report: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Who fell out at the sketch check: silo, code and, where it showed a sketch, the estimated length."""
    if report is None:
        return []
    excluded = [
        {"silo": silo, "code": row["code"], "norm": row["norm"]} for silo, row in report["silos"].items() if row["code"]
    ]
    return excluded + [{"silo": silo, "code": "SKETCH_MISSING"} for silo in report["missing"]]


def sketch_faults(report: dict[str, Any]) -> list[dict[str, str]]:
    """The same as faults of a round, with a sentence each."""
    return [
        {"silo": row["silo"], "code": row["code"], "sentence": SKETCH_REASONS.get(row["code"], row["code"])}
        for row in left_out(report)
    ]


def _micro(value: float) -> int:
    return max(-_MOST, min(_MOST, round(value * MICRO)))
