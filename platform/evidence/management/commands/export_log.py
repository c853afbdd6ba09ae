"""`manage.py export_log FOLDER`: the log as files for `consilium-verify FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from evidence.exports import export_log
from evidence.sequencer import sequence
from portal.actors import SYSTEM


class Command(BaseCommand):
    """Publishes what waits, then writes checkpoint, tiles and policy file."""

    help = "Write the evidence log into an empty folder that consilium-verify checks."

    def add_arguments(self, parser: Any) -> None:
        """The folder."""
        parser.add_argument("folder", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints how many entries were written."""
        sequence()
        try:
            size = export_log(options["folder"], actor=SYSTEM)
        except (OSError, ValueError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"{size} entries written to {options['folder']}. Check them: consilium-verify {options['folder']}"
        )
