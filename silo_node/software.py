"""Which software runs here: an update of it is a record in the silo's own log."""

from __future__ import annotations

from silo_node import __version__
from silo_node.errors import UsageError
from silo_node.files import read_json, write_json
from silo_node.node import Node


def note(node: Node) -> None:
    """At the start of `silo run`. The record comes first: a crash between the two repeats it. Raises: DiskFull."""
    path = node.config.folder / "software.json"
    try:
        kept = read_json(path)
    except UsageError:
        kept = None  # half a file after a power cut: which version it was is not known any more
    before = kept.get("version") if isinstance(kept, dict) else None
    if before == __version__:
        return
    if before is not None:
        node.evidence.record(
            "software.updated", subject=("software", "consilium-silo", __version__), data={"before": str(before)[:40]}
        )
    write_json(path, {"version": __version__})
