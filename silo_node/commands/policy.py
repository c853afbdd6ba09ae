"""`silo policy`: the hospital's data-use policy, edited, previewed in words, signed."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from silo_node.commands.folder import Commands, Folder, examples
from silo_node.commands.terminal import AsJson, PassphraseFile, errors_shown, node_of, out, passphrase, print_json
from silo_node.errors import UsageError

if TYPE_CHECKING:
    from protocol.policy import PolicyDocument
    from protocol.signing import Envelope
    from silo_node.node import Node


class _WithDefault(TyperGroup):
    """`silo policy FOLDER --file F` is `silo policy put FOLDER --file F`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else "--help"
        # A bare word that is no folder is meant as a command, and is told as one that is not there.
        folder = first.startswith("-") or "/" in first or Path(first).exists()
        if first not in (*self.commands, "--help", "-h") and folder:
            args = ["put", *args]
        return super().parse_args(ctx, args)


policy = Commands(
    name="policy",
    cls=_WithDefault,
    no_args_is_help=True,
    help="The hospital's data-use policy: what its images may be used for, and within which limits.",
    epilog=examples(
        "silo policy preview",
        "silo policy edit --set permission=DUO:0000006 --set limits.min_cohort=50",
        "silo policy --file policy.json --send",
        "silo policy sign  # a second steward",
    ),
)
Person = Annotated[
    str | None, typer.Option("--person", help="Whose key signs, as in trust.json; else the one the passphrase opens.")
]
Send = Annotated[bool, typer.Option("--send", help="Also show it to the portal.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="The policy as JSON, whole but for silo, organisation, version and issued, which are filled in; docs/hospital-it.md "
        "has one.",
    ),
]


@policy.command(hidden=True)
def put(
    folder: Folder = None,
    file: PolicyFile = None,
    passphrase_file: PassphraseFile = None,
    person: Person = None,
    send: Send = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show the policy in a file in words, sign it (at a terminal it asks first) and put it in force here; with --send alone
    show the one in force to the portal.

    Examples:

        silo policy /srv/silo --file policy.json --send
    """
    with errors_shown(as_json):
        from silo_node.steward import approvals, documents, policies

        node = node_of(folder, enrolled=send)
        try:
            if file is None:
                envelope = documents.read_envelope(node.config.policy)
                if envelope is None:
                    raise UsageError("there is no policy yet: give one with --file, or `silo policy edit`")
                if not send:
                    raise UsageError("give a policy with --file, or --send to show the one in force to the portal")
            else:
                content = approvals.read_policy_file(file)
                document = policies.checked(node, content)
                if not as_json:
                    _words(document)
                if not (yes or as_json) and os.isatty(0) and not typer.confirm("Sign this policy?", err=True):
                    raise UsageError("nothing was signed", "ABORTED")
                envelope, _ = approvals.sign_policy(
                    node, content, passphrase=passphrase(passphrase_file), person=person
                )
            _finish(node, envelope, send, as_json)
        finally:
            node.close()


@policy.command()
def edit(
    folder: Folder = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE instead of the editor; may be given several times.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    person: Person = None,
    send: Send = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Change the policy in the editor ($EDITOR) or with --set, see what that means, then sign it.

    Examples:

        silo policy edit

        silo policy edit --set permission=DUO:0000006 --set limits.min_cohort=50 --send
    """
    with errors_shown(as_json):
        from silo_node.steward import approvals, policies

        node = node_of(folder, enrolled=send)
        try:
            config = node.config
            value = policies.changed(policies.content(config), settings) if settings else policies.edited(config)
            document = policies.checked(node, value)
            if not as_json:
                _show(policies.preview(config, document))
            if not yes and not typer.confirm("Sign this policy?", err=True):
                kept = "" if settings else f"; {policies.edit_path(config)} keeps the text"
                raise UsageError(f"nothing was signed{kept}", "ABORTED")
            envelope, _ = approvals.sign_policy(node, value, passphrase=passphrase(passphrase_file), person=person)
            if not settings:
                policies.edit_path(config).unlink(missing_ok=True)
            _finish(node, envelope, send, as_json)
        finally:
            node.close()


@policy.command()
def preview(
    folder: Folder = None,
    file: PolicyFile = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE on top of the policy in force.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say in words what a policy means and what it answers to each study shown here; nothing is signed.

    Examples:

        silo policy preview

        silo policy preview --file new.json

        silo policy preview --set share_metrics=true
    """
    with errors_shown(as_json):
        from silo_node.steward import approvals, policies

        node = node_of(folder, enrolled=False)
        try:
            value = approvals.read_policy_file(file) if file is not None else policies.content(node.config)
            document = policies.checked(node, policies.changed(value, settings or ()))
            found = policies.preview(node.config, document)
        finally:
            node.close()
        if as_json:
            print_json(found)
        else:
            _show(found)


@policy.command()
def sign(
    folder: Folder = None,
    passphrase_file: PassphraseFile = None,
    person: Person = None,
    send: Send = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Add a signature: to a policy that waits for more people, or to the one in force where more people must agree by now.

    Examples:

        silo policy sign --person "Ben Example" --send
    """
    with errors_shown(as_json):
        from silo_node.steward import approvals, policies

        node = node_of(folder, enrolled=send)
        try:
            document = approvals.policy_to_sign(node.config)[1]
            if not as_json:
                _show(policies.preview(node.config, document))
            if not yes and not typer.confirm("Sign this policy?", err=True):
                raise UsageError("nothing was signed", "ABORTED")
            envelope, _ = approvals.sign_policy_again(node, passphrase=passphrase(passphrase_file), person=person)
            _finish(node, envelope, send, as_json)
        finally:
            node.close()


def _finish(node: Node, envelope: Envelope, send: bool, as_json: bool) -> None:
    """Show it to the portal where it is in force and asked for, and say how it stands."""
    from silo_node.steward import approvals, documents

    missing = approvals.missing_people(documents.load_trust(node.config), envelope, datetime.now(UTC))
    sent = send and not missing
    if sent:
        approvals.send_policy(node, envelope)
    if as_json:
        print_json({"policy": envelope.digest, "sent": sent, "missing": missing})
    elif missing:
        out.print(
            f"Signed ({envelope.digest}), not in force: {missing} more of this hospital's people must `silo policy sign`."
        )
    else:
        out.print(f"In force here: {envelope.digest}" + ("; the portal has it." if sent else ""))


def _words(document: PolicyDocument) -> None:
    from protocol.policy import describe_policy

    for sentence in describe_policy(document):
        out.print(f"  {sentence}", markup=False)


def _show(found: dict[str, Any]) -> None:
    for sentence in found["words"]:
        out.print(f"  {'+ ' if sentence in found['new'] else '  '}{sentence}", markup=False)
    for sentence in found["gone"]:
        out.print(f"  - {sentence}", markup=False)
    if found["over"]:
        out.print("  Its last day is over: no round would run.", style="red")
    if not found["studies"]:
        out.print("No study was shown at this silo yet (`silo approve --list`).")
    for each in found["studies"]:
        before = f" (now: {each['before']})" if each["before"] not in (None, each["decision"]) else ""
        out.print(f"{each['study']}: {each['decision']}{before}  {each['title']}", markup=False)
        for sentence in each["reasons"]:
            out.print(f"    {sentence}", markup=False)
