"""`silo page`: the node's own page, and who may sign in at it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from silo_node.commands.folder import HOME, Commands, FolderOption, examples
from silo_node.commands.terminal import AsJson, config_of, errors_shown, first_line, out, print_json
from silo_node.errors import UsageError

PasswordFile = Annotated[Path | None, typer.Option("--password-file", help="File whose first line is the password.")]
Name = Annotated[str, typer.Argument(help="The user's name at sign-in, such as it-nord.")]

_page = Commands(
    name="page",
    invoke_without_command=True,
    help="The node's own page in the browser. Without a command it is served until Ctrl-C, as `silo run` does too.",
    epilog=examples("silo page --folder /srv/silo", "silo page user add it-nord --role it"),
)
_user = Commands(
    name="user",
    no_args_is_help=True,
    help="Who may sign in at the page.",
    epilog=examples("silo page user add it-nord --role it", "silo page user list", "silo page user remove it-nord"),
)
_page.add_typer(_user)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(_page)


@_page.callback()
def page(context: typer.Context, folder: FolderOption = None, as_json: AsJson = False) -> None:
    """Serve the page until Ctrl-C; `silo run` serves it too, unless `[page] off` is set.

    Examples:

      silo page --folder /srv/silo
    """
    with errors_shown(as_json):
        if context.invoked_subcommand is not None:
            if folder is not None and str(folder) != os.environ.get(HOME):
                raise UsageError("put --folder after the whole command, such as `silo page user list --folder FOLDER`")
            return
        from silo_node.page import entries
        from silo_node.page.serve import serve
        from silo_node.service import logs

        config = config_of(folder)
        logs.configure(config.folder, config.name)
        accounts = entries.opened(config)
        users = len(accounts.users())
        accounts.close()
        if as_json:
            print_json({"address": config.settings.page.origin, "users": users})
        else:
            out.print(f"The page of {config.name}: {config.settings.page.origin}/  (Ctrl-C ends it)")
            if not users:
                out.print("Nobody can sign in yet: `silo page user add NAME --role it` in another terminal.")
        serve(config)


@_user.command()
def add(
    name: Name,
    role: Annotated[str, typer.Option(help="it: hospital IT; steward: decides about studies.")],
    folder: FolderOption = None,
    person: Annotated[str, typer.Option(help="For a steward: the name in trust.json.")] = "",
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Let somebody sign in at the page.

    Examples:

      silo page user add it-nord --role it --folder /srv/silo

      silo page user add dr-a --role steward --person "Dr. A. Steward" --password-file /run/secrets/dr-a
    """
    with errors_shown(as_json):
        from silo_node.page import entries

        config = config_of(folder)
        accounts = entries.opened(config)
        try:
            accounts.check_new(name, role=role, person=person)  # before anybody types a password in vain
            user = accounts.add(name, role=role, person=person, password=_password(password_file))
        finally:
            accounts.close()
        if as_json:
            print_json({"user": user.name, "role": user.role, "person": user.person})
        else:
            out.print(f"{user.name} can sign in at {config.settings.page.origin}/ as {user.role}.", markup=False)


@_user.command()
def password(
    name: Name, folder: FolderOption = None, password_file: PasswordFile = None, as_json: AsJson = False
) -> None:
    """Set a new password: the user's sessions end, and a pause after wrong passwords too.

    Examples:

      silo page user password it-nord --folder /srv/silo
    """
    with errors_shown(as_json):
        from silo_node.page import entries

        accounts = entries.opened(config_of(folder))
        try:
            accounts.known(name)  # before anybody types a password in vain
            accounts.set_password(name, _password(password_file))
        finally:
            accounts.close()
        if as_json:
            print_json({"user": name, "changed": True})
        else:
            out.print(f"{name} has a new password; sessions with the old one are over.", markup=False)


@_user.command()
def remove(name: Name, folder: FolderOption = None, as_json: AsJson = False) -> None:
    """End an account and its sessions.

    Examples:

      silo page user remove it-nord --folder /srv/silo
    """
    with errors_shown(as_json):
        from silo_node.page import entries

        accounts = entries.opened(config_of(folder))
        try:
            accounts.remove(name)
        finally:
            accounts.close()
        if as_json:
            print_json({"user": name, "removed": True})
        else:
            out.print(f"{name} can't sign in any more.", markup=False)


@_user.command("list")
def list_(folder: FolderOption = None, as_json: AsJson = False) -> None:
    """Who may sign in.

    Examples:

      silo page user list --folder /srv/silo --json
    """
    with errors_shown(as_json):
        from silo_node.page import entries

        accounts = entries.opened(config_of(folder))
        try:
            users = accounts.users()
        finally:
            accounts.close()
        if as_json:
            print_json({"users": [{"user": each.name, "role": each.role, "person": each.person} for each in users]})
            return
        for each in users:
            out.print(f"{each.name}  {each.role}  {each.person}", markup=False)
        if not users:
            out.print("Nobody yet: `silo page user add NAME --role it`.")


def _password(path: Path | None) -> str:
    """From a file, or asked twice at the terminal. Raises: UsageError."""
    if path is not None:
        return first_line(path, "password")
    if not os.isatty(0):
        raise UsageError("there is no terminal to ask for the password: use --password-file")
    import getpass

    first = getpass.getpass("Password for the page: ")
    if getpass.getpass("Once more: ") != first:
        raise UsageError("the two passwords differ")
    return first
