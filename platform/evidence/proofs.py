"""A proof that an entry stands in the published log: a `.tlog-proof` text that any C2SP tool can check offline."""

from __future__ import annotations

from evidence.models import Entry, LogCheckpoint
from evidence.sequencer import store
from protocol.transparency.proof import make_proof
from protocol.transparency.tiles import inclusion_from_tiles


class NotPublished(Exception):
    """The entry has no place in a published checkpoint yet; the sequencer gives it one within seconds."""


def proof_for(entry: Entry) -> tuple[bytes, str]:
    """The entry's record bytes (the leaf's data) and its proof in the newest checkpoint. Raises NotPublished."""
    index = entry.index
    if index is None:
        index = Entry.objects.values_list("index", flat=True).get(pk=entry.pk)
    newest = LogCheckpoint.objects.order_by("-size").first()
    if index is None or newest is None or newest.size <= index:
        raise NotPublished(f"entry {entry.pk} is not in a published checkpoint yet")
    hashes = inclusion_from_tiles(store(), index, newest.size)
    return bytes(entry.record), make_proof(index, hashes, newest.note)
