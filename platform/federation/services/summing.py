"""One piece of the sum: read the piece of every member, add, take the masks of that range away, store.

Memory is two buffers of a piece, whatever the length of the model or the number of silos. Running it twice gives the
same bytes under the same name.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from django.db import transaction

from federation import storage
from federation.models import ChunkReceipt, Round, Stage, SumChunk
from federation.services import rounds, stages
from federation.services.facts import facts_of, parameters_of
from federation.services.stepping import step_piece
from federation.services.work import removal_of
from protocol.secure_aggregation.words import pack
from protocol.server_step import ServerStepError

log = structlog.get_logger(__name__)


def sum_chunk_make(item: Round, index: int) -> None:
    """Make piece `index` of the sum of a round in the stage `sum`, unless it is there already.

    Raises Damaged where a stored piece of an update is not what was received; NotEnoughShares.
    """
    if SumChunk.objects.filter(round=item, index=index).exists():
        return
    parameters = parameters_of(item)
    kind, _, _ = parameters.chunk_range(index)
    size = parameters.chunk_bytes(index)
    receipts = dict(
        ChunkReceipt.objects.filter(round=item, index=index, silo__name__in=item.members or ()).values_list(
            "silo__name", "digest"
        )
    )
    piece = bytearray(size)

    def pieces() -> Iterator[memoryview]:
        for silo in item.members or ():
            if silo not in receipts:
                raise storage.Damaged(f"piece {index} of {silo} in {item.key} was never received")
            got = storage.read_chunk(item.key, silo, index, digest=receipts[silo], into=piece)
            if len(got) != size:
                raise storage.Damaged(f"piece {index} of {silo} in {item.key} has {len(got)} bytes, not {size}")
            yield got

    total = removal_of(item).sum_chunk(index, pieces())
    if kind == "body":
        step_piece(item, index, total)
    with storage.AtomicFile(storage.chunk_path(item.key, storage.SUM, index), expected=size) as file:
        file.write(pack(total, parameters.bits(index)))
        file.keep(durable=False)
    SumChunk.objects.update_or_create(round=item, index=index, defaults={"digest": file.digest, "size": size})


def sum_complete(item: Round) -> bool:
    """Whether all pieces of the sum are there."""
    return SumChunk.objects.filter(round=item).count() == parameters_of(item).chunk_count


def sum_chunk_try(item: Round, index: int) -> bool:
    """Make a piece; False where that showed that the round can't be summed: then it has failed, with the reason.

    Raises what may pass: StorageFull, NotEnoughShares.
    """
    try:
        sum_chunk_make(item, index)
    except storage.Damaged as error:
        log.error("federation.update_damaged", round=item.key, chunk=index)
        sum_fail(item.key, code="UPDATE_DAMAGED", sentence=str(error))
    except ServerStepError as error:
        sum_fail(item.key, code="SUM_NOT_VALID", sentence=str(error))
    else:
        return True
    return False


@transaction.atomic
def sum_fail(key: str, *, code: str, sentence: str) -> None:
    """The round can't be summed and fails; the silos have spent it."""
    item = Round.objects.select_for_update().get(key=key)
    if item.stage == Stage.SUM:
        facts = facts_of(item.manifest_digest)
        rounds.round_fail(item, code=code, sentence=sentence, facts=facts, now=stages.now())
