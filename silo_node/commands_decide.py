"""`silo policy` and `silo approve`: the steward's commands. They show in words what is signed before they ask for the key."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from protocol.plain_text import visible
from silo_node.errors import PortalError, PortalRefused, Refused, UsageError
from silo_node.terminal import AsJson, Folder, PassphraseFile, errors_shown, folder_and, node_of, out, passphrase, print_json

if TYPE_CHECKING:
    from silo_node.approvals import Proposal


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(policy)
    app.command()(approve)


def policy(
    folder: Folder = None,
    file: Annotated[Path | None, typer.Option(help="The policy as JSON; what is missing is filled in.")] = None,
    passphrase_file: PassphraseFile = None,
    send: Annotated[bool, typer.Option(help="Also show it to the portal.")] = False,
    yes: Annotated[bool, typer.Option(help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign the hospital's data-use policy and put it in force here."""
    with errors_shown(as_json):
        from protocol.policy import describe_policy
        from silo_node import approvals, documents

        node = node_of(folder, enrolled=send)
        try:
            if file is None:
                envelope = documents.read_envelope(node.config.policy)
                if envelope is None:
                    raise UsageError("there is no policy yet: give one with --file")
                if not send:
                    raise UsageError("give a policy with --file, or --send to show the one in force to the portal")
            else:
                envelope, document = approvals.sign_policy(
                    node, approvals.read_policy_file(file), passphrase=passphrase(passphrase_file)
                )
                if not as_json:
                    for sentence in describe_policy(document):
                        out.print(f"  {sentence}", markup=False)
            if send:
                approvals.send_policy(node, envelope)
        finally:
            node.close()
        facts = {"policy": envelope.digest, "sent": send}
        if as_json:
            print_json(facts)
        else:
            out.print(f"In force here: {envelope.digest}" + ("; the portal has it." if send else ""))


def approve(
    folder: Folder = None,
    study: Annotated[str, typer.Argument(help="The study's id, st-...")] = "",
    passphrase_file: PassphraseFile = None,
    reject: Annotated[bool, typer.Option(help="Say no to the study.")] = False,
    revoke: Annotated[bool, typer.Option(help="Take an approval back; holds from the next round on.")] = False,
    reason: Annotated[str, typer.Option(help="Why; part of what is signed.")] = "",
    max_rounds: Annotated[int | None, typer.Option(help="Fewer rounds than the study asks for.", min=1)] = None,
    min_cohort: Annotated[int | None, typer.Option(help="The fewest patients that must take part.", min=1)] = None,
    until: Annotated[str | None, typer.Option(help="Last day of the approval, YYYY-MM-DD.")] = None,
    yes: Annotated[bool, typer.Option(help="Do not ask whether this is what you want.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a study in words and what the policy says to it, then sign the steward's decision."""
    with errors_shown(as_json):
        from silo_node import approvals

        folder, study = folder_and(folder, study)
        if reject and revoke:
            raise UsageError("--reject or --revoke, not both")
        if not study:
            raise UsageError("name the study")
        decision: approvals.Decision = "reject" if reject else "revoke" if revoke else "approve"
        if decision != "approve" and not reason:
            raise UsageError(f"a reason is needed to {decision}: --reason TEXT")
        node = node_of(folder)
        try:
            proposal = approvals.fetch(node, study)
            if not as_json:
                _show(proposal)
            if decision == "approve" and proposal.found.decision == "DENY":
                sentences = " ".join(f"{each.sentence} {each.change}" for each in proposal.found.reasons)
                raise Refused("POLICY_DENY", f"The hospital's own policy denies this study. {sentences}")
            if not yes and not typer.confirm(f"{decision.capitalize()} exactly this study?", err=True):
                raise UsageError("nothing was signed", "ABORTED")
            envelope = approvals.decide(
                node,
                proposal,
                decision,
                passphrase=passphrase(passphrase_file),
                reason=reason,
                max_rounds=max_rounds,
                min_cohort=min_cohort,
                until=_day(until),
            )
            facts: dict[str, Any] = {
                "study": study,
                "decision": decision,
                "manifest": proposal.manifest,
                "match": proposal.found.decision,
                "approval": envelope.digest,
                "sent": True,
            }
            try:
                approvals.send(node, study, envelope)
            except (PortalError, PortalRefused):
                # Signed and in force here; a revocation holds even if the portal never learns of it.
                out.print(
                    f"Signed and in force here ({envelope.digest}), but the portal did not take it:", style="yellow"
                )
                raise
        finally:
            node.close()
        if as_json:
            print_json(facts)
        else:
            out.print(f"Signed and sent: {decision} {study} ({envelope.digest})")


def _show(proposal: Proposal) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, sentence in proposal.words:
        table.add_row(_plain(label), _plain(sentence))
    table.add_row("Version", proposal.manifest)
    out.print(table)
    out.print(f"This hospital's policy says: [bold]{proposal.found.decision}[/]")
    for each in proposal.found.reasons:
        out.print(f"  {each.sentence} {each.change}", markup=False)
    for owed in proposal.found.obligations:
        out.print(f"  Owed to this hospital: {owed.sentence}", markup=False)


def _plain(text: str) -> str:
    # What a researcher wrote must neither style nor steer the steward's terminal.
    from rich.markup import escape

    return escape(visible(text))


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError("--until must be a day, YYYY-MM-DD") from None
