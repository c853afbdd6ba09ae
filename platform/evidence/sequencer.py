"""From entries to a published log: indices, then tiles, then the checkpoint, then its publication.

Each step is durable before the next one starts, and each can be done again with the same result, so a crash between two
of them and two sequencers at once do no harm: indices are given in a transaction under a lock, tiles and Ed25519
signatures follow from the indices alone, and the checkpoint file only ever moves forward.
"""

from __future__ import annotations

from datetime import datetime

import structlog
from django.conf import settings
from django.db import transaction

from evidence.models import Entry, LogCheckpoint, LogLock
from portal.keys import log_key, log_vkey
from protocol.transparency.note import Checkpoint, open_checkpoint, sign_checkpoint
from protocol.transparency.tiles import FolderTileStore, append

log = structlog.get_logger(__name__)
CHECKPOINT_FILE = "checkpoint"
_BATCH = 2000


class LogForked(Exception):
    """The published log is ahead of the database: going on would show two histories. Restore the newer database."""


def store() -> FolderTileStore:
    """The folder that is served as the log."""
    return FolderTileStore(settings.LOG_FOLDER)


def sequence(now: datetime | None = None) -> LogCheckpoint | None:
    """Give waiting entries their place and publish them. Returns the newest checkpoint, None for an empty log.

    Must run outside a transaction: what it publishes has to be committed. Raises LogForked.
    """
    newest = LogCheckpoint.objects.order_by("-size").first()
    _refuse_fork(newest)
    while Entry.objects.filter(index__isnull=True).exists():
        _number_entries()
    while (made := _write_tiles(now)) is not None:
        newest = made
    if newest is not None:
        _publish()
    return newest


def sequence_on_commit() -> None:
    """Publish at once after the current transaction, so that nobody waits for the log (activation of a study)."""
    transaction.on_commit(sequence, robust=True)


def published() -> Checkpoint | None:
    """The checkpoint that the world sees, verified with our own key; None before the first."""
    note = store().read(CHECKPOINT_FILE)
    return None if note is None else open_checkpoint(note.decode("utf-8"), log_vkey())


def _lock() -> None:
    """Until the transaction ends, this process is the sequencer."""
    LogLock.objects.get_or_create(id=1)
    LogLock.objects.select_for_update().get(id=1)


def _number_entries() -> None:
    """Indices for one batch of entries, oldest first."""
    with transaction.atomic():
        _lock()
        last = Entry.objects.filter(index__isnull=False).order_by("-index").first()
        if last is None:
            _genesis()
        index = 0 if last is None or last.index is None else last.index + 1
        waiting = Entry.objects.filter(index__isnull=True).order_by("id")
        # The genesis record comes first whatever was written before it.
        batch = (
            list(waiting[:_BATCH])
            if last
            else [*waiting.filter(type="log.genesis"), *waiting.exclude(type="log.genesis")]
        )
        for number, entry in enumerate(batch, start=index):
            entry.index = number
        Entry.objects.bulk_update(batch, ["index"], batch_size=200)


def _genesis() -> None:
    """A log begins with a genesis record that names it."""
    if not Entry.objects.exists() or Entry.objects.filter(type="log.genesis").exists():
        return
    from evidence.genesis import write_genesis

    write_genesis()


def _write_tiles(now: datetime | None) -> LogCheckpoint | None:
    """Tiles and a checkpoint for the entries that have an index and no checkpoint; None where there are none."""
    with transaction.atomic():
        _lock()
        newest = LogCheckpoint.objects.order_by("-size").first()
        size = newest.size if newest else 0
        entries = Entry.objects.filter(index__gte=size).order_by("index")[:_BATCH]
        leaves = [bytes(entry.record) for entry in entries]
        if not leaves:
            return None
        new_size, root = append(store(), size, leaves)
        key = log_key()
        note = sign_checkpoint(Checkpoint(key.origin, new_size, root), key)
        made = LogCheckpoint.objects.create(size=new_size, root=root, note=note)
        if now is not None:
            LogCheckpoint.objects.filter(pk=made.pk).update(created_at=now)
        log.info("evidence.checkpoint", size=new_size)
        return made


def _publish() -> None:
    """The newest checkpoint as a file; under the lock, so that a slower sequencer never puts an older one back."""
    with transaction.atomic():
        _lock()
        newest = LogCheckpoint.objects.order_by("-size").first()
        seen = published()
        if newest is not None and (seen is None or seen.size < newest.size):
            store().write(CHECKPOINT_FILE, newest.note.encode("utf-8"))


def _refuse_fork(newest: LogCheckpoint | None) -> None:
    seen = published()
    if seen is None:
        return
    known = newest.size if newest else 0
    row = LogCheckpoint.objects.filter(size=seen.size).first()
    if seen.size > known or row is None or bytes(row.root) != seen.root:
        raise LogForked(
            f"The published log has {seen.size} entries that this database does not know (it knows {known}). It was restored "
            "from an old backup or belongs to another log. Restore the newest database; never publish over it."
        )
