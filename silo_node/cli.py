"""The command `silo`: what hospital IT and a steward type.

Exit codes: 0 done; 1 failed; 2 wrong usage or setting; 3 refused by a rule; 4 portal or PACS unreachable; 5 already running.
"""

from __future__ import annotations

import os
import socket
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError

from silo_node import __version__, proxy
from silo_node.commands import consent, decide, doctor, evidence, fetch, health, key, page, resume, scan, trust
from silo_node.commands.folder import Commands, Folder, examples
from silo_node.commands.program import Program
from silo_node.commands.terminal import (
    AsJson,
    EachAsJson,
    PassphraseFile,
    config_of,
    err,
    errors_shown,
    node_of,
    out,
    passphrase,
    print_json,
)
from silo_node.config import Config
from silo_node.errors import Refused, UsageError
from silo_node.files import write_bytes

app = Commands(
    name="silo",
    cls=Program,
    help="A hospital's node in the network: the images stay here, and nothing runs without the steward's signature.",
    epilog=examples(
        "silo init /srv/silo  # then: export SILO_HOME=/srv/silo",
        "silo scan --data /mnt/export --json  # try a folder of images before anything is set up",
        "silo doctor",
    )
    + "\n\nExit codes: 0 done; 1 failed, or not known here; 2 wrong usage or setting; 3 refused by a rule; 4 portal or PACS "
    "unreachable; 5 already running.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (decide, resume, scan, evidence, key, health, consent, trust, doctor, page, fetch):
    group.add_to(app)


@app.callback()
def program(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="The software's version.")] = False,
) -> None:
    """A hospital's node in the network: the images stay here, and nothing runs without the steward's signature."""
    if show_version:
        out.print(__version__)
        raise typer.Exit


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
    """Make a silo: its folder, settings and keys. What is there already stays. At a terminal it asks for what is missing.

    Examples:

        silo init /srv/silo

        silo init /srv/silo --name site-1 --portal https://portal.example.org --data /srv/images
    """
    with errors_shown(as_json):
        if folder is None:
            raise UsageError("name the folder to make, or set SILO_HOME")
        if folder.expanduser().exists() and not folder.expanduser().is_dir():
            raise UsageError(f"{folder} is there already and is no folder: name another one")
        _write_settings(folder, name=name, portal=portal, data=data, ask=not as_json and os.isatty(0))
        config = config_of(folder)
        from silo_node.keys import Keys

        Keys.create(config)
        keys = Keys(config)
        if steward is not None and not config.trust.exists():
            from silo_node.steward.approvals import make_steward

            make_steward(config, person=steward, passphrase=passphrase(passphrase_file, again=True))
        warnings = _first_look(config)
        facts = {
            "silo": config.name,
            "folder": str(config.folder),
            "fingerprint": _fingerprint(keys),
            "warnings": warnings,
        }
        if as_json:
            print_json(facts)
            return
        out.print(f"Silo [bold]{config.name}[/] in {config.folder}:")
        out.print("  silo.toml  its settings, each explained there")
        out.print("  keys/      its keys; back them up where only you can read them")
        for warning in warnings:
            out.print(f"  to look at: {warning}", markup=False, style="yellow")
        out.print(f"Fingerprint of its key, to be compared with the portal's admin:\n  {facts['fingerprint']}")
        step = "`silo enrol`" if config.trust.exists() else "`silo steward` (a steward's key), then `silo enrol`"
        out.print(f"Next: {step} with the token from the portal's admin.")


@app.command()
def steward(
    folder: Folder = None,
    person: Annotated[str, typer.Option(help="Who decides for this hospital.")] = "",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the first steward's key, protected by a passphrase, and the hospital's trust.json.

    Examples:

        silo steward --person "Dr. A. Example"
    """
    with errors_shown(as_json):
        from silo_node.steward.approvals import make_steward

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
    expected: Annotated[
        str,
        typer.Option("--fingerprint", help="The portal's fingerprint as its admin told you: another one is refused."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show this silo's keys to the portal and pin the portal's. Compare both fingerprints with the admin, over the phone.

    Examples:

        silo enrol --token 3fA9-example

        silo enrol /srv/silo --token 3fA9-example --fingerprint "1a2b 3c4d"
    """
    with errors_shown(as_json):
        from silo_node.pin import Pin
        from silo_node.steward import approvals

        if not token:
            raise UsageError("give the token with --token")
        node = node_of(folder, enrolled=False)
        try:
            answer = approvals.enrol(node, token)
            pin = Pin.from_answer(answer)
            if pin.silo != node.config.name:
                raise UsageError(f"the token is for the silo {pin.silo}; this one is {node.config.name}")
            if expected and _plain(expected) != _plain(pin.fingerprint):
                raise Refused(
                    "OTHER_PORTAL",
                    f"The portal that answered has the fingerprint {pin.fingerprint}, not the one you gave. Nothing was "
                    "pinned: somebody may stand in between. Ask the admin by phone.",
                )
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
        out.print("Read both to each other over the phone. If one differs, delete portal.json and do not go on.")


@app.command()
def run(folder: Folder = None, as_json: EachAsJson = False) -> None:
    """Work: wait for the portal, check every round, train, answer. Ends with Ctrl-C or SIGTERM.

    Examples:

        silo run /srv/silo

        silo run /srv/silo --json  # what this process writes to silo.log, line by line
    """
    with errors_shown(as_json):
        from silo_node import sync
        from silo_node.service import logs

        node = node_of(folder)
        limits = node.config.settings.limits
        logs.configure(node.config.folder, node.config.name, limits.logs_mb, printed=as_json)
        try:
            again = sync.run(node, say=(lambda line: None) if as_json else lambda line: err.print(line, markup=False))
        finally:
            node.close()
        if again:
            logs.printed()
            # The same process, from the beginning: nothing in memory holds the former key.
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@app.command()
def status(folder: Folder = None, as_json: AsJson = False) -> None:
    """What this silo is doing, what has left it, which policy and approvals are in force.

    Examples:

        silo status

        silo status /srv/silo --json
    """
    with errors_shown(as_json):
        from silo_node.health import status as facts
        from silo_node.pacs.state import kept_out

        report = facts.report(config_of(folder))
        if as_json:
            print_json(report)
            return
        out.print(f"[bold]{report['silo']}[/]: {report['state']}; last contact: {report['last_contact'] or 'never'}")
        if report["key"]:
            said = " ([bold yellow]old[/]: `silo key rotate`)" if report["key"]["old"] else ""
            out.print(f"Key: in force since {report['key']['since'][:10]}, {report['key']['days']} days{said}")
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
        for code, meaning, studies, images in kept_out(report["pacs"]):
            counted = f"{studies} studies not fetched, {images} images that were sent not kept"
            out.print(f"  PACS: {code}: {counted} ({meaning})", markup=False)
        for study in report["studies"]:
            if study["kind"] == "study":
                said = f"asks for this hospital's data ({study['title'] or 'no title'})"
                out.print(f"  {study['study']} {said}: `silo approve {study['study']}`", markup=False)
        for problem in report["problems"]:
            out.print(f"  {problem['time']} {problem['code']}: {problem['sentence']}", markup=False)
            out.print(f"    what to do: {problem.get('do') or '`silo doctor` says more'}", markup=False)
        if not report["problems"]:
            out.print("Nothing is wrong that this silo knows of.")
        if not report["running"]:
            out.print(
                "It does not run now, so it takes part in no round: `systemctl start consilium-silo`, or `silo run`."
            )


@app.command()
def version(as_json: AsJson = False) -> None:
    """The software's version.

    Examples:

        silo version
    """
    if as_json:
        print_json({"version": __version__})
    else:
        out.print(__version__)


_QUESTIONS = (
    ("name", "The silo's name in the network, as the portal's admin gave it"),
    ("portal", "The portal's address (https://...)"),
    ("data", "The folder with the DICOM files"),
)


def _write_settings(folder: Path, *, name: str, portal: str, data: str, ask: bool) -> None:
    path = folder.expanduser() / "silo.toml"
    given = {"name": name, "portal": portal, "data": data}
    if path.exists():
        try:
            with path.open("rb") as file:
                there = tomllib.load(file)
        except ValueError as error:  # not TOML, or not UTF-8
            raise UsageError(
                f"{path} exists and can't be read ({error}): correct it, or remove it and run this again"
            ) from None
        for key, value in given.items():
            if value and there.get(key) != value:
                raise UsageError(f"{path} exists and says another {key}: edit it, or choose another folder")
        return
    for key, question in _QUESTIONS:
        if not given[key] and ask:
            given[key] = typer.prompt(question, err=True)
        if not given[key]:
            raise UsageError(f"--{key} is needed to make a silo")
    given["data"] = str(Path(given["data"]).expanduser().resolve())
    from silo_node.commands.settings_file import first_settings
    from silo_node.config import Settings, words

    try:
        Settings.model_validate(given)  # before anything is written
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"--{first['loc'][0] if first['loc'] else 'portal'}: {words(first).removeprefix('portal: ')}"
        ) from None
    write_bytes(path, first_settings(**given))


def _first_look(config: Config) -> list[str]:
    """What would stand in the way later, said at once."""
    found = []
    if not config.data.is_dir():
        found.append(f"{config.data} is not there yet: the images belong in it")
    elif not config.labels.is_file():
        found.append(f"{config.labels} is not there yet: it says which image shows what")
    parts = urlsplit(config.portal)
    try:
        direct = proxy.of(config) is None
    except UsageError as error:
        return [*found, f"{error.sentence} {proxy.WRITE}"]
    if direct:
        try:
            socket.create_connection(
                (parts.hostname or "", parts.port or {"https": 443, "http": 80}[parts.scheme]), timeout=5
            ).close()
        except OSError as error:
            found.append(
                f"{config.portal} does not answer ({error.strerror or error}): is a proxy needed (`proxy` in silo.toml)?"
            )
    return found


def _plain(fingerprint: str) -> str:
    return "".join(fingerprint.split()).lower()


def _fingerprint(keys: Any) -> str:
    from protocol.signing import fingerprint

    return fingerprint(keys.silo.public)


def main() -> None:
    """The console command."""
    app()


if __name__ == "__main__":
    main()
