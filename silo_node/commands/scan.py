"""`silo scan`: what hospital IT learns about the DICOM folder and labels.csv, and what to do about it."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from silo_node.commands.folder import Folder
from silo_node.commands.terminal import AsJson, config_of, err, errors_shown, out, print_json
from silo_node.config import Config
from silo_node.errors import SiloError, UsageError

if TYPE_CHECKING:
    from silo_node.imaging.index import IndexedFile, ScanReport
    from silo_node.scanning import Progress

_HELP = """Read the headers of the DICOM folder into the index, and check labels.csv. Files of patients who opted out are
not opened, nor are links that lead out of the folder.

Examples:

    silo scan /srv/silo  # what can be used, and why the rest can't

    silo scan /srv/silo --files  # the same, with the names of the files

    silo scan --data /mnt/export --pixels  # try a folder before anything is set up; decode each picture too

    silo scan /srv/silo --json  # one JSON object a file, for a script; "ok" means by its header, with --pixels decoded too
"""


_AS_WISHED: Final = {"OPTED_OUT", "WRONG_MODALITY"}
"""Nothing is to be put right in such files."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(help=_HELP)(scan)


def scan(
    folder: Folder = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Scan this folder instead; needs no silo and leaves nothing behind.")
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Also decode each picture, and name what can't be decoded.")
    ] = False,
    files: Annotated[
        bool, typer.Option("--files", help="Also name each file with a problem; a name may tell who the patient is.")
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="With --json: one object for the whole folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """See _HELP."""
    with errors_shown(as_json), _place(folder, data) as (root, index_db, config), _named(root, index_db):
        from silo_node import scanning

        if data is None:
            assert config is not None
            with _progress("Headers", root) as step:
                report = scanning.scan(config, step)
            wrong = scanning.labels_problem(config)
        else:
            with _progress("Headers", root) as step:
                report, wrong = scanning.try_folder(root, index_db, config, step)
        if pixels:
            with _progress("Pixels", root) as step:
                scanning.check_pixels(index_db, config, step)
            report = _again(report, index_db)
        if as_json and not summary:
            for file in _all(index_db):
                print_json(_facts(file, root))
        elif as_json:
            _print_summary(report, index_db, root, files, wrong)
        else:
            _show(report, index_db, root, files)
        if wrong is not None:
            yet = config is not None and wrong.code == "LABELS_MISSING" and not os.path.lexists(config.labels)
            if as_json:
                _tell_apart(wrong, summary)
            elif yet:
                err.print(f"to look at: {wrong.sentence}", markup=False, style="yellow")
            else:
                raise wrong
            raise typer.Exit(0 if yet else wrong.exit_code)


@contextmanager
def _place(folder: Path | None, data: Path | None) -> Iterator[tuple[Path, Path, Config | None]]:
    """The folder to scan, its index, and the silo, where there is one."""
    if data is None:
        if folder is not None and folder.is_dir() and not (folder / "silo.toml").exists():
            raise UsageError(
                f"{folder} is no silo, it has no silo.toml: to try it as a folder of images, `silo scan --data "
                f"{shlex.quote(str(folder))}`; to make a silo, `silo init`"
            )
        config = config_of(folder)
        yield config.data.resolve(), config.index_db, config
        return
    if not data.is_dir():
        wrong = (
            "is a file: name the folder that it lies in"
            if data.exists()
            else "there is no such folder: correct the path"
        )
        raise UsageError(f"{data}: {wrong}")
    with _ended_in_order(), tempfile.TemporaryDirectory(prefix="silo-scan-") as kept:
        # Where a silo is named too, its opt-out list holds for this folder as well. SILO_HOME may name one yet to be made.
        named = folder is not None and (folder.exists() or str(folder) != os.environ.get("SILO_HOME"))
        yield data.resolve(), Path(kept) / "index.db", config_of(folder) if named else None


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """The index that is kept for a while holds patient ids: it goes also where the terminal is closed or the machine shuts
    down."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _named(root: Path, index_db: Path) -> Iterator[None]:
    """With the path of what an error is about, which its sentence leaves out because it may leave the hospital."""
    from silo_node.imaging.errors import ScanError

    try:
        yield
    except ScanError as error:
        path = root if error.code.startswith("DATA_FOLDER") else index_db
        raise ScanError(error.code, f"{path}: {error.sentence}") from error


@contextmanager
def _progress(what: str, root: Path) -> Iterator[Progress | None]:
    """A bar on the terminal; nothing where standard error is none."""
    if not err.is_terminal or not root.is_dir():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from silo_node.imaging import index

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=index.count(root))
        yield lambda done, known: bar.update(task, completed=done + known)


def _facts(file: IndexedFile, root: Path) -> dict[str, Any]:
    from silo_node.imaging import index

    shape = [file.rows, file.columns] if file.rows and file.columns else None
    return {
        "path": index.key(file.path, root),
        "status": "ok" if file.problem is None else "refused",
        "reason": file.problem,
        "modality": file.modality,
        "transfer_syntax": file.transfer_syntax,
        "frames": file.frames,
        "shape": shape,
    }


def _print_summary(report: ScanReport, index_db: Path, root: Path, files: bool, wrong: SiloError | None) -> None:
    facts: dict[str, Any] = {
        "found": report.files + sum(report.passed_over.values()),
        "passed_over": dict(report.passed_over),
        "files": report.files,
        "usable": report.usable,
        "patients": report.patients,
        "opened": report.opened,
        "problems": dict(report.problems),
        "modalities": dict(report.modalities),
        "seconds": round(report.seconds, 3),
    }
    if files:
        facts["problem_files"] = [{"code": code, "file": file} for code, file in _with_problems(index_db, root)]
    if wrong is not None:
        facts["error"] = {"code": wrong.code, "sentence": wrong.sentence}
    print_json(facts)


def _tell_apart(wrong: SiloError, summary: bool) -> None:
    """What is wrong with labels.csv: in the summary, else on standard error, because each line of output is a file."""
    if not summary:
        err.print(f"{wrong.code} {wrong.sentence}", markup=False)


def _show(report: ScanReport, index_db: Path, root: Path, files: bool) -> None:
    from silo_node.imaging.index import PASSED_OVER, PROBLEMS

    out.print(f"{report.files} files, {report.usable} usable, {report.patients} patients, {report.seconds:.1f} s")
    for code, count in report.passed_over.items():
        out.print(f"  passed over: {count} {PASSED_OVER[code]}", markup=False)
    named = _with_problems(index_db, root) if files else []
    for code, count in sorted(report.problems.items()):
        out.print(f"  {code}: {count} ({PROBLEMS[code]})", markup=False)
        for other, file in named:
            if other == code:
                out.print(f"    {file}", markup=False)
    if report.problems:
        where = "" if named else "; `silo scan --files` names them"
        then = f" Put them right in {root}, scan again." if set(report.problems) - _AS_WISHED else ""
        out.print(f"These stay out of every round, the others are used{where}.{then}", markup=False)


def _with_problems(index_db: Path, root: Path) -> list[tuple[str, str]]:
    """(code, path from the data folder) of each file that can't be used."""
    from silo_node.imaging import index

    return [(file.problem, index.key(file.path, root)) for file in _all(index_db) if file.problem]


def _all(index_db: Path) -> list[IndexedFile]:
    from silo_node.imaging import index

    return index.files(index_db)


def _again(report: ScanReport, index_db: Path) -> ScanReport:
    """The report, with what decoding found."""
    from silo_node.imaging import index

    return index.counted_again(report, index_db)
