"""Talking to the person at the terminal, and the exit codes: what every command shares."""

from __future__ import annotations

import errno
import getpass
import json
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from protocol.plain_text import visible
from silo_node.config import Config
from silo_node.errors import DiskFull, SiloError, UsageError, is_disk_full
from silo_node.node import Node
from silo_node.pin import Pin


class Terminal(Console):
    """A console on which no text from elsewhere moves the cursor, hides a line or turns it round."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's; text is shown with "?" for each character that would steer the terminal."""
        super().print(*(visible(each) if isinstance(each, str) else each for each in objects), **options)


out = Terminal(soft_wrap=True, highlight=False)
err = Terminal(stderr=True, soft_wrap=True, highlight=False)

_NOT_OURS = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_READONLY_DIRECTORY", "SQLITE_PERM")
_DRIVE: Final = {
    errno.EROFS: "its drive is mounted read-only: mount it for writing, or name another folder",
    errno.ENOENT: "there is no such file or folder: check the path, and that its drive is mounted",
    errno.ENOTDIR: "a part of this path is a file, not a folder: correct the path",
    errno.EISDIR: "this is a folder, not a file: correct the path",
    errno.ENAMETOOLONG: "the name is too long for its drive: use a shorter path",
    errno.ELOOP: "its links go round in a circle: correct them",
    errno.EIO: "its drive can't be read or written: look at the drive, its cable or the network",
    errno.ESTALE: "its network drive has gone: mount it again",
    errno.EMFILE: "too many files are open: raise the limit (`ulimit -n`)",
}
"""What IT can put right, by the system's number of the error."""

LEAST_PASSPHRASE: Final = 12
"""Characters of a new steward's passphrase: who steals the key's file can try as many as he likes."""

PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File whose first line is the steward's passphrase.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
EachAsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each thing that happens.")]


@contextmanager
def errors_shown(as_json: bool = False) -> Iterator[None]:
    """Show an error of ours as code and sentence, and end with its exit code."""
    try:
        yield
    except SiloError as error:
        show_error(error, as_json)
        raise typer.Exit(error.exit_code) from None
    except (typer.Abort, EOFError):  # EOFError: Ctrl-D where a passphrase is asked for
        unanswered = UsageError(
            "a question was not answered, so nothing more was done: answer it, or use --yes and --passphrase-file",
            "ABORTED",
        )
        show_error(unanswered, as_json)
        raise typer.Exit(unanswered.exit_code) from None
    except (OSError, sqlite3.Error) as error:
        found = _about_the_folder(error)
        if found is None:
            raise
        show_error(found, as_json)
        raise typer.Exit(found.exit_code) from None


def show_error(error: SiloError, as_json: bool) -> None:
    """Code and sentence, for a person or a program."""
    if as_json:
        print_json({"error": {"code": error.code, "sentence": error.sentence}})
    else:
        err.print(f"[bold red]{error.code}[/] ", end="")
        err.print(error.sentence, markup=False)


def _about_the_folder(error: OSError | sqlite3.Error) -> SiloError | None:
    """What IT can put right about the silo's folder; None for what is a fault of the program."""
    if is_disk_full(error):
        return DiskFull("no room on the disk of the silo's folder, or a quota is reached: make room and try again")
    if isinstance(error, PermissionError) or getattr(error, "sqlite_errorname", "") in _NOT_OURS:
        where = getattr(error, "filename", None) or "a database in the silo's folder"
        return UsageError(
            f"{where} can't be read or written by this user: run as the folder's owner, or correct owner and mode; a drive "
            "that is mounted read-only must be mounted for writing"
        )
    if isinstance(error, OSError) and error.errno in _DRIVE:
        name = error.filename2 or error.filename  # of a rename, what was to be replaced
        named = Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None
        if named is not None and named.suffix == ".tmp":  # files.py writes beside the file that it replaces
            named = named.parent
        return UsageError(f"{named or 'a file of the silo'}: {_DRIVE[error.errno]}")
    return None


def print_json(value: Any) -> None:
    """One JSON object on one line of standard output, nothing else; escaped, so that a name in it steers no terminal."""
    sys.stdout.write(json.dumps(value, sort_keys=True).replace("\x7f", "\\u007f") + "\n")


def config_of(folder: Path | None) -> Config:
    """The silo in `folder` or SILO_HOME. Raises: UsageError."""
    if folder is None:
        raise UsageError("name the silo's folder with --folder (-C), or set SILO_HOME")
    return Config.load(folder)


def node_of(folder: Path | None, *, enrolled: bool = True) -> Node:
    """The silo, opened; with `enrolled` only one that has pinned a portal."""
    config = config_of(folder)
    return Node(config, Pin.load(config) if enrolled else None)


def first_line(path: Path, what: str) -> str:
    """The secret that a file begins with; warns where others can read it. Raises: UsageError."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text: save it as UTF-8") from None
    if not lines or not lines[0]:
        raise UsageError(f"{path}: the first line must be the {what}")
    if mode & 0o044:
        said = f"{path} can be read by others on this machine (mode {stat.S_IMODE(mode):o}): `chmod 600 {path}`"
        err.print(f"to look at: {said}", markup=False, style="yellow")
    return lines[0]


def passphrase(path: Path | None, *, again: bool = False) -> bytes:
    """From a file (0600 is expected) or asked at the terminal. again: it is a new one, asked twice, with a least length.

    Raises: UsageError.
    """
    if path is not None:
        first = first_line(path, "passphrase")
    elif not os.isatty(0):
        raise UsageError("there is no terminal to ask for the passphrase: use --passphrase-file")
    else:
        if again:
            err.print(f"A new passphrase: {LEAST_PASSPHRASE} characters or more, such as four words.")
        first = getpass.getpass("Steward's passphrase: ")
        if not first:
            raise UsageError("the passphrase is empty")
    if again and len(first) < LEAST_PASSPHRASE:
        where = "" if path is None else f"{path}: "
        raise UsageError(f"{where}a new passphrase has at least {LEAST_PASSPHRASE} characters: nothing was made")
    if again and path is None and getpass.getpass("Once more: ") != first:
        raise UsageError("the two passphrases differ: nothing was made")
    return first.encode()
