"""The published sum against what the silos said of their own updates: the portal checks itself before the silos do.

    sum_sketch    before the sum is published: its sketch is the sum of the members' sketches, where there are any
    sum_verify    when all check words are there: its check word is the sum of theirs; then the round goes on

Both read the sum piece by piece, outside every transaction; memory is one piece. Both may run twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from django.db import transaction
from numpy.typing import NDArray

from federation import storage
from federation.models import Purpose, Round, Stage, SumChunk
from federation.services import books, rounds, stages
from federation.services.facts import coordinator_of, facts_of, parameters_of
from federation.services.mail import Mail, read_mail
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.words import signed, unpack

SKETCHED = ("keys", "ready", "list", "sketch")
CHECKED = ("keys", "ready", "list", "second", "nonce", "check")


def sum_sketch(item: Round) -> None:
    """Hold a sum whose pieces are all there against the members' sketches; nothing where the plan has none.

    Raises ProtocolViolation (SKETCH_DIFFERS), Damaged.
    """
    if parameters_of(item).sketch is None:
        return
    mail, coordinator = read_mail(item, SKETCHED), coordinator_of(item)
    roster = coordinator.roster(mail.envelopes("keys", item.roster))
    ready, lists = mail.envelopes("ready", item.ready_set), mail.envelopes("list")
    coordinator.sketch_of_sum(roster, ready, lists, mail.envelopes("sketch"), _body(item))


def sum_verify(key: str) -> None:
    """Hold the published sum of a round in the stage `check` against all check words, and move the round on.

    Does nothing where a check word is missing, or another process was first.
    """
    item = Round.objects.get(key=key)
    if item.stage != Stage.CHECK:
        return
    sparse = facts_of(item.manifest_digest).sparse
    mail = read_mail(item, ("check",) if sparse else CHECKED)
    if mail.silos("check") != set(item.members or ()):
        return
    try:
        (_verify_many if sparse else _verify)(item, mail)
    except ProtocolViolation as error:
        _end(key, mail, failure={"code": error.code, "sentence": error.sentence})
    except storage.Damaged as error:
        _end(key, mail, failure={"code": "SUM_DAMAGED", "sentence": str(error)})
    else:
        _end(key, mail, failure=None)


def _verify(item: Round, mail: Mail) -> None:
    coordinator, published = coordinator_of(item), item.sum_digest or ""
    roster = coordinator.roster(mail.envelopes("keys", item.roster))
    ready = mail.envelopes("ready", item.ready_set)
    final = coordinator.final(roster, ready, mail.envelopes("list"), mail.envelopes("second"))
    nonces = coordinator.nonces(roster, ready, final, published, mail.envelopes("nonce"))
    coordinator.check_sum(roster, final, published, nonces, mail.envelopes("check"), _body(item), _tail(item))


def _verify_many(item: Round, mail: Mail) -> None:
    with books.book_of(item) as book:
        book.coordinator.check_sum(item.sum_digest or "", _body(item), _tail(item))


@transaction.atomic
def _end(key: str, mail: Mail, *, failure: dict[str, str] | None) -> None:
    item = Round.objects.select_for_update().get(key=key)
    if item.stage != Stage.CHECK:
        return
    facts, now = facts_of(item.manifest_digest), stages.now()
    if failure is not None:
        rounds.round_fail(item, **failure, facts=facts, now=now)
    elif item.purpose == Purpose.TRAIN:
        stages.round_move(item, to=Stage.STATE, facts=facts, wake=item.members or (), now=now, verified=True)
    else:
        rounds.round_finish(item, mail=mail, facts=facts, now=now, verified=True)


def _body(item: Round) -> Iterator[NDArray[np.int32]]:
    """The sum's body as signed words, in order; each piece is valid until the next one is taken."""
    parameters, digests = parameters_of(item), _digests(item)
    buffer = bytearray(parameters.chunk_bytes(0))
    for index in range(parameters.chunk_count):
        if parameters.chunk_range(index)[0] == "body":
            piece = storage.read_chunk(item.key, storage.SUM, index, digest=digests[index], into=buffer)
            yield signed(unpack(piece, parameters.word_bits), parameters.word_bits)


def _tail(item: Round) -> NDArray[np.uint64]:
    """The sum's tail: its last piece."""
    parameters = parameters_of(item)
    last = parameters.chunk_count - 1
    buffer = bytearray(parameters.chunk_bytes(last))
    piece = storage.read_chunk(item.key, storage.SUM, last, digest=_digests(item)[last], into=buffer)
    return np.frombuffer(piece, dtype="<u8")


def _digests(item: Round) -> dict[int, str]:
    return dict(SumChunk.objects.filter(round=item).values_list("index", "digest"))
