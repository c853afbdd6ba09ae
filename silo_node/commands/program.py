"""The program itself: what was typed wrongly comes as our own sentence, with `--json` as JSON, and ends with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

from typer.core import TyperGroup
from typer.exceptions import TyperException

from silo_node.commands.terminal import show_error
from silo_node.errors import UsageError

PANELS: Final = {
    "Setting up": ("init", "steward", "enrol", "scan", "policy", "consent", "fetch", "receive"),
    "Deciding": ("approve", "resume", "trust"),
    "Working": ("run", "status", "doctor", "page"),
    "Proving": ("evidence", "export"),
    "Looking after it": ("key", "healthy", "metrics", "version"),
}
"""The commands in the order in which a hospital needs them."""


class Program(TyperGroup):
    """`silo`, with every command under it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for panel, names in PANELS.items():
            for name in names:
                command: Any = self.commands.pop(name)
                command.rich_help_panel = panel
                self.commands[name] = command

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *more: Any, **options: Any) -> Any:
        """As typer's, but for an option or an argument that is missing, unknown or of another kind."""
        words = list(sys.argv[1:] if args is None else args)
        if not options.pop("standalone_mode", True):
            return super().main(words, prog_name or "silo", *more, standalone_mode=False, **options)
        try:
            code = super().main(words, prog_name or "silo", *more, standalone_mode=False, **options)
        except TyperException as error:
            code = error.exit_code
            found = " ".join(error.format_message().split()).rstrip(".")
            if found:  # nothing where the help was shown, because nothing was typed
                where = getattr(error, "ctx", None)
                command = where.command_path if where is not None else "silo"
                sentence = f"{found}. `{command} --help` shows what can be typed"
                show_error(UsageError(sentence), "--json" in words)
        sys.exit(code if isinstance(code, int) else 0)
