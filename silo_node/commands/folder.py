"""Which silo a command is for. All of them take `--folder FOLDER` (`-C FOLDER`), or SILO_HOME; most also FOLDER as first word.

    silo status -C /srv/silo            silo status /srv/silo
    silo approve -C /srv/silo st-abc    silo approve /srv/silo st-abc
    silo approve st-abc                 where SILO_HOME is set

What is typed comes before SILO_HOME; a folder that is named twice is an error.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer
from typer.models import ArgumentInfo, ParameterInfo

from silo_node.commands.terminal import errors_shown
from silo_node.errors import UsageError

HOME: Final = "SILO_HOME"
Folder = Annotated[
    Path | None, typer.Argument(help="The silo's folder.", envvar=HOME, show_default=False, readable=False)
]
"""As the first word; `Commands` gives each command that has it the option too."""
FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", "-C", help="The silo's folder.", envvar=HOME, show_default=False, readable=False),
]
"""For a command whose words are all something else."""
_Named = Annotated[
    Path | None,
    typer.Option(
        *("--folder", "-C"),
        help="The silo's folder, instead of the first word or SILO_HOME.",
        show_default=False,
        readable=False,
    ),
]


def examples(*lines: str) -> str:
    """What stands below a group's commands in its help."""
    each = "Each command takes --json and --folder, and its own --help has more examples."
    return "\n\n".join(["Examples:", *(f"    {line}" for line in lines), each])


class Commands(typer.Typer):
    """A program or a group of commands, each of which takes `--folder`."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """As typer's."""
        register = super().command(name, **options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            register(_with_option(function))
            return function

        return decorate


def _with_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The command with `--folder`, which its function then gets as `folder`; one that has the option stays as it is."""
    hints = get_type_hints(function, include_extras=True)
    for hint in hints.values():
        for each in getattr(hint, "__metadata__", ()):
            if isinstance(each, ParameterInfo):
                each.readable = False  # a path that this user may not read is told by who opens it, with what to do
    words = [
        name
        for name, hint in hints.items()
        if any(isinstance(each, ArgumentInfo) for each in getattr(hint, "__metadata__", ()))
    ]
    if "folder" in hints and "folder" not in words:
        return function

    @functools.wraps(function)
    def command(*, named: Path | None, **given: Any) -> Any:
        if "folder" in words:
            with errors_shown(given.get("as_json", False)):
                given.update(_sorted(named, {word: given[word] for word in words}))
        return function(**given)

    hints["named"] = _Named
    option = inspect.Parameter("named", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = [*inspect.signature(function).parameters.values(), option]
    command.__signature__ = inspect.Signature([each.replace(annotation=hints[each.name]) for each in parameters])  # type: ignore[attr-defined]
    command.__annotations__ = hints
    return command


def _sorted(named: Path | None, words: dict[str, Any]) -> dict[str, Any]:
    """The folder, and the words beside it. named: by the option. words: as they came; the first one is the folder's place.

    Raises: UsageError.
    """
    home = os.environ.get(HOME)
    first, others = words["folder"], [word for word in words if word != "folder"]
    typed = first is not None and str(first) != home
    # `COMMAND st-abc`: the only word is not the folder where that is named otherwise.
    free = next((word for word in others if not words[word]), None)
    if typed and free and (named is not None or (home and not first.exists())):
        return {"folder": named or Path(str(home)), free: str(first)}
    if typed and named is not None:
        raise UsageError(f"the silo's folder is named twice, {first} and --folder {named}: leave one out")
    return {"folder": named or first}
