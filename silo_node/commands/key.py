"""`silo key rotate`: a new key for this silo, vouched for by the old one."""

from __future__ import annotations

from typing import Annotated

import typer

from silo_node.commands.folder import Commands, Folder
from silo_node.commands.terminal import AsJson, errors_shown, node_of, out, print_json

key = Commands(help="This silo's own key.", no_args_is_help=True)


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
    as_json: AsJson = False,
) -> None:
    """Take a new key in place of the old one, which signs that it does. `silo run` must be stopped.

    The portal takes the new key on the old one's signature. With --token, where the admin revokes the old key and invites
    again, it is enrolled anew. Afterwards each running study needs a new version with the new key.

    Examples:

        silo key rotate /var/lib/consilium-silo
    """
    with errors_shown(as_json):
        from silo_node import key_rotation

        node = node_of(folder)
        try:
            facts = key_rotation.rotate(node, token)
        finally:
            node.close()
        if as_json:
            print_json(facts)
            return
        out.print(f"The key of [bold]{facts['silo']}[/] is a new one; state at the portal: {facts['state']}.")
        out.print(f"New fingerprint, to compare with the admin:\n  {facts['fingerprint']}")
        out.print("Studies that run now name the old key: each needs a new version, approved again.")
