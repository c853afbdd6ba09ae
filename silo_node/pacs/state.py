"""How things stand with the PACS, for `silo status` and the node's page. Counts and codes only."""

from __future__ import annotations

from typing import Any

from silo_node.config import Config
from silo_node.files import read_json
from silo_node.pacs import fetch


def report(config: Config) -> dict[str, Any]:
    """`fetch`: the last run's report, None before the first; `receiver`: state and counts, None where none is set.

    Raises: UsageError (pacs.db).
    """
    settings = config.settings
    return {
        "fetch": fetch.last(config) if settings.dicomweb is not None else None,
        "receiver": read_json(config.folder / "receiver.json") if settings.receiver is not None else None,
    }


def problems(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Of a report, what a person should see to: a fetch that ended early, a receiver that can't listen."""
    fetched, receiver = ((found or {}).get(name) or {} for name in ("fetch", "receiver"))
    rows = []
    if fetched.get("code"):
        rows.append((fetched["ended"], fetched["code"], fetched["sentence"], fetched["failures"]))
    if receiver.get("code"):
        rows.append((receiver["time"], receiver["code"], receiver["sentence"], 1))
    return [dict(zip(("time", "code", "sentence", "times"), row, strict=True)) for row in rows]
