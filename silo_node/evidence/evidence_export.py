"""The silo's own log for others: one record with its proof, and the whole log as `consilium-verify` checks it.

    EXPORT/log/             checkpoint, policy, tile/..   the layout that `consilium-verify EXPORT/log` checks
    EXPORT/sent.csv         every message that left this hospital: time, kind, round, bytes, digest of its body
    EXPORT/README.txt       what this is and how to check it

No patient's identity is in any of it: what names or counts patients stays beside the log, in evidence.db.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any, Final

from protocol.transparency.export import ExportError, Report, check_export
from protocol.transparency.proof import make_proof
from protocol.transparency.tiles import FolderTileStore, entries, inclusion_from_tiles, paths
from silo_node.errors import SiloError, UsageError
from silo_node.evidence.egress_log import NOT_SENT
from silo_node.files import write_bytes
from silo_node.node import Node

COLUMNS: Final = ("time", "kind", "method", "path", "round", "bytes", "digest", "status")
_README: Final = """What left the hospital of the silo {silo}, and what its node did: the silo's own audit log, {size} entries.

sent.csv      every message with a body, written before it left: time (UTC), kind, round, bytes, digest, the portal's status
              (empty: perhaps sent; 0: not sent, because no connection stood)
log/          the log; check it without us or the network:   consilium-verify log
              Its policy file names the key that signs it: {vkey}
              Compare that with what the hospital tells you, or give your own policy with --policy.

It shows that nothing in the log was changed or removed since it was signed. It cannot show that an event was never written.
"""


def policy_text(node: Node) -> str:
    """The log policy of the silo's own log: its key, no witnesses of its own (the portal logs its checkpoints)."""
    return f"log {node.keys.log_vkey}\nquorum none\n"


def signed_size(node: Node) -> int:
    """How many entries the signed checkpoint covers, after numbering what was recorded since. Raises: EvidenceDamaged."""
    node.evidence.sequence()
    checkpoint = node.evidence.checkpoint()
    return 0 if checkpoint is None else checkpoint.size


def proof_of(node: Node, position: int) -> tuple[bytes, str]:
    """(the record as it stands in the log, its `.tlog-proof`). Raises: UsageError where there is no such entry."""
    size = signed_size(node)
    if not 0 <= position < size:
        raise UsageError(f"the log has the entries 0 to {size - 1}, no {position}" if size else "the log is empty")
    folder = node.config.folder / "log"
    store = FolderTileStore(folder)
    record = next(data for at, data in enumerate(entries(store, size)) if at == position)
    note = (folder / "checkpoint").read_text(encoding="utf-8")
    return record, make_proof(position, inclusion_from_tiles(store, position, size), note)


def save_proof(node: Node, position: int, out: Path) -> list[Path]:
    """Write entry-N.json, entry-N.tlog-proof and policy into the folder `out`. Raises: UsageError."""
    record, proof = proof_of(node, position)
    files = {
        f"entry-{position}.json": record,
        f"entry-{position}.tlog-proof": proof.encode(),
        "policy": policy_text(node).encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_bytes(out / name, data)
    return [out / name for name in files]


def export(node: Node, out: Path, *, since: str | None = None) -> dict[str, Any]:
    """Write the export into the new folder `out`.

    Parameters: since: first day of sent.csv, YYYY-MM-DD; the log is always whole, or nobody could check it.
    Returns: {"entries", "messages"}, without those that were not sent. Raises: UsageError where `out` is there already; DiskFull.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: name a folder that is not, so that two exports do not mix")
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    size = write_log(node, beside / "log")
    rows = [row for row in node.egress_log.rows() if since is None or row["time"] >= since]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(beside / "sent.csv", text.getvalue().encode())
    readme = _README.format(silo=node.config.name, size=size, vkey=node.keys.log_vkey)
    write_bytes(beside / "README.txt", readme.encode())
    beside.rename(out)
    return {"entries": size, "messages": sum(row["status"] != NOT_SENT for row in rows)}


def write_log(node: Node, out: Path) -> int:
    """Copy the signed log into `out`; how many entries it has. Raises: UsageError for an empty one."""
    size = signed_size(node)
    if not size:
        raise UsageError("the log is empty: nothing has happened at this silo yet")
    folder = node.config.folder / "log"
    for path in ["checkpoint", *paths(size)]:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out / path, (folder / path).read_bytes())
    write_bytes(out / "policy", policy_text(node).encode())
    return size


def verify(node: Node, scratch: Path) -> Report:
    """Check the whole log as an auditor would, from a copy in the folder `scratch`. Raises: SiloError (EVIDENCE_DAMAGED)."""
    write_log(node, scratch)
    try:
        return check_export(scratch)
    except ExportError as error:
        raise SiloError("EVIDENCE_DAMAGED", f"This silo's own log is not what it signed: {error}") from None
