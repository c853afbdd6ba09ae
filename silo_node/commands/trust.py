"""`silo trust`: who decides for this hospital. Shown, changed as a draft, signed by the people, put in force."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from silo_node.commands.folder import Commands, Folder, examples
from silo_node.commands.terminal import (
    AsJson,
    PassphraseFile,
    config_of,
    errors_shown,
    node_of,
    out,
    passphrase,
    print_json,
)
from silo_node.errors import PortalError, PortalRefused, UsageError

if TYPE_CHECKING:
    from silo_node.config import Config
    from silo_node.steward.trust_changes import Draft

trust = Commands(
    name="trust",
    no_args_is_help=True,
    help="Who decides for this hospital: keys, people, and how many of them must agree.",
    epilog=examples(
        "silo trust show",
        "silo trust new-key --person 'Ben Example'  # a second steward; then everybody signs",
        "silo trust propose --extend KEYID  # a key that gets old; or a new key, and --remove KEYID",
        "silo trust sign",
        "silo trust apply",
    ),
)
Person = Annotated[
    str | None, typer.Option("--person", help="Whose key signs, as in trust.json; else the one the passphrase opens.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(trust)


@trust.command()
def show(folder: Folder = None, as_json: AsJson = False) -> None:
    """The version in force: keys with fingerprints and how long they hold, people, and the draft of the next version.

    Examples:

        silo trust show /srv/silo

        silo trust show --json
    """
    with errors_shown(as_json):
        from silo_node.steward import documents, trust_changes

        config, now = config_of(folder), datetime.now(UTC)
        in_force = documents.load_trust(config)
        draft = trust_changes.read_draft(config)
        keys = [trust_changes.key_facts(name, key, now) for name, key in sorted(in_force.keys.items())]
        facts = {
            "version": in_force.version,
            "digest": in_force.digest,
            "needed": in_force.roles["steward"],
            "people": sorted({key.person for key in in_force.keys.values()}),
            "keys": keys,
            "draft": _draft_facts(config, draft) if draft is not None else None,
        }
        if as_json:
            print_json(facts)
            return
        people = facts["people"]
        out.print(f"Version {in_force.version}: {facts['needed']} of {len(people)} people must agree.")
        for each in keys:
            out.print(f"{each['person']}, {each['kind']}, until {each['not_after'][:10]}", markup=False, end="")
            out.print("" if each["valid"] else " (over)", style="red")
            out.print(f"  {each['fingerprint']}")
            if each["page"]:
                said = f"; {each['remark']}" if each["remark"] else ""
                out.print(f"  used on {each['page']}{said}", markup=False)
        if draft is not None:
            _print_draft(config, draft)


@trust.command("new-key")
def new_key(
    folder: Folder = None,
    person: Annotated[str, typer.Option(help="Whose key it is.")] = "",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a further steward's key in this folder, protected by that person's own passphrase, and put it into the draft.

    Examples:

        silo trust new-key --person "Ben Example"
    """
    with errors_shown(as_json):
        from silo_node.steward import trust_changes

        if not person:
            raise UsageError("name the person with --person")
        config = config_of(folder)
        draft = trust_changes.new_key(config, person=person, passphrase=passphrase(passphrase_file, again=True))
        _say(config, draft, as_json)


@trust.command()
def propose(
    folder: Folder = None,
    add: Annotated[
        Path | None, typer.Option(help="File with a key's entry as JSON, {keyid: {...}}, such as a passkey's.")
    ] = None,
    remove: Annotated[str | None, typer.Option(help="The beginning of the keyid of a key to take out.")] = None,
    needed: Annotated[int | None, typer.Option("--needed", "-k", help="How many people must agree.", min=1)] = None,
    extend: Annotated[
        str | None, typer.Option(help="The beginning of the keyid of a key that shall hold longer.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="For --extend: last day, YYYY-MM-DD; else two years from now.")
    ] = None,
    drop: Annotated[bool, typer.Option(help="Throw the draft away.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write or change the draft of the next version; signatures that it had are gone then. Nothing is in force by this.

    Examples:

        silo trust propose --needed 2

        silo trust propose --remove 1f3a5b7c

        silo trust propose --drop
    """
    with errors_shown(as_json):
        from silo_node.steward import trust_changes

        config = config_of(folder)
        if drop:
            trust_changes.draft_path(config).unlink(missing_ok=True)
            if as_json:
                print_json({"draft": None})
            else:
                out.print("There is no draft now.")
            return
        if (add, remove, needed, extend) == (None, None, None, None):
            raise UsageError("say what to change: --add, --remove, --needed or --extend")
        draft = trust_changes.propose(
            config, add=_entries(add), remove=remove, needed=needed, extend=extend, until=_end_of(until)
        )
        _say(config, draft, as_json)


@trust.command()
def sign(
    folder: Folder = None,
    person: Person = None,
    passphrase_file: PassphraseFile = None,
    yes: Annotated[bool, typer.Option(help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign the draft, after it was shown. People of the version in force and of the draft must sign.

    Examples:

        silo trust sign --person "Ben Example"
    """
    with errors_shown(as_json):
        from silo_node.steward import trust_changes

        config = config_of(folder)
        draft = trust_changes.read_draft(config)
        if draft is None:
            raise UsageError("there is no draft: `silo trust propose` or `silo trust new-key` makes one")
        if not as_json:
            _print_draft(config, draft)
        if not yes and not typer.confirm("Sign exactly this?", err=True):
            raise UsageError("nothing was signed", "ABORTED")
        draft = trust_changes.sign(config, passphrase=passphrase(passphrase_file), person=person)
        _say(config, draft, as_json)


@trust.command()
def apply(folder: Folder = None, as_json: AsJson = False) -> None:
    """Put the signed draft in force, record it in this silo's log, and show it to the portal.

    Examples:

        silo trust apply
    """
    with errors_shown(as_json):
        from silo_node.steward import documents, trust_changes
        from silo_node.steward.approvals import missing_people

        config = config_of(folder)
        enrolled = config.pin.exists()
        node = node_of(folder, enrolled=enrolled)
        try:
            now_in_force = trust_changes.apply(node)
            policy = documents.read_envelope(config.policy)
            missing = missing_people(now_in_force, policy, datetime.now(UTC)) if policy is not None else 0
            if not as_json:
                out.print(f"In force: version {now_in_force.version} ({now_in_force.digest})")
                if missing:
                    out.print(
                        f"The data-use policy has too few signatures now, so no round runs: {missing} more people sign it "
                        "with `silo policy sign`."
                    )
            if enrolled:
                try:
                    trust_changes.send(node)
                except (PortalError, PortalRefused):
                    out.print(
                        "In force here, but the portal did not take it; `silo trust send` tries again:", style="yellow"
                    )
                    raise
        finally:
            node.close()
        if as_json:
            facts = {"version": now_in_force.version, "trust": now_in_force.digest}
            print_json({**facts, "policy_missing": missing, "sent": enrolled})


@trust.command()
def send(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show the portal the versions that it does not have yet.

    Examples:

        silo trust send
    """
    with errors_shown(as_json):
        from silo_node.steward import trust_changes

        node = node_of(folder)
        try:
            trust_changes.send(node)
        finally:
            node.close()
        if as_json:
            print_json({"sent": True})
        else:
            out.print("The portal has it.")


def _entries(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'is not JSON'}") from None
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise UsageError(f"{path}: must be an object {{keyid: entry}}")
    return value


def _end_of(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.combine(date.fromisoformat(text), time(23, 59, 59), UTC)
    except ValueError:
        raise UsageError("--until must be a day, YYYY-MM-DD") from None


def _draft_facts(config: Config, draft: Draft) -> dict[str, Any]:
    from silo_node.steward import documents, trust_changes

    return {
        "version": draft.document["version"],
        "digest": draft.envelope.digest,
        "changes": trust_changes.differences(documents.load_trust(config), draft.document),
        "signed": sorted(draft.signed),
        "missing": {"in_force": draft.missing[0], "draft": draft.missing[1]},
    }


def _print_draft(config: Config, draft: Draft) -> None:
    facts = _draft_facts(config, draft)
    out.print(f"Draft of version {facts['version']}, not in force ({facts['digest']}):")
    for sentence in facts["changes"]:
        out.print(f"  {sentence}", markup=False)
    here, there = draft.missing
    if here or there:
        out.print(
            f"  Signatures: {len(draft.signed)}. Missing: {here} of the people in force, {there} of the people of the draft "
            "(one person may be both). `silo trust sign`"
        )
    else:
        out.print("  Signed by enough people: `silo trust apply`")


def _say(config: Config, draft: Draft, as_json: bool) -> None:
    if as_json:
        print_json({"draft": _draft_facts(config, draft)})
    else:
        _print_draft(config, draft)
