"""`silo evidence list | show | proof | verify` and `silo export`: what this node did, and what left the hospital."""

from __future__ import annotations

import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from silo_node.commands.folder import Commands, Folder, examples
from silo_node.commands.terminal import AsJson, errors_shown, node_of, out, print_json
from silo_node.errors import UsageError

evidence = Commands(
    name="evidence",
    no_args_is_help=True,
    help="This hospital's own audit log: read it, prove an entry, check it whole.",
    epilog=examples(
        "silo evidence list --type update.exported",
        "silo evidence proof 17 --out entry.proof",
        "silo evidence verify",
    ),
)

Number = Annotated[
    str, typer.Argument(help="The entry's number, as `silo evidence list` shows it.", show_default=False)
]
Since = Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(evidence)
    app.command("export")(export_all)


@evidence.command("list")
def list_entries(
    folder: Folder = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only this type, such as update.exported.")] = None,
    round_id: Annotated[str | None, typer.Option("--round", help="Only this round.")] = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """The entries of this silo's log, oldest first.

    Examples:

        silo evidence list --type update.exported --since 2026-11-01
    """
    with errors_shown(as_json):
        first = _day(since)
        node = node_of(folder, enrolled=False)
        try:
            node.evidence.sequence()
            found = []
            for number, record in enumerate(node.evidence.records()):
                if kind is not None and record["type"] != kind:
                    continue
                if round_id is not None and record["subject"]["id"] != round_id:
                    continue
                if first is not None and record["time"] < first:
                    continue
                found.append({"number": number, **record})
        finally:
            node.close()
        if as_json:
            print_json({"entries": found})
            return
        for each in found:
            reasons = " ".join(each["reasons"])
            out.print(
                f"{each['number']:>6} {each['time']} {each['type']} {each['outcome']} {each['subject']['id']} {reasons}",
                markup=False,
            )
        if not found:
            out.print("No entry of this kind.")


@evidence.command()
def show(folder: Folder = None, number: Number = "", as_json: AsJson = False) -> None:
    """One entry, exactly as it stands in the log.

    Examples:

        silo evidence show 12
    """
    with errors_shown(as_json):
        from silo_node.evidence.evidence_export import proof_of

        node = node_of(folder, enrolled=False)
        try:
            record, _ = proof_of(node, _number(number))
        finally:
            node.close()
        if as_json:
            print_json(json.loads(record))
        else:
            out.print(json.dumps(json.loads(record), indent=2, ensure_ascii=False), markup=False)


@evidence.command()
def proof(
    folder: Folder = None,
    number: Number = "",
    to: Annotated[Path, typer.Option("--out", help="Folder for the three files.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write one entry with its proof, to be checked by anybody with `consilium-verify proof`.

    Examples:

        silo evidence proof 12 --out proof-12
    """
    with errors_shown(as_json):
        from silo_node.evidence.evidence_export import save_proof

        node = node_of(folder, enrolled=False)
        try:
            record, tlog_proof, policy = save_proof(node, _number(number), to)
        finally:
            node.close()
        if as_json:
            print_json({"record": str(record), "proof": str(tlog_proof), "policy": str(policy)})
        else:
            out.print("Written. To be checked with:")
            out.print(f"  consilium-verify proof {tlog_proof} --record {record} --policy {policy}", markup=False)


@evidence.command()
def verify(folder: Folder = None, as_json: AsJson = False) -> None:
    """Check the whole log of this silo, as an auditor would.

    Examples:

        silo evidence verify
    """
    with errors_shown(as_json):
        from silo_node.evidence import evidence_export

        node = node_of(folder, enrolled=False)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                report = evidence_export.verify(node, Path(scratch) / "log")
        finally:
            node.close()
        facts: dict[str, Any] = {
            "entries": report.checkpoint.size,
            "types": {row.type: row.count for row in report.types},
            "key": node.keys.log_vkey,
        }
        if as_json:
            print_json(facts)
            return
        out.print(f"{facts['entries']} entries; nothing was changed or removed since they were signed.")
        for name, count in facts["types"].items():
            out.print(f"  {count:>6} {name}", markup=False)


def export_all(
    folder: Folder = None,
    to: Annotated[Path | None, typer.Option("--out", help="A folder that is not there yet.")] = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Everything that left this hospital and this node's whole log, for an auditor. Names no patient.

    Examples:

        silo export --out export-2026 --since 2026-01-01
    """
    with errors_shown(as_json):
        from silo_node.evidence.evidence_export import export

        if to is None:
            raise UsageError("name the folder to write with --out")
        first = _day(since)
        node = node_of(folder, enrolled=False)
        try:
            facts = export(node, to, since=first)
        finally:
            node.close()
        if as_json:
            print_json({**facts, "out": str(to)})
        else:
            out.print(
                f"{facts['messages']} messages, {facts['entries']} log entries in {to}; check: consilium-verify {to}/log"
            )


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UsageError("name the entry by its number: see `silo evidence list`")
    return int(text)


def _day(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError("--since must be a day, YYYY-MM-DD") from None
