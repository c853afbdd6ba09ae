"""`manage.py publish_log`: run the sequencer once, as the worker does every ten seconds."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from evidence.sequencer import LogForked, sequence


class Command(BaseCommand):
    """Publishes waiting entries."""

    help = "Give waiting entries their place in the log and publish a checkpoint."

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints the log's size."""
        try:
            newest = sequence()
        except LogForked as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{newest.size if newest else 0} entries are published.")
