"""`silo key rotate`: a new key for this silo, vouched for by the old one."""

from __future__ import annotations

from typing import Annotated

import typer

from silo_node.commands.folder import Commands, Folder, examples
from silo_node.commands.terminal import AsJson, err, errors_shown, node_of, out, print_json
from silo_node.errors import UsageError

key = Commands(help="This silo's own key.", no_args_is_help=True, epilog=examples("silo key rotate --yes"))


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(key, name="key")


@key.callback()
def group() -> None:
    """This silo's own key."""


@key.command()
def rotate(
    folder: Folder = None,
    token: Annotated[str, typer.Option(help="The one-time token of the new invitation.")] = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask, also where studies go on without this hospital.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take a new key in place of the old one, which signs that it does. `silo run` must be stopped.

    The portal takes the new key on the old one's signature. With --token, where the admin revokes the old key and invites
    again, it is enrolled anew. While a round is open here the new key waits, and `silo run` takes it afterwards. A study
    that has begun names the old key and goes on without this hospital.

    Examples:

        silo key rotate /var/lib/consilium-silo
    """
    with errors_shown(as_json):
        from silo_node import key_rotation

        node = node_of(folder)
        try:
            left = key_rotation.studies_left(node)
            if left:
                err.print("These studies name the present key; those that have begun go on without this hospital:")
                for each in left:
                    err.print(f"  {each['study']} {each['title']}", markup=False)
                if not yes and not typer.confirm("Change the key all the same?", err=True):
                    raise UsageError("nothing was changed", "ABORTED")
            facts = key_rotation.rotate(node, token)
        finally:
            node.close()
        if as_json:
            print_json({**facts, "studies": left})
            return
        out.print(f"The key of [bold]{facts['silo']}[/] is a new one; state at the portal: {facts['state']}.")
        out.print(f"New fingerprint, to compare with the admin:\n  {facts['fingerprint']}")
        if left:
            out.print(
                "Next: studies that have not begun are submitted again by their owners and approved here anew; the others go "
                "on without this hospital."
            )
