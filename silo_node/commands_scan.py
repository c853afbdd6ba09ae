"""`silo scan`: what hospital IT learns about the DICOM folder and labels.csv, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from silo_node.config import Config
from silo_node.terminal import AsJson, Folder, config_of, errors_shown, out, print_json

if TYPE_CHECKING:
    from silo_node.imaging.index import ScanReport


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(scan)


def scan(
    folder: Folder = None,
    files: Annotated[
        bool, typer.Option("--files", help="Also name each file with a problem; a name may tell who the patient is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read the headers of the DICOM folder into the index, and check labels.csv. Files of patients who opted out are
    not opened."""
    with errors_shown(as_json):
        from silo_node import scanning

        config = config_of(folder)
        report = scanning.scan(config)
        wrong = scanning.labels_problem(config)
        facts: dict[str, Any] = {
            "files": report.files,
            "usable": report.usable,
            "patients": report.patients,
            "opened": report.opened,
            "problems": dict(report.problems),
            "modalities": dict(report.modalities),
            "seconds": round(report.seconds, 3),
        }
        named = _with_problems(config) if files else []
        if files:
            facts["problem_files"] = [{"code": code, "file": file} for code, file in named]
        if as_json and wrong is not None:
            print_json({**facts, "error": {"code": wrong.code, "sentence": wrong.sentence}})
            raise typer.Exit(wrong.exit_code)
        if as_json:
            print_json(facts)
            return
        _show(report, config, named)
        if wrong is not None:
            raise wrong


def _show(report: ScanReport, config: Config, named: list[tuple[str, str]]) -> None:
    from silo_node.imaging.index import PROBLEMS

    out.print(f"{report.files} files, {report.usable} usable, {report.patients} patients, {report.seconds:.1f} s")
    for code, count in sorted(report.problems.items()):
        out.print(f"  {code}: {count} ({PROBLEMS[code]})", markup=False)
        for other, file in named:
            if other == code:
                out.print(f"    {file}", markup=False)
    if report.problems:
        where = "" if named else "; `silo scan --files` names them"
        out.print(
            f"These stay out of every round, the others are used{where}. Put them right in {config.data}, scan again."
        )


def _with_problems(config: Config) -> list[tuple[str, str]]:
    """(code, path from the data folder) of each file that can't be used."""
    from silo_node.imaging import index

    root = config.data.resolve()
    return [(file.problem, index.key(file.path, root)) for file in index.files(config.index_db) if file.problem]
