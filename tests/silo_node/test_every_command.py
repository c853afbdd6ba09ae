"""What holds for every command of `silo`, found by walking the program itself: a new command without it fails here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from silo_node.cli import app


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from leaves(inner, f"{name} {word}")
    else:
        yield name, command


def groups(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        yield name, command
        for word, inner in command.commands.items():
            yield from groups(inner, f"{name} {word}")


ROOT = typer.main.get_command(app)
COMMANDS = dict(leaves(ROOT, "silo"))
GROUPS = dict(groups(ROOT, "silo"))


def examples(command: Any) -> list[str]:
    _, _, block = f"{command.help or ''}\n{command.epilog or ''}".partition("Examples:")
    return [line.strip() for line in block.splitlines() if line.strip().startswith("silo ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json(name):
    flags = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert "--json" in flags


def typed(line: str, *more: str) -> list[str]:
    """What follows `silo` in an example, without the folder that it names."""
    words = shlex.split(line, comments=True)[1:]
    for option in {"--folder", "-C"} & set(words):
        place = words.index(option)
        del words[place : place + 2]
    return [word for word in words if word not in ("/srv/silo", "/var/lib/consilium-silo")] + list(more)


@pytest.mark.parametrize("option", ["--folder", "-C"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_folder_as_the_same_option(name, option, tmp_path, monkeypatch):
    """Typed as in its first example, with SILO_HOME set to another folder: it says that the one of the option is no silo."""
    nowhere = tmp_path / "nowhere"
    monkeypatch.setenv("SILO_HOME", str(tmp_path / "elsewhere"))
    words = typed(examples(COMMANDS[name])[0], option, str(nowhere))
    if name == "silo init":
        nowhere.touch()
    done = CliRunner().invoke(app, words)
    if name == "silo version":
        assert done.exit_code == 0, "it is the same for every folder"
        return
    code = 1 if name == "silo doctor" else 2
    assert (done.exit_code, str(nowhere) in done.output, "elsewhere" in done.output) == (code, True, False), done.output


def test_the_folder_stands_before_the_other_word_or_in_the_option_but_not_in_both(tmp_path, monkeypatch):
    monkeypatch.delenv("SILO_HOME", raising=False)
    first, second = tmp_path / "first", tmp_path / "second"
    for words in ([str(first), "st-abc"], ["st-abc", "-C", str(first)], ["-C", str(first), "st-abc"]):
        done = CliRunner().invoke(app, ["approve", *words])
        assert (done.exit_code, f"{first}" in done.output) == (2, True), done.output
    for words in (["approve", str(first), "st-abc", "-C", str(second)], ["status", str(first), "-C", str(second)]):
        done = CliRunner().invoke(app, words)
        assert (done.exit_code, "named twice" in done.output) == (2, True), done.output
    done = CliRunner().invoke(app, ["page", "-C", str(first), "user", "list"])
    assert (done.exit_code, "after the whole command" in done.output) == (2, True), done.output


@pytest.mark.parametrize("words", ["status -", "approve --fol", "consent check --fol", "page user list --fol"])
def test_a_shell_completes_the_option(words, monkeypatch):
    monkeypatch.setenv("_SILO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"silo {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    done = CliRunner().invoke(app, [], prog_name="silo")
    assert "--folder" in done.output.split(), done.output


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


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_shows_examples_that_can_be_typed_and_says_that_its_commands_print_json(name):
    found = examples(GROUPS[name])
    assert found and all(line.startswith(name) for line in found)
    for line in found:
        words = shlex.split(line, comments=True)[1:]
        at: Any = ROOT
        while words and words[0] in getattr(at, "commands", ()):
            at, words = at.commands[words[0]], words[1:]
        if name == "silo policy" and at is GROUPS[name]:
            at = at.commands["put"]
        at.make_context(line, words, parent=ROOT.context_class(ROOT, info_name="silo"))
    shown = CliRunner().invoke(app, [*name.split()[1:], "--help"]).output
    assert all(each in shown for each in ("Examples:", "--json", *(line[:20] for line in found))), shown


def test_the_help_says_what_the_exit_codes_mean():
    shown = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert "Exit codes: 0 done" in shown and "5 already running" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    silent = [
        parameter.name
        for parameter in COMMANDS[name].params
        if isinstance(parameter, typer.core.TyperOption | typer.core.TyperArgument) and not parameter.help
    ]
    assert silent == []
