"""What holds for every command of `silo`, found by walking the program itself: a new command without it fails here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from silo_node.cli import app


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from leaves(inner, f"{name} {word}")
    else:
        yield name, command


ROOT = typer.main.get_command(app)
COMMANDS = dict(leaves(ROOT, "silo"))


def examples(command: Any) -> list[str]:
    _, _, block = f"{command.help or ''}\n{command.epilog or ''}".partition("Examples:")
    return [line.strip() for line in block.splitlines() if line.strip().startswith("silo ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json(name):
    flags = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert "--json" in flags


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples_that_can_be_typed(name):
    command = COMMANDS[name]
    found = examples(command)
    assert found, f"{name} has no line below Examples:"
    for line in found:
        words = shlex.split(line, comments=True)[1:]
        context = ROOT.context_class(ROOT, info_name="silo")
        at: Any = ROOT
        while hasattr(at, "commands"):
            # `silo policy --file F`: a group may have a command of its own for what names none.
            at, words = (at.commands[words[0]], words[1:]) if words[0] in at.commands else (at.commands["put"], words)
        assert at is command, f"an example of {name} is one of another command: {line}"
        at.make_context(name, words, parent=context)  # raises for an option or a value that there is not


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    silent = [
        parameter.name
        for parameter in COMMANDS[name].params
        if isinstance(parameter, typer.core.TyperOption | typer.core.TyperArgument) and not parameter.help
    ]
    assert silent == []
