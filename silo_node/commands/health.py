"""`silo healthy`: one answer for a container's health check."""

from __future__ import annotations

import typer

from silo_node.commands.folder import Folder
from silo_node.commands.terminal import AsJson, config_of, errors_shown, out, print_json


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(healthy)


def healthy(folder: Folder = None, as_json: AsJson = False) -> None:
    """Whether `silo run` lives: exit code 0 if so, 1 if it is not there or stuck. Says nothing about the portal.

    Examples:

        silo healthy /var/lib/consilium-silo
    """
    with errors_shown(as_json):
        from silo_node.health import liveness as health

        age = health.check(config_of(folder))
        if as_json:
            print_json({"healthy": True, "seconds": round(age, 1)})
        else:
            out.print(f"healthy; its last turn was {age:.0f} s ago")
