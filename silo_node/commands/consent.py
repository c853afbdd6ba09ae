"""`silo consent ...`: put consents in place, see what they amount to, explain one patient's decision, prove one afterwards.

All of it is for the hospital's own terminal. Where the data-use policy can't be read, the default shown is DENY.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from silo_node.commands.folder import Commands, FolderOption, examples
from silo_node.commands.terminal import AsJson, config_of, err, errors_shown, node_of, out, print_json
from silo_node.config import Config
from silo_node.errors import Refused, SiloError, UsageError

if TYPE_CHECKING:
    from silo_node.consent.registry import Registry
    from silo_node.consent.sources import Found


app = Commands(
    name="consent",
    help="Who has consented, and who has opted out.",
    no_args_is_help=True,
    epilog=examples(
        "silo consent import /srv/export/consents --dry-run",
        "silo consent status",
        "silo consent check 4711  # may this patient's images be used, and why",
        "silo consent prove 4711 st-abc.3.1 --out proof.json",
    ),
)


def add_to(parent: typer.Typer) -> None:
    """Register the commands."""
    parent.add_typer(app)


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="A folder or file of FHIR consents (.json, .ndjson), or an opt-out list (.csv).")
    ],
    folder: FolderOption = None,
    files: Annotated[
        bool, typer.Option("--files", help="Also name each file with a problem; a name may tell whose it is.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check; put nothing in place.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also where people who have said no would be used again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check consents or an opt-out list, and put them in place of what was imported before.

    Examples:

      silo consent import /srv/export/consents

      silo consent import opt_out.csv --dry-run
    """
    with errors_shown(as_json):
        config = config_of(folder)
        if path.suffix.lower() == ".csv":
            _import_list(config, path, dry_run, yes, as_json)
        else:
            _import_consents(config, path, files, dry_run, yes, as_json)


@app.command()
def status(folder: FolderOption = None, as_json: AsJson = False) -> None:
    """How many patients take part, and why the others do not. Counts only; they stay in the hospital.

    Examples:

      silo consent status --json
    """
    with errors_shown(as_json):
        registry, words, signed = _registry(config_of(folder))
        counts = registry.counts()
        facts: dict[str, Any] = {
            "default": "PERMIT" if registry.default else "DENY",
            "source": words,
            "read": registry.loaded_at.isoformat(timespec="seconds"),
            "consents": sum(map(len, (registry.consents or {}).values())),
            "unassigned": registry.unassigned,
            "opted_out": len(registry.opt_out) if registry.opt_out is not None else 0,
            "decisions": counts,
        }
        if as_json:
            print_json(facts)
            return
        from silo_node.consent.rules import SENTENCES

        out.print(f"Consents: {facts['consents']} from {words}, read {facts['read']}; opted out: {facts['opted_out']}.")
        why = "by the hospital's signed policy" if signed else "because no policy is in force"
        out.print(f"Without a record the answer is {facts['default']}, {why}.")
        for code, count in counts.items():
            out.print(f"  {count:>7} patients  {code}: {SENTENCES[code]}", markup=False)
        if registry.unassigned:
            out.print(
                f"{registry.unassigned} consents can't be assigned to a PatientID: check identifier_system or map in [consent]."
                + (" With opt-out, no round runs until they are." if registry.default else " They permit nobody."),
                markup=False,
            )


@app.command()
def check(
    patient: Annotated[str, typer.Argument(help="The PatientID, as the images have it.")] = "",
    folder: FolderOption = None,
    cases: Annotated[
        Path | None, typer.Option("--cases", help="Instead: try the rules on each case of this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """May this patient's images be used, and why? With --cases: what the rules say to each case of a file.

    Ends with 1 where no image of that id is known here: it may be mistyped, and the answer then is nobody's.

    Examples:

      silo consent check 4711

      silo consent check --cases consent_decisions.json --json
    """
    with errors_shown(as_json):
        if cases is not None:
            if patient:
                raise UsageError("give a patient or --cases, not both")
            _check_cases(cases, as_json)
            return
        if not patient:
            raise UsageError("name the patient, or a file with --cases")
        config = config_of(folder)
        images, unknown = _images(config, patient)
        registry, _, _ = _registry(config)
        decision = registry.decide(patient)
        record = decision.record
        dated = (
            record.when.first.isoformat(timespec="seconds") if record is not None and record.when is not None else None
        )
        if as_json:
            print_json(
                {
                    "decision": decision.word,
                    "code": decision.code,
                    "sentence": decision.sentence,
                    "record": dated,
                    "images": images,
                }
            )
            _end_where(unknown)
            return
        if unknown:
            out.print(f"{unknown} For such an id it would be:", style="bold", markup=False)
        out.print(f"[bold]{decision.word}[/] {decision.code}: ", end="")
        out.print(decision.sentence, markup=False)
        records = len((registry.consents or {}).get(patient, ()))
        out.print(f"On record: {records} consents" + (f"; the one of {dated} decides." if dated else "."), markup=False)
        if record is not None and record.fault is not None:
            out.print(f"What can't be read in it: {record.fault}.", markup=False)
        _end_where(unknown)


@app.command()
def prove(
    patient: Annotated[str, typer.Argument(help="The PatientID, as the images have it.")],
    round_id: Annotated[str, typer.Argument(metavar="ROUND", help="The round's id, such as st-abc.3.1")],
    folder: FolderOption = None,
    to: Annotated[Path | None, typer.Option("--out", help="Write the proof here instead of to the terminal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove to a stranger whether this patient was in a round's cohort; checked with `consilium-verify membership`.

    The file holds pseudonyms (of this patient and at most two others) and the cohort's size, and no id.

    Ends with 1 where the patient was not in the cohort and no image of that id is known here: it may be mistyped. The proof
    is valid all the same.

    Examples:

      silo consent prove 4711 st-abc.3.1 --out proof.json
    """
    with errors_shown(as_json):
        from silo_node.consent import prove as proofs
        from silo_node.files import write_bytes

        node = node_of(folder, enrolled=False)
        try:
            file, found = proofs.prove(node, patient, round_id)
            vkey = node.keys.log_vkey
            images, unknown = _images(node.config, patient)
        finally:
            node.close()
        if to is None:
            sys.stdout.write(file.decode() + "\n")
        else:
            write_bytes(to, file)
        # Of a member there were images then.
        unknown = "" if found.member else unknown
        if as_json and to is not None:
            print_json(
                {
                    "member": found.member,
                    "pseudonym": found.pseudonym,
                    "round": found.round,
                    "vkey": vkey,
                    "images": images,
                }
            )
            _end_where(unknown)
            return
        word = "was" if found.member else "was not"
        err.print(f"This patient {word} in the cohort of {found.round}. Pseudonym: {found.pseudonym}", markup=False)
        if unknown:
            err.print(f"{unknown} Of a mistyped id the same would be proved.", style="bold", markup=False)
        err.print(f"To check: consilium-verify membership {to or 'FILE'} --vkey '{vkey}'", markup=False)
        _end_where(unknown)


def _images(config: Config, patient: str) -> tuple[int | None, str]:
    """How many files of this patient were found, None where nobody can tell; and what to say where there is none, else ""."""
    from silo_node.imaging import index
    from silo_node.imaging.errors import ScanError

    try:
        images = index.files_of(config.index_db, patient)
    except ScanError as error:
        return None, f"No image of that id is known here. {error.sentence}"
    return images, "" if images else "No image of that id is known here: check how it is written."


def _end_where(unknown: str) -> None:
    if unknown:
        raise typer.Exit(1)


def _registry(config: Config) -> tuple[Registry, str, bool]:
    """What is in force, in words where it comes from, and whether a policy is in force."""
    from silo_node.consent import places, registry
    from silo_node.steward import documents

    now = datetime.now(UTC)
    try:
        _, policy = documents.load_policy(config, documents.load_trust(config), now=now)
    except SiloError as error:
        err.print(f"No data-use policy is in force ({error.code}), so the default is DENY.", markup=False)
        policy = None
    words = {"": "no source", "folder": "a folder", "file": "a file", "server": "a FHIR server"}[
        config.settings.consent.source
    ]
    if not config.settings.consent.source and config.consent_imported.exists():
        then = datetime.fromtimestamp(config.consent_imported.stat().st_mtime, UTC)
        words = f"what was imported on {then.date().isoformat()}"
    try:
        return registry.load(config, now, registry.default_of(policy)), words, policy is not None
    except SiloError as error:
        raise places.named(config, error) from None


def _check_cases(path: Path, as_json: bool) -> None:
    from silo_node.consent.cases import answers

    found = answers(path)
    for answer in found:
        if as_json:
            print_json({"name": answer.name, "decision": answer.decision.word})
        else:
            out.print(f"{answer.decision.word:6}  {answer.name}: {answer.decision.sentence}", markup=False)
    wrong = [answer for answer in found if answer.differs]
    for answer in wrong:
        err.print(
            f"{answer.name}: the file expects {answer.expect}, the rules say {answer.decision.word}", markup=False
        )
    if wrong:
        raise typer.Exit(1)


def _import_list(config: Config, path: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    from silo_node.consent import opt_out
    from silo_node.files import write_bytes
    from silo_node.imaging.errors import TableError

    found, raw = opt_out.read(path)
    place = config.opt_out or config.folder / "opt_out.csv"
    try:
        gone = len(opt_out.load(place).patients - found.patients)
    except TableError:  # none, or one that can't be read: the new list is what mends it
        gone = 0
    if gone and not yes and not dry_run:
        raise Refused(
            "OPT_OUT_SHORTER",
            f"{gone} patients of the list in force are missing in {path.name}, and their images would be used again. The new "
            "list takes the place of the old one: give a whole list, or, where all of them have withdrawn their no, --yes",
        )
    if not dry_run:
        write_bytes(place, raw)
    if as_json:
        print_json({"opted_out": len(found), "gone": gone, "imported": not dry_run, "problems": []})
        return
    if gone:
        out.print(f"{gone} patients of the list in force are missing in it.")
    out.print(f"{len(found)} patients have opted out. " + _done(dry_run), markup=False)


def _import_consents(config: Config, path: Path, files: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    from silo_node.consent import fewer, places, registry, sources
    from silo_node.files import write_bytes

    if config.settings.consent.source and not dry_run:
        raise UsageError(
            "silo.toml names a source of consents in [consent]: put them there, or remove its `source` and import; "
            "`--dry-run` only checks"
        )
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    found = sources.read(path)
    try:
        by_patient, unassigned = registry.assign(found, registry.patients_of(config, found))
    except SiloError as error:
        raise places.named(config, error) from None
    takes = not found.problems and bool(found.consents)
    gone = fewer.lost(config, found, datetime.now(UTC)) if takes else fewer.Lost(0, 0)
    if gone.denials and not yes and not dry_run:
        raise Refused(
            "CONSENT_FEWER",
            f"{gone.denials} patients whom the consents in place refuse would not be refused by the new ones; {gone.patients} of "
            "whom there are consents are missing in them. The new ones take the place of all that was imported before: give a "
            "whole export, or, where each of them has withdrawn their no, --yes. Nothing was imported.",
        )
    facts: dict[str, Any] = {
        "files": found.files,
        "passed_over": found.passed_over,
        "consents": len(found.distinct()),
        "patients": len(by_patient),
        "unassigned": unassigned,
        "problems": [str(problem) for problem in found.problems],
        "doubtful": [str(problem) for problem in found.doubtful],
        "gone": gone.patients,
        "denials_gone": gone.denials,
        "imported": not dry_run and takes,
    }
    if files:
        facts["problem_files"] = sorted({str(each.path) for each in (*found.problems, *found.doubtful) if each.path})
    if facts["imported"]:
        write_bytes(config.consent_imported, found.packed())
    if as_json:
        print_json(facts)
    else:
        _show(found, facts, dry_run)
    if found.problems or not found.consents:
        raise typer.Exit(2)


def _show(found: Found, facts: dict[str, Any], dry_run: bool) -> None:
    out.print(f"{facts['files']} files, {facts['consents']} consents of {facts['patients']} patients.", markup=False)
    if facts["passed_over"]:
        out.print(f"{facts['passed_over']} files passed over: only .json and .ndjson are read.")
    if facts["unassigned"]:
        out.print(
            f"{facts['unassigned']} of them can't be assigned: set identifier_system or map in [consent].", markup=False
        )
    if facts["gone"]:
        out.print(f"{facts['gone']} patients of the consents in place are missing in them.")
    if facts["denials_gone"]:
        out.print(
            f"{facts['denials_gone']} patients whom the consents in place refuse are not refused by the new ones."
        )
    for problem in (*facts["problems"], *facts["doubtful"]):
        out.print(f"  {problem}", markup=False)
    for name in facts.get("problem_files", ()):
        out.print(f"    {name}", markup=False)
    if found.problems:
        err.print(
            "Nothing was imported: correct these first, because each of them may be somebody's refusal.", markup=False
        )
    elif not found.consents:
        err.print("There is no Consent in it; nothing was imported.", markup=False)
    else:
        out.print(_done(dry_run), markup=False)


def _done(dry_run: bool) -> str:
    return "Only checked; nothing was put in place." if dry_run else "In place; it holds from the next round on."
