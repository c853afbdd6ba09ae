"""The whole log as a folder that `consilium-verify FOLDER` checks without us: checkpoint, tiles, policy file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from django.db import transaction

from evidence.models import Entry
from evidence.sequencer import CHECKPOINT_FILE, store
from portal.actors import Actor, Subject
from portal.keys import log_vkey
from protocol.transparency.note import open_checkpoint
from protocol.transparency.tiles import FolderTileStore, append, entries


def export_log(folder: Path, *, actor: Actor | None = None, proofs: Iterable[Entry] = ()) -> int:
    """Write the published log to `folder`, which must be empty or missing; the number of its entries.

    The tiles are made anew from the entry bundles and must give the root of the signed checkpoint, so an export is never
    a copy of something broken. With `actor`, the export is recorded (audit.exported; it shows in the next checkpoint).
    `proofs`: published entries whose `.tlog-proof` and record are put beside.
    Raises: FileExistsError, FileNotFoundError (nothing published), ValueError (tiles and checkpoint differ).
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    source = store()
    note = source.read(CHECKPOINT_FILE)
    if note is None:
        raise FileNotFoundError("nothing is published yet: run `python manage.py publish_log`")
    checkpoint = open_checkpoint(note.decode("utf-8"), log_vkey())
    folder.mkdir(parents=True, exist_ok=True)
    target = FolderTileStore(folder)
    _, root = append(target, 0, list(entries(source, checkpoint.size)))
    if root != checkpoint.root:
        raise ValueError(
            "the tiles on disk do not give the root of the published checkpoint; run consilium-verify on it"
        )
    (folder / "policy").write_text(f"log {log_vkey()}\nquorum none\n")
    target.write(CHECKPOINT_FILE, note)
    _write_proofs(folder, proofs)
    if actor is not None:
        from evidence.services import record

        with transaction.atomic():
            record(
                type="audit.exported",
                actor=actor,
                subject=Subject("log", checkpoint.origin, str(checkpoint.size)),
                data={"entries": checkpoint.size},
            )
    return checkpoint.size


def _write_proofs(folder: Path, chosen: Iterable[Entry]) -> None:
    from evidence.proofs import proof_for

    for entry in chosen:
        record, proof = proof_for(entry)
        (folder / "proofs").mkdir(exist_ok=True)
        (folder / "proofs" / f"{entry.pk}.json").write_bytes(record)
        (folder / "proofs" / f"{entry.pk}.tlog-proof").write_text(proof)
