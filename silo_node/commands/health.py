"""For machines that watch this one: `silo healthy`, a container's health check, and `silo metrics`, for Prometheus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from silo_node.commands.folder import Folder
from silo_node.commands.terminal import AsJson, config_of, errors_shown, out, print_json
from silo_node.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(healthy)
    app.command()(metrics)


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


def metrics(
    folder: Folder = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", help="File that is replaced whole; else they are printed.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """This silo in numbers, in Prometheus' text format: what is wrong, rounds, bytes, room. Names no patient.

    Examples:

        silo metrics /srv/silo

        silo metrics /srv/silo --out /var/lib/prometheus/node-exporter/silo.prom  # every minute, for node_exporter
    """
    with errors_shown(as_json):
        from silo_node.files import replacing
        from silo_node.health import metrics as numbers

        config = config_of(folder)
        if to is not None and not to.parent.is_dir():
            raise UsageError(f"{to}: there is no folder {to.parent}: make it, or name another file")
        if as_json:
            print_json({"samples": numbers.samples(config)})
        elif to is None:
            typer.echo(numbers.text(config), nl=False)
        else:
            with replacing(to, sync=False) as file:
                os.fchmod(file.fileno(), 0o644)  # node_exporter is another user; no number is a secret
                file.write(numbers.text(config))
