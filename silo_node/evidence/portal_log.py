"""Holding the portal to one audit log: every checkpoint that it shows must fit the last one that this silo has seen.

FOLDER/portal_log.json keeps the newest signed note whole, and the (size, root) pairs that were found consistent. A
checkpoint of the same size with another root, or one that is not consistent, proves that the portal shows different logs
to different people: both notes are kept as evidence, and no study runs until a person has looked.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any, Final

from protocol.canonical import b64
from protocol.transparency.note import Checkpoint, NoteError, open_checkpoint
from protocol.transparency.proof import parse_proof, verify_proof
from protocol.transparency.tiles import TileError, consistency_from_tiles
from protocol.transparency.tree import ProofError, verify_consistency
from silo_node.config import Config
from silo_node.egress import Egress
from silo_node.errors import PortalRefused, Refused
from silo_node.files import read_json, write_json
from silo_node.node import Node

KEPT = 64
_ONE_AT_A_TIME: Final = threading.Lock()
"""The gate and the watch both bring checkpoints."""


def check_proof(node: Node, record: bytes, proof: str) -> Checkpoint:
    """Check that the pinned log holds `record`, in a checkpoint consistent with the last one seen.

    Raises: Refused LOG_PROOF, LOG_FORKED, LOG_UNREADABLE.
    """
    if node.pin is None:
        raise Refused("NOT_ENROLLED", "This silo is not enrolled, so it knows no log.")
    try:
        checkpoint = verify_proof(proof, leaf_data=record, vkey=node.pin.log_vkey)
        note = parse_proof(proof).note
    except (ProofError, NoteError) as error:
        raise Refused(
            "LOG_PROOF", f"The portal's proof that it logged this hospital's approval does not hold: {error}."
        ) from None
    accept(node, checkpoint, note)
    return checkpoint


def accept(node: Node, checkpoint: Checkpoint, note: str) -> None:
    """Hold a checkpoint (already verified) against what was seen, and remember the newest. Raises: Refused."""
    with _ONE_AT_A_TIME:
        _accept(node, checkpoint, note)


def conflict(config: Config) -> Refused | None:
    """Whether the portal was caught showing two different logs."""
    seen = read_json(config.folder / "portal_log.json") or {}
    if not seen.get("forked"):
        return None
    return Refused(
        "LOG_FORKED",
        f"The portal has shown two different audit logs; the proof is {config.folder}/{seen['forked']}. "
        "No study runs here until a person has looked at it.",
    )


def _accept(node: Node, checkpoint: Checkpoint, note: str) -> None:
    path = node.config.folder / "portal_log.json"
    seen: dict[str, Any] = read_json(path) or {"note": None, "consistent": []}
    if (caught := conflict(node.config)) is not None:
        raise caught
    pair = [checkpoint.size, b64(checkpoint.root)]
    if pair in seen["consistent"]:
        return
    if seen["note"] is not None and node.pin is not None:
        last = open_checkpoint(seen["note"], node.pin.log_vkey)
        _check_consistent(node, last, seen["note"], checkpoint, note)
        if checkpoint.size < last.size:
            note = seen["note"]
    seen["note"] = note
    seen["consistent"] = [*seen["consistent"], pair][-KEPT:]
    write_json(path, seen)


def _check_consistent(node: Node, last: Checkpoint, last_note: str, new: Checkpoint, note: str) -> None:
    low, high = sorted((last, new), key=lambda checkpoint: checkpoint.size)
    try:
        if low.size == high.size:
            if low.root != high.root:
                raise ProofError("equal sizes, different roots")
            return
        proof = consistency_from_tiles(PortalTiles(node.egress), low.size, high.size)
        verify_consistency(low.size, high.size, proof, low.root, high.root)
    except TileError as error:
        raise Refused("LOG_UNREADABLE", f"The portal's audit log can't be read: {error}.") from None
    except ProofError as error:
        if low.size == high.size:
            _keep_fork(node, last_note, note)
        # Tiles are not signed: a proof that fails proves nothing against the portal, but nothing runs on it either.
        raise Refused(
            "LOG_FORKED",
            f"The portal's audit log of {new.size} entries is not a continuation of the one of {last.size} entries "
            f"that this silo has seen ({error}).",
        ) from None


def _keep_fork(node: Node, first: str, second: str) -> None:
    name = f"log-fork-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    write_json(node.config.folder / name, {"first": first, "second": second})
    path = node.config.folder / "portal_log.json"
    write_json(path, {**(read_json(path) or {}), "forked": name})
    node.evidence.record("witness.refused", subject=("log", "portal", None), outcome="failure", reasons=["LOG_FORKED"])


class PortalTiles:
    """The portal's log as a tile store that can only be read."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    def read(self, path: str) -> bytes | None:
        """One tile, None where the portal has none."""
        try:
            return self._egress.get(f"/api/v1/log/{path}", kind="tile").body
        except PortalRefused as error:
            if error.status == 404:
                return None
            raise

    def write(self, path: str, data: bytes) -> None:
        """Never: a silo does not write the portal's log."""
        raise TileError(f"{path}: the portal's log is not ours to write")
