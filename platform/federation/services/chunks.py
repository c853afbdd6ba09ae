"""Pieces of masked updates come in: whole or not at all, the same one twice is fine, another one in its place is not.

A piece has its name before the silo gets its answer, so nothing is lost with a process. It is not flushed to the disk (that
would cost most of a small upload): each piece is compared with its digest when it is read, so after a power cut the worst
is a round that fails and is announced again, never a wrong sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.db import transaction

from federation.models import ChunkReceipt, Round, Stage
from federation.services.errors import Refused, not_yours, out_of_stage
from federation.services.facts import parameters_of
from federation.services.lookup import round_for
from federation.storage import AtomicFile, StorageFull, chunk_path
from organisations.models import Silo
from protocol.messages import Update
from protocol.secure_aggregation.parameters import RoundParameters
from protocol.secure_aggregation.sparse.messages import SparseUpdate


class Place(NamedTuple):
    """Where a piece belongs: the round, and how many bytes the piece has."""

    item: Round
    size: int


def chunk_place(*, round_key: str, silo: Silo, index: int) -> Place:
    """The place of piece `index` of this silo's update.

    Raises Refused: NOT_YOUR_STUDY, OUT_OF_STAGE, or BAD_MESSAGE where the update has no such piece.
    """
    item = round_for(round_key, silo)
    if item.stage != Stage.UPDATE:
        raise out_of_stage(item.key, "a piece of an update", item.stage)
    if silo.name not in (item.ready_set or ()):
        raise not_yours(f"The set of silos whose updates round {item.key} waits for")
    parameters = parameters_of(item)
    if not 0 <= index < parameters.chunk_count:
        raise Refused("BAD_MESSAGE", f"An update of round {item.key} has the pieces 0 to {parameters.chunk_count - 1}.")
    return Place(item, parameters.chunk_bytes(index))


@contextmanager
def chunk_file(*, place: Place, silo: Silo, index: int) -> Iterator[AtomicFile]:
    """A file to write the piece into as it arrives. Raises Refused (DISK_FULL); then nothing is left behind."""
    try:
        with AtomicFile(chunk_path(place.item.key, silo.name, index), expected=place.size) as file:
            yield file
    except StorageFull as error:
        raise Refused("DISK_FULL", str(error)) from error


@transaction.atomic
def chunk_receive(*, place: Place, silo: Silo, index: int, file: AtomicFile) -> bool:
    """Keep a piece that was written whole to `file`; False where the same one was there already.

    A round that has gone on meanwhile does no harm: whose update is summed, and with which pieces, is fixed by the
    signed `update` messages. Raises Refused: BAD_MESSAGE (length), CHUNK_DIFFERS, DISK_FULL.
    """
    item = place.item
    if file.size != place.size:
        raise Refused("BAD_MESSAGE", f"Piece {index} must have {place.size} bytes; {file.size} came. Send it again.")
    receipt = ChunkReceipt(round=item, silo=silo, index=index, digest=file.digest, size=file.size)
    ChunkReceipt.objects.bulk_create([receipt], ignore_conflicts=True)
    if ChunkReceipt.objects.values_list("digest", flat=True).get(round=item, silo=silo, index=index) != file.digest:
        raise Refused("CHUNK_DIFFERS", f"Other bytes are stored as piece {index} of your update in {item.key}.")
    if file.path.exists():
        return False
    try:
        file.keep(durable=False)
    except StorageFull as error:
        raise Refused("DISK_FULL", str(error)) from error
    return True


def chunks_present(*, round_key: str, silo: Silo) -> list[int]:
    """The pieces of this silo's update that are stored, ascending. Raises Refused (NOT_YOUR_STUDY)."""
    item = round_for(round_key, silo)
    return sorted(ChunkReceipt.objects.filter(round=item, silo=silo).values_list("index", flat=True))


def check_chunks(item: Round, silo: Silo, update: Update | SparseUpdate, parameters: RoundParameters) -> None:
    """All pieces of a signed update are stored, with the digests that it names.

    Raises Refused: CHUNKS_MISSING (send them, then the message again) or CHUNK_DIFFERS.
    """
    stored = dict(ChunkReceipt.objects.filter(round=item, silo=silo).values_list("index", "digest"))
    if len(update.chunks) != parameters.chunk_count:
        raise Refused("BAD_MESSAGE", f"An update of this round has {parameters.chunk_count} pieces.")
    missing = [index for index in range(parameters.chunk_count) if index not in stored]
    if missing:
        raise Refused("CHUNKS_MISSING", f"Pieces {missing[:20]} of your update are not here yet; send them first.")
    for index, digest in enumerate(update.chunks):
        if stored[index] != digest:
            raise Refused("CHUNK_DIFFERS", f"Piece {index} that is stored is not the one that the update signs.")
