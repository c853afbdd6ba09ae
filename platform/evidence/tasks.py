"""Celery tasks of the log."""

from celery import shared_task

from evidence.sequencer import sequence


@shared_task(name="evidence.sequence")
def sequence_log() -> int:
    """Publish what waits: every ten seconds by beat, and at once when a hundred entries wait. The log's size."""
    newest = sequence()
    return newest.size if newest else 0
