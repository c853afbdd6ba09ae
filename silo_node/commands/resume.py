"""`silo resume`: a steward lets a study go on that this silo has paused. What is risked is said before the key is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from silo_node.commands.folder import Folder
from silo_node.commands.terminal import AsJson, PassphraseFile, errors_shown, node_of, out, passphrase, print_json
from silo_node.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(resume)


def resume(
    folder: Folder = None,
    study: Annotated[str, typer.Argument(help="The study's id, st-...")] = "",
    passphrase_file: PassphraseFile = None,
    reason: Annotated[str, typer.Option(help="Why the study may go on; part of what is signed.")] = "",
    yes: Annotated[bool, typer.Option(help="Do not ask whether this is what you want.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a study go on that this silo has paused, after showing what that risks.

    Examples:

        silo resume /srv/silo st-azhn6ppdnyiwfd4n --reason "Checked with the portal's admin by phone"
    """
    with errors_shown(as_json):
        from silo_node.steward import resumes

        if not study:
            raise UsageError("name the study")
        node = node_of(folder)
        try:
            pause = resumes.waiting(node.config, study)
            before = resumes.pending(node.config, pause, datetime.now(UTC))
            resumes.draft(node.config, pause, reason)  # what can't be signed is said before anything is asked
            if not as_json:
                out.print(f"{study} waits at this silo: {pause.sentence}.", markup=False)
                for sentence in resumes.risk(pause, node.config.name):
                    out.print(f"  {sentence}", markup=False)
                if before is not None:
                    out.print(f"Signed already by {', '.join(sorted(before[2]))}: {before[1].reason}", markup=False)
            if not yes and not typer.confirm("Let it go on and bear this risk?", err=True):
                raise UsageError("nothing was signed", "ABORTED")
            envelope, missing = resumes.sign(node, pause, passphrase=passphrase(passphrase_file), reason=reason)
        finally:
            node.close()
        if as_json:
            print_json({"study": study, "resume": envelope.digest, "model": pause.model, "missing": missing})
        elif missing:
            out.print(f"Signed ({envelope.digest}); {missing} more of this hospital's stewards must sign the same.")
        else:
            out.print(
                f"Signed ({envelope.digest}). It holds from the next round that the portal announces; no restart."
            )
