"""From the pieces of the sum to the next model: its digest, the evaluation, and the published, signed sum.

    1. Where the members showed sketches, the sum is held against them.
    2. The pieces of the sum are hashed in order, and the largest words of each tensor looked for where scales follow the
       sum. The next model, whose pieces were made with them, gets its front with the next scales, is hashed and named.
    3. The tail says how good the model that came in is.
    4. In one transaction: the sum's facts are signed and published, the result is stored, the round goes on to `nonce`.

Memory is one piece. Running it twice gives the same file under the same name; one transaction wins.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any, NamedTuple

import numpy as np
from django.db import transaction

from federation import storage
from federation.models import Round, Stage, SumChunk
from federation.services import stages
from federation.services.evaluation import result_keep
from federation.services.facts import Facts, facts_of, parameters_of
from federation.services.models import front_of
from federation.services.stepping import growing, growing_path, write_at
from federation.services.summing import sum_fail
from federation.services.verifying import sum_sketch
from federation.services.work import removal_forget
from federation.storage import Damaged, make_durable, model_path, read_chunk
from portal.keys import answer_key
from protocol import canonical
from protocol.evaluation import Evaluation, EvaluationError, decode_tail
from protocol.model_state import Front, header_bytes
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.scales import Maxima
from protocol.secure_aggregation.words import signed, unpack
from protocol.signing import sign_envelope

SUM_TYPE = "application/vnd.consilium.round.sum+json"


class Made(NamedTuple):
    """What came of the sum: its digest, the next model's digest (None where there is none), and the evaluation."""

    sum_digest: str
    model_digest: str | None
    evaluation: Evaluation


def sum_finish(item: Round) -> None:
    """Finish the sum of a round whose pieces are all there; does nothing where another process did it first."""
    facts = facts_of(item.manifest_digest)
    try:
        sum_sketch(item)
        made = _make(item)
    except Damaged:
        # A piece of the sum itself: it can be made again from the updates.
        SumChunk.objects.filter(round=item).delete()
        raise
    except EvaluationError as error:
        sum_fail(item.key, code="SUM_NOT_VALID", sentence=str(error))
        return
    except ProtocolViolation as error:
        sum_fail(item.key, code=error.code, sentence=error.sentence)
        return
    finally:
        removal_forget(item)
    _publish(item.key, made, facts)
    if made.model_digest is not None:
        # While the silos fetch the sum; t of them sign the same digest before the model is used.
        make_durable(model_path(made.model_digest))
        growing_path(item.key).unlink(missing_ok=True)


def _make(item: Round) -> Made:
    parameters = parameters_of(item)
    digests = dict(SumChunk.objects.filter(round=item).values_list("index", "digest"))
    whole = hashlib.sha256()
    front = front_of(item.model_digest or "") if parameters.words else None
    maxima = Maxima(front.table) if front is not None and front.scales is not None else None
    buffer = bytearray(max(parameters.chunk_bytes(index) for index in range(parameters.chunk_count)))
    for index in range(parameters.chunk_count):
        piece = read_chunk(item.key, storage.SUM, index, digest=digests[index], into=buffer)
        whole.update(piece)
        if maxima is not None and parameters.chunk_range(index)[0] == "body":
            maxima.add(signed(unpack(piece, parameters.word_bits), parameters.word_bits))
    evaluation = decode_tail(np.frombuffer(piece, dtype="<u8"), len(item.members or ()))
    model_digest = None
    if front is not None:
        model_digest = _name_model(item, _next_header(item, front, maxima), buffer)
    return Made("sha256:" + whole.hexdigest(), model_digest, evaluation)


def _next_header(item: Round, front: Front, maxima: Maxima | None) -> bytes:
    """The front of the next model: as long as that of this one, and nothing else in it than other scales."""
    if maxima is None:
        return front.header
    fixed, weight = facts_of(item.manifest_digest).fixed, item.total_weight or 0
    scales = fixed.next_scales(front.table, front.scales, maxima.values(), total_weight=weight)
    return header_bytes(front.table, scales)


def _name_model(item: Round, header: bytes, buffer: bytearray) -> str:
    """Complete the next model with its front, hash it and give it its name; returns the digest.

    Raises Damaged where it is not whole; StorageFull.
    """
    with growing(item) as handle:
        write_at(handle, memoryview(header), 0)
    digest = hashlib.sha256()
    size = 0
    with growing_path(item.key).open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            digest.update(memoryview(buffer)[:got])
            size += got
    if size != model_path(item.model_digest or "").stat().st_size:
        raise Damaged(f"the next model of {item.key} is not whole")
    name = "sha256:" + digest.hexdigest()
    # A second name, not a new one: whoever else finishes this round at the same time still finds the file.
    with contextlib.suppress(FileExistsError):
        model_path(name).hardlink_to(growing_path(item.key))
    return name


@transaction.atomic
def _publish(key: str, made: Made, facts: Facts) -> None:
    item = Round.objects.select_for_update().get(key=key)
    if item.stage != Stage.SUM:
        return
    parameters = parameters_of(item)
    facts_of_sum: dict[str, Any] = {
        "digest": made.sum_digest,
        "words": parameters.words,
        "tail": parameters.tail,
        "chunks": parameters.chunk_count,
        "members": item.members,
        "total_weight": item.total_weight,
    }
    payload = canonical.encode({"schema": "consilium/round/sum/1", "ctx": parameters.ctx.hex(), **facts_of_sum})
    envelope = sign_envelope(SUM_TYPE, payload, answer_key()).as_dict()
    result_keep(item, made.evaluation)
    now = stages.now()
    fields = {
        "sum": facts_of_sum,
        "sum_envelope": envelope,
        "sum_digest": made.sum_digest,
        "next_model_digest": made.model_digest,
    }
    stages.round_move(item, to=Stage.NONCE, facts=facts, wake=item.members or (), now=now, **fields)
