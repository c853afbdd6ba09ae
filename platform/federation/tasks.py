"""Celery's side: thin, ids only, and each may run twice."""

from __future__ import annotations

from celery import shared_task

from federation.models import Round, Stage
from federation.services.facts import parameters_of
from federation.services.finishing import sum_finish
from federation.services.initial import initial_finish
from federation.services.summing import sum_chunk_try, sum_complete
from federation.services.sweep import sweep as sweep_rounds
from federation.services.verifying import sum_verify


@shared_task(name="federation.sum_chunk")
def sum_chunk(key: str, index: int) -> None:
    """Make one piece of a round's sum; whoever makes the last one finishes the sum."""
    item = Round.objects.get(key=key)
    if item.stage != Stage.SUM or not 0 <= index < parameters_of(item).chunk_count:
        return
    if sum_chunk_try(item, index) and sum_complete(item):
        sum_finish(item)


@shared_task(name="federation.finish_sum")
def finish_sum(key: str) -> None:
    """Finish a sum whose pieces are all there."""
    item = Round.objects.get(key=key)
    if item.stage == Stage.SUM and sum_complete(item):
        sum_finish(item)


@shared_task(name="federation.check_sum")
def check_sum(key: str) -> None:
    """Hold the published sum of a round against all check words."""
    sum_verify(key)


@shared_task(name="federation.first_model")
def first_model(key: str) -> None:
    """Make the first model of a study and compare it with what the silos signed."""
    initial_finish(key)


@shared_task(name="federation.sweep")
def sweep() -> int:
    """Once a second (beat): rounds that can't go on by themselves. Returns how many moved."""
    return len(sweep_rounds())
