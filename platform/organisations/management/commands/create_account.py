"""`manage.py create_account`: the first admin, or accounts from a script. The password comes from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from allauth.mfa.totp.internal.auth import generate_totp_secret
from django.core.management.base import BaseCommand, CommandError

from organisations.models import Organisation, Role
from organisations.services import account_create, role_grant
from portal.actors import Actor
from portal.problems import Refused

CONSOLE = Actor(id="console", role="system", auth="none")


class Command(BaseCommand):
    """Prints the second factor's seed once; it is encrypted in the database."""

    help = "Create an account with a role (and, with --totp, a second factor whose seed is printed once)."

    def add_arguments(self, parser: Any) -> None:
        """Name, password file, role, hospital."""
        parser.add_argument("username")
        parser.add_argument("--password-file", type=Path, required=True)
        parser.add_argument("--role", choices=Role.values, required=True)
        parser.add_argument("--organisation", default="", help="the hospital's short name; not for admin and auditor")
        parser.add_argument("--email", default="")
        parser.add_argument("--totp", action="store_true", help="activate a second factor and print its seed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Account, then role; prints one JSON object."""
        secret = generate_totp_secret() if options["totp"] else ""
        try:
            password = options["password_file"].read_text().strip()
            organisation = Organisation.objects.get(slug=options["organisation"]) if options["organisation"] else None
            user = account_create(
                actor=CONSOLE,
                username=options["username"],
                password=password,
                email=options["email"],
                totp_secret=secret,
            )
            role_grant(actor=CONSOLE, user=user, role=options["role"], organisation=organisation)
        except Refused as refused:
            raise CommandError(refused.sentence) from refused
        except Organisation.DoesNotExist as error:
            raise CommandError(f"No hospital has the short name {options['organisation']}.") from error
        except OSError as error:
            raise CommandError(f"{options['password_file']} can't be read: {error.strerror}.") from error
        self.stdout.write(json.dumps({"user": str(user.pk), "username": user.username, "totp_seed": secret or None}))
