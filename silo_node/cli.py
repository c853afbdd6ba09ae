"""The command `silo`: what hospital IT and a steward type.

Exit codes: 0 done; 1 failed; 2 wrong usage or setting; 3 refused by a rule; 4 portal unreachable; 5 already running.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from silo_node import __version__, commands_decide, commands_resume, commands_scan, commands_trust
from silo_node.errors import UsageError
from silo_node.files import write_bytes
from silo_node.terminal import (
    AsJson,
    Folder,
    PassphraseFile,
    config_of,
    err,
    errors_shown,
    node_of,
    out,
    passphrase,
    print_json,
)

app = typer.Typer(
    name="silo",
    help="A hospital's node in the network: the images stay here, and nothing runs without the steward's signature.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
commands_decide.add_to(app)
commands_resume.add_to(app)
commands_scan.add_to(app)
commands_trust.add_to(app)


@app.command()
def init(
    folder: Folder = None,
    name: Annotated[str, typer.Option(help="The silo's name in the network, as the portal invited it.")] = "",
    portal: Annotated[str, typer.Option(help="The portal's address, such as https://portal.example.org")] = "",
    data: Annotated[str, typer.Option(help="The folder with the DICOM files.")] = "",
    steward: Annotated[str | None, typer.Option(help="Also make a steward's key for this person.")] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a silo: its folder, settings and keys. What is there already stays."""
    with errors_shown(as_json):
        if folder is None:
            raise UsageError("name the folder to make, or set SILO_HOME")
        _write_settings(folder, name=name, portal=portal, data=data)
        config = config_of(folder)
        from silo_node.keys import Keys

        Keys.create(config)
        keys = Keys(config)
        if steward is not None and not config.trust.exists():
            from silo_node.approvals import make_steward

            make_steward(config, person=steward, passphrase=passphrase(passphrase_file, again=True))
        facts = {"silo": config.name, "folder": str(config.folder), "fingerprint": _fingerprint(keys)}
        if as_json:
            print_json(facts)
            return
        out.print(f"Silo [bold]{config.name}[/] in {config.folder}")
        out.print(f"Fingerprint of its key, to be compared with the portal's admin:\n  {facts['fingerprint']}")
        out.print("Next: `silo steward` (a steward's key), then `silo enrol` with the token from the portal's admin.")


@app.command()
def steward(
    folder: Folder = None,
    person: Annotated[str, typer.Option(help="Who decides for this hospital.")] = "",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the first steward's key, protected by a passphrase, and the hospital's trust.json."""
    with errors_shown(as_json):
        from silo_node.approvals import make_steward

        if not person:
            raise UsageError("name the person with --person")
        trust = make_steward(config_of(folder), person=person, passphrase=passphrase(passphrase_file, again=True))
        facts = {"trust": trust.digest, "version": trust.version, "keys": sorted(trust.keys)}
        if as_json:
            print_json(facts)
        else:
            out.print(
                f"Steward's key made for {person}. Without the passphrase nobody can decide in this name: keep it."
            )


@app.command()
def enrol(
    folder: Folder = None,
    token: Annotated[str, typer.Option(help="The one-time token from the portal's admin.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show this silo's keys to the portal and pin the portal's."""
    with errors_shown(as_json):
        from silo_node import approvals
        from silo_node.pin import Pin

        if not token:
            raise UsageError("give the token with --token")
        node = node_of(folder, enrolled=False)
        try:
            answer = approvals.enrol(node, token)
            pin = Pin.from_answer(answer)
            if pin.silo != node.config.name:
                raise UsageError(f"the token is for the silo {pin.silo}; this one is {node.config.name}")
            pin.save(node.config)
            facts: dict[str, Any] = {
                "silo": pin.silo,
                "organisation": pin.organisation,
                "state": answer.get("state"),
                "fingerprint": _fingerprint(node.keys),
                "portal": pin.portal_name,
                "portal_fingerprint": pin.fingerprint,
            }
        finally:
            node.close()
        if as_json:
            print_json(facts)
            return
        out.print(f"Enrolled as [bold]{pin.silo}[/] of {pin.organisation}; state: {facts['state']}.")
        out.print(f"Fingerprint of this silo, which the admin must confirm:\n  {facts['fingerprint']}")
        out.print(f"Fingerprint of the portal, which you must compare with the admin:\n  {facts['portal_fingerprint']}")


@app.command()
def run(folder: Folder = None) -> None:
    """Work: wait for the portal, check every round, train, answer. Ends with Ctrl-C or SIGTERM."""
    with errors_shown():
        from silo_node import logs, sync

        node = node_of(folder)
        logs.configure(node.config.folder, node.config.name)
        try:
            sync.run(node, say=lambda line: err.print(line, markup=False))
        finally:
            node.close()


@app.command()
def status(folder: Folder = None, as_json: AsJson = False) -> None:
    """What this silo is doing, what has left it, which policy and approvals are in force."""
    with errors_shown(as_json):
        from silo_node import status as facts

        report = facts.report(config_of(folder))
        if as_json:
            print_json(report)
            return
        out.print(f"[bold]{report['silo']}[/]: {report['state']}; last contact: {report['last_contact'] or 'never'}")
        out.print(f"Rounds: {report['rounds']['total']} {report['rounds']['outcomes'] or ''}")
        for kind, count in report["sent"].items():
            out.print(f"  sent {kind}: {count['requests']} requests, {count['bytes_up']} bytes")
        for sentence in (report["policy"] or {}).get("words", ()):
            out.print(f"  policy: {sentence}", markup=False)
        for approval in report["approvals"]:
            said = f"; {approval['remark']}" if approval.get("remark") else ""
            out.print(f"  {approval['study']}: {approval['decision']} ({approval.get('time', '')}){said}", markup=False)
        for reminder in report["reminders"]:
            out.print(f"  {reminder['sentence']}", markup=False)
        for paused in report["paused"]:
            out.print(f"  {paused['study']} waits for a steward (`silo resume`): {paused['sentence']}", markup=False)
        for problem in report["problems"]:
            out.print(f"  {problem['time']} {problem['code']}: {problem['sentence']}", markup=False)


@app.command()
def version() -> None:
    """The software's version."""
    out.print(__version__)


def _write_settings(folder: Path, *, name: str, portal: str, data: str) -> None:
    path = folder.expanduser() / "silo.toml"
    if path.exists():
        with path.open("rb") as file:
            there = tomllib.load(file)
        for key, value in (("name", name), ("portal", portal), ("data", data)):
            if value and there.get(key) != value:
                raise UsageError(f"{path} exists and says another {key}: edit it, or choose another folder")
        return
    for option, value in (("--name", name), ("--portal", portal), ("--data", data)):
        if not value:
            raise UsageError(f"{option} is needed to make a silo")
    write_bytes(
        path,
        f"# The settings of this silo; each is explained in docs and in silo_node/config.py.\n"
        f"name = {_quoted(name)}\nportal = {_quoted(portal)}\ndata = {_quoted(str(Path(data).expanduser().resolve()))}\n"
        "\n[training]\nthreads = 1\nallow_constant = false\n".encode(),
    )


def _quoted(text: str) -> str:
    if any(ord(character) < 32 for character in text):
        raise UsageError("a setting may not hold control characters")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _fingerprint(keys: Any) -> str:
    from protocol.signing import fingerprint

    return fingerprint(keys.silo.public)


def main() -> None:
    """The console command."""
    app()


if __name__ == "__main__":
    main()
