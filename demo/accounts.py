"""Makes the portal ready and its accounts, in one process: `python -m demo.accounts` with a JSON plan on standard input.

    {"prepare": true, "accounts": [{"username", "password_file", "role", "organisation", "totp"}]}

Prints what `manage.py create_account` prints, one JSON object a line. It exists only to save starting Django for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import django
from django.core.management import call_command


def main() -> int:
    plan = json.load(sys.stdin)
    django.setup()
    if plan["prepare"]:
        call_command("migrate", verbosity=0)
        call_command("init_portal", stdout=sys.stderr)
    for account in plan["accounts"]:
        options = {"organisation": account["organisation"]} if account.get("organisation") else {}
        call_command(
            "create_account",
            account["username"],
            password_file=Path(account["password_file"]),
            role=account["role"],
            totp=account["totp"],
            **options,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
