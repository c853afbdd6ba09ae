"""Who makes the sum and checks it: this process at once where it is small, else tasks, for the sum one a piece.

Nothing depends on a task arriving: a sum that is not done after a while is sent again by the sweep, and every part of
the work may run twice.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction

from federation import conf
from federation.models import Purpose, Round, Stage, SumChunk
from federation.services import books
from federation.services.facts import coordinator_of, facts_of, parameters_of
from federation.services.mail import Mail, read_mail
from federation.services.stages import now
from protocol.secure_aggregation.coordinator import Removal

UNMASKING = ("keys", "ready", "list", "second", "unmask")

_removals: dict[str, Removal] = {}


def removal_of(item: Round, mail: Mail | None = None) -> Removal:
    """What the unmask messages reveal: the masks to take from the sum. Kept while this process works on the round.

    Raises NotEnoughShares, naming who sent shares that don't fit.
    """
    found = _removals.get(item.key)
    if found is None:
        found = _recover_many(item) if facts_of(item.manifest_digest).sparse else _recover(item, mail)
        while len(_removals) >= 4:
            _removals.pop(next(iter(_removals)), None)
        _removals[item.key] = found
    return found


def _recover(item: Round, mail: Mail | None) -> Removal:
    mail, coordinator = mail or read_mail(item, UNMASKING), coordinator_of(item)
    return coordinator.recover(
        coordinator.roster(mail.envelopes("keys", item.roster)),
        mail.envelopes("ready", item.ready_set),
        mail.envelopes("list"),
        mail.envelopes("unmask"),
        mail.envelopes("second"),
    )


def _recover_many(item: Round) -> Removal:
    with books.book_of(item) as book:
        return book.coordinator.recover()


def removal_forget(item: Round) -> None:
    """The round is over: what was rebuilt is not kept."""
    _removals.pop(item.key, None)


def work_send(item: Round) -> None:
    """On commit: have the sum (or the first model) made."""
    key = item.key
    Round.objects.filter(pk=item.pk).update(worked_at=now())
    if item.purpose == Purpose.INITIAL:
        transaction.on_commit(lambda: _first(key), robust=True)
        return
    parameters = parameters_of(item)
    if (parameters.words + parameters.tail) * len(item.members or ()) <= conf.inline_words():
        transaction.on_commit(lambda: work_do(key), robust=True)
        return
    removal_forget(item)
    done = set(SumChunk.objects.filter(round=item).values_list("index", flat=True))
    missing = [index for index in range(parameters.chunk_count) if index not in done]
    transaction.on_commit(lambda: _tasks(key, missing), robust=True)


def check_send(item: Round, present: datetime) -> None:
    """On commit: have the published sum held against the check words, unless that was sent a moment ago."""
    if item.worked_at is not None and item.worked_at > present - timedelta(seconds=conf.sum_again_after()):
        return
    key, parameters = item.key, parameters_of(item)
    Round.objects.filter(pk=item.pk).update(worked_at=present)
    small = parameters.words + parameters.tail <= conf.inline_words()
    transaction.on_commit(lambda: _check(key, small), robust=True)


def work_do(key: str) -> None:
    """The whole sum in this process."""
    from federation.services.finishing import sum_finish
    from federation.services.summing import sum_chunk_try

    item = Round.objects.get(key=key)
    if item.stage != Stage.SUM:
        return
    if all(sum_chunk_try(item, index) for index in range(parameters_of(item).chunk_count)):
        sum_finish(item)


def _check(key: str, small: bool) -> None:
    from federation import tasks

    tasks.check_sum(key) if small else tasks.check_sum.delay(key)


def _first(key: str) -> None:
    from federation import tasks

    tasks.first_model.delay(key)


def _tasks(key: str, missing: list[int]) -> None:
    from federation import tasks

    for index in missing:
        tasks.sum_chunk.delay(key, index)
    if not missing:
        tasks.finish_sum.delay(key)
