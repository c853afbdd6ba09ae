"""`silo policy` and `silo approve`: the steward's commands. They show in words what is signed before they ask for the key."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from protocol.plain_text import visible
from silo_node.commands.folder import Folder
from silo_node.commands.terminal import AsJson, PassphraseFile, errors_shown, node_of, out, passphrase, print_json
from silo_node.errors import PortalError, PortalRefused, Refused, UsageError

if TYPE_CHECKING:
    from protocol.manifest_changes import Changes
    from protocol.statement import Statement
    from silo_node.node import Node
    from silo_node.steward.approvals import Proposal

Person = Annotated[
    str | None, typer.Option("--person", help="Whose key signs, as in trust.json; else the one the passphrase opens.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    from silo_node.commands.policy import policy

    app.add_typer(policy)
    app.command()(approve)


def approve(
    folder: Folder = None,
    study: Annotated[str, typer.Argument(help="The study's id, st-...")] = "",
    passphrase_file: PassphraseFile = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Only list the studies that wait, and what was decided.")
    ] = False,
    reject: Annotated[bool, typer.Option(help="Say no to the study.")] = False,
    revoke: Annotated[bool, typer.Option(help="Take an approval back; holds from the next round on.")] = False,
    reason: Annotated[str, typer.Option(help="Why; part of what is signed.")] = "",
    max_rounds: Annotated[int | None, typer.Option(help="Fewer rounds than the study asks for.", min=1)] = None,
    min_cohort: Annotated[int | None, typer.Option(help="The fewest patients that must take part.", min=1)] = None,
    until: Annotated[str | None, typer.Option(help="Last day of the approval, YYYY-MM-DD.")] = None,
    person: Person = None,
    yes: Annotated[bool, typer.Option(help="Do not ask whether this is what you want.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a study in words, what the policy says to it and what changed since the last decision; then sign a decision.

    Examples:

        silo approve --list

        silo approve st-abc

        silo approve st-abc --revoke --reason "The ethics board asked for it."

        silo approve -C /srv/silo st-abc
    """
    with errors_shown(as_json):
        from silo_node.steward import approvals, decisions

        if reject and revoke:
            raise UsageError("--reject or --revoke, not both")
        decision: approvals.Decision = "reject" if reject else "revoke" if revoke else "approve"
        if not list_ and not study:
            raise UsageError("name the study; `--list` shows which wait")
        if not list_ and decision != "approve" and not reason:
            raise UsageError(f"a reason is needed to {decision}: --reason TEXT")
        node = node_of(folder)
        try:
            if list_:
                _list(node, as_json)
                return
            proposal = approvals.fetch(node, study)
            since = decisions.difference(node.config, proposal)
            if not as_json:
                _show(proposal)
                _show_changes(since)
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
                person=person,
            )
            missing = decisions.missing(node.config, proposal) if decision == "approve" else 0
            facts: dict[str, Any] = {
                "study": study,
                "decision": decision,
                "manifest": proposal.manifest,
                "match": proposal.found.decision,
                "approval": envelope.digest,
                "missing": missing,
                "changes": _change_facts(since),
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
            if missing:
                out.print(f"No round runs yet: {missing} more of this hospital's people must approve it.")


def _list(node: Node, as_json: bool) -> None:
    from silo_node.steward import decisions

    found = decisions.waiting(node)
    if as_json:
        print_json({"studies": found})
        return
    if not found:
        out.print("No study waits for this hospital.")
    for each in found:
        state = {None: "waits for a decision", "approve": "approved", "reject": "rejected", "revoke": "taken back"}
        said = state[each["decision"]]
        if each["decision"] == "approve" and each["missing"]:
            said = f"approved, but {each['missing']} more people must"
        if each["remark"]:
            said += f"; {each['remark']}"
        out.print(f"{each['study']}  {said}  {each['title'] or ''}", markup=False)


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


def _show_changes(since: tuple[Statement, Changes | None] | None) -> None:
    if since is None:
        out.print("This hospital has decided about no other version of this study.")
        return
    last, found = since
    decided = {"approve": "approved", "reject": "rejected", "revoke": "took back"}[last.decision]
    out.print(f"On {last.time[:10]} this hospital {decided} another version, {last.manifest}.")
    if found is None:
        out.print("  Its bytes are no longer here, so what changed can't be said: read all of the above.")
        return
    out.print(f"  {found.summary}", markup=False)
    for words in found.words:
        for mark, sentences in (("no longer", words.gone), ("now", words.new)):
            for sentence in sentences:
                out.print(f"  {words.label}, {mark}: {sentence}", markup=False)
    for each in found.fields:
        before, after = (each.before or "(not there)"), (each.after or "(not there)")
        out.print(f"  {each.path}: {before} -> {after}", markup=False)


def _change_facts(since: tuple[Statement, Changes | None] | None) -> dict[str, Any] | None:
    if since is None:
        return None
    last, found = since
    facts: dict[str, Any] = {"manifest": last.manifest, "decision": last.decision, "time": last.time}
    if found is not None:
        facts["summary"] = found.summary
        facts["fields"] = [{"path": each.path, "before": each.before, "after": each.after} for each in found.fields]
    return facts


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
