"""`silo doctor`: what is wrong with this silo, and what to do about each."""

from __future__ import annotations

import typer

from silo_node.commands.folder import Folder
from silo_node.commands.terminal import AsJson, errors_shown, out, print_json
from silo_node.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(doctor)


def doctor(folder: Folder = None, as_json: AsJson = False) -> None:
    """Check everything this silo needs: settings, disk, clock, proxy, certificates, portal, broker, images, labels, consent,
    graphics card, and what the stewards signed. Says what to do about each fault. Changes nothing; also while `silo run` runs.

    Exit code 0 where nothing failed, 1 otherwise.

    Examples:

        silo doctor

        silo doctor /srv/silo --json
    """
    with errors_shown(as_json):
        from silo_node.health import doctor as examination

        if folder is None:
            raise UsageError("name the silo's folder with --folder (-C), or set SILO_HOME")
        checks = examination.examine(folder)
        values = examination.as_values(checks)
        if as_json:
            print_json(values)
        else:
            _show(checks)
        if not values["ok"]:
            raise typer.Exit(1)


def _show(checks: list) -> None:  # type: ignore[type-arg]
    marks = {
        "ok": "[green]ok     [/]",
        "warn": "[yellow]warn   [/]",
        "fail": "[bold red]FAIL   [/]",
        "skipped": "skipped",
    }
    for check in checks:
        out.print(marks[check.state], end=" ")
        out.print(f"{check.name}: {check.found}", markup=False)
        if check.do:
            out.print(f"        what to do: {check.do}", markup=False)
    failed = sum(check.state == "fail" for check in checks)
    out.print(f"{failed} of {len(checks)} checks failed." if failed else "Nothing failed.")
