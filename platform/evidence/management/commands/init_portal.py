"""`manage.py init_portal`: the portal's keys, its folders and the first record of its log. Safe to run again."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from evidence.genesis import write_genesis
from evidence.sequencer import sequence
from portal.keys import answer_key, create_keys, log_vkey
from protocol.signing import fingerprint


class Command(BaseCommand):
    """Run once after `migrate`; later runs change nothing."""

    help = "Create the portal's keys and the first record of the evidence log (idempotent)."

    def add_arguments(self, parser: Any) -> None:
        """--json prints what was made for scripts."""
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        """Keys, folders, genesis, first checkpoint."""
        made = create_keys(settings.KEY_FOLDER)
        for folder in (settings.LOG_FOLDER, settings.CHUNK_FOLDER, settings.MODEL_FOLDER):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        genesis = write_genesis()
        checkpoint = sequence()
        facts = {
            "name": settings.CONSILIUM_NAME,
            "home": str(settings.CONSILIUM_HOME),
            "answer_key_fingerprint": fingerprint(answer_key().public),
            "log_vkey": log_vkey(),
            "log_size": checkpoint.size if checkpoint else 0,
            "made": bool(made or genesis),
        }
        if options["json"]:
            self.stdout.write(json.dumps(facts))
            return
        for name, value in facts.items():
            self.stdout.write(f"{name}: {value}")
