"""How things stand with the PACS, for `silo status` and the node's page. Counts and codes only."""

from __future__ import annotations

from typing import Any, Final

from silo_node.config import Config
from silo_node.files import read_json
from silo_node.pacs import fetch
from silo_node.pacs.errors import REFUSALS

KEPT_OUT: Final = {
    **{code: REFUSALS[code] for code in ("OPTED_OUT", "NOT_CONSENTED")},
    "NO_PATIENT": "without a patient id nobody can say whether the patient said yes or no",
}


def report(config: Config) -> dict[str, Any]:
    """`fetch`: the last run's report, None before the first; `receiver`: state and counts, None where none is set.

    Raises: UsageError (pacs.db).
    """
    settings = config.settings
    return {
        "fetch": fetch.last(config) if settings.dicomweb is not None else None,
        "receiver": read_json(config.folder / "receiver.json") if settings.receiver is not None else None,
    }


def kept_out(found: dict[str, Any] | None) -> list[tuple[str, str, int, int]]:
    """Of a report, whose images do not come: (code, meaning, studies that the last fetch left out, images that were sent since
    the receiver's start and not kept)."""
    fetched, receiver = ((found or {}).get(name) or {} for name in ("fetch", "receiver"))
    left, sent = fetched.get("skipped", {}), receiver.get("counts", {})
    codes = sorted(code for code in {*left, *sent} if code in KEPT_OUT)
    return [(code, KEPT_OUT[code], left.get(code, 0), sent.get(code, 0)) for code in codes]


def problems(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Of a report, what a person should see to: a fetch that ended early, a receiver that can't listen."""
    fetched, receiver = ((found or {}).get(name) or {} for name in ("fetch", "receiver"))
    rows = []
    if fetched.get("code"):
        rows.append((fetched["ended"], fetched["code"], fetched["sentence"], fetched["failures"]))
    if receiver.get("code"):
        rows.append((receiver["time"], receiver["code"], receiver["sentence"], 1))
    return [dict(zip(("time", "code", "sentence", "times"), row, strict=True)) for row in rows]
