"""`silo fetch` and `silo receive`: images from the hospital's PACS."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from silo_node.commands.folder import Folder
from silo_node.commands.terminal import AsJson, EachAsJson, config_of, err, errors_shown, out, print_json


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(fetch)
    app.command()(receive)


def fetch(
    folder: Folder = None,
    again: Annotated[bool, typer.Option(help="Also ask again for instances that were refused for good.")] = False,
    as_json: AsJson = False,
) -> None:
    """Get the images that the query in silo.toml finds in the PACS (DICOMweb) and that are not here yet.

    Patients who opted out, or whose consents permit no use now, are not fetched. Stopped at any moment, the next run
    goes on; `silo run` does the same by itself every so many minutes. Nothing is ever written to the PACS.

    Examples:

        silo fetch /srv/silo

        silo fetch /srv/silo --json

    In silo.toml:

        \\[dicomweb]
        url = "https://pacs.hospital.example/dicom-web"
        user = "silo"
        password_file = "pacs.password"
        query = { Modality = ["CR", "DX"], StudyDate = "20240101-" }
    """
    with errors_shown(as_json):
        from dataclasses import asdict

        from silo_node.pacs import fetch as fetching

        def say(done: int, of: int) -> None:
            if err.is_terminal and (done % 20 == 0 or done == of):
                err.print(f"{done} of {of}", end="\r")

        report, error = fetching.fetch(config_of(folder), again=again, say=say)
        if as_json:
            facts: dict[str, Any] = asdict(report)
            if error is not None:
                facts["error"] = {"code": error.code, "sentence": report.sentence}
            print_json(facts)
        else:
            _show(report)
        if error is not None:
            if not as_json:
                err.print(f"[bold red]{error.code}[/] ", end="")
                err.print(report.sentence, markup=False)
            raise typer.Exit(error.exit_code)


def _show(report: Any) -> None:
    from silo_node.imaging.index import PROBLEMS
    from silo_node.pacs.errors import REFUSALS

    out.print(f"{report.studies} studies found, {report.got} images fetched, {report.missing} still missing")
    for code, count in sorted(report.skipped.items()):
        out.print(
            f"  {code}: {count} studies left out ({REFUSALS.get(code) or PROBLEMS.get(code, code)})", markup=False
        )
    for code, count in sorted(report.refused.items()):
        out.print(f"  {code}: {count} not taken ({REFUSALS.get(code) or PROBLEMS.get(code, code)})", markup=False)
    if report.got:
        out.print("Next: `silo scan` (`silo run` does it by itself).")


def receive(folder: Folder = None, as_json: EachAsJson = False) -> None:
    """Take images that the PACS sends (C-STORE), until Ctrl-C. `silo run` does the same by itself.

    Only the peers of silo.toml may send, and only images. Nothing is kept of patients who opted out, or whose consents
    permit no use now. C-ECHO is answered, for a test from the PACS.

    Examples:

        silo receive /srv/silo

        silo receive /srv/silo --json  # an object when it listens, after each association, when it stops

    In silo.toml:

        \\[receiver]
        port = 11112
        host = "10.1.2.3"
        ae_title = "SILO"
        peers = [{ ae_title = "PACS", host = "pacs.hospital.example" }]
    """
    with errors_shown(as_json):
        config = config_of(folder)
        from silo_node.pacs import receiver
        from silo_node.service import logs

        logs.configure(config.folder, config.name, config.settings.limits.logs_mb, printed=as_json)
        receiver.serve(config)
