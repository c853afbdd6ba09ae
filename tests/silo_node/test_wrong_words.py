"""What is typed wrongly, or by the wrong user, comes back as a sentence with what to do, and with --json as one object."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest
import typer
from typer.testing import CliRunner

from silo_node.cli import app
from silo_node.commands.program import PANELS
from tests.silo_node.conftest import ROOT
from tests.silo_node.test_clear_errors import without_rights
from tests.silo_node.test_every_command import COMMANDS, examples, typed


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_is_not_there_is_a_sentence_and_with_json_one_object(name):
    for more in ((), ("--json",)):
        done = CliRunner().invoke(app, [*name.split()[1:], "--bogus", *more])
        text = json.loads(done.stdout)["error"]["sentence"] if more else done.stderr
        assert done.exit_code == 2
        assert "--bogus" in text and "--help` shows what can be typed" in text, text
        assert "Usage" not in done.output and "╭" not in done.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("consent prove 4711", "ROUND"),
        ("page user add x", "--role"),
        ("trust propose --needed many", "--needed"),
        ("stauts", "status"),
        ("policy show", "No such command 'show'"),
        ("status a b c", "unexpected"),
    ],
)
def test_what_is_missing_or_of_another_kind_is_named_with_the_code_of_wrong_usage(words, found):
    done = CliRunner().invoke(app, [*words.split(), "--json"])
    error = json.loads(done.stdout)["error"]
    assert (done.exit_code, error["code"]) == (2, "USAGE")
    assert found in error["sentence"]


def test_a_group_without_a_command_still_shows_its_help():
    done = CliRunner().invoke(app, ["trust"])
    assert (done.exit_code, "propose" in done.output, "shows what can be typed" in done.output) == (2, True, False)


def test_the_help_lists_every_command_in_the_order_in_which_it_is_needed():
    names = [name for names in PANELS.values() for name in names]
    assert list(typer.main.get_command(app).commands) == names
    lines = CliRunner().invoke(app, ["--help"]).output.splitlines()
    assert [word for line in lines for word in line.split()[1:2] if line.startswith("│ ") and word in names] == names


def test_a_new_stewards_passphrase_is_not_short_and_its_file_not_open_to_others(silo, tmp_path):
    path = tmp_path / "passphrase"
    path.write_text("elevenchars\n")
    path.chmod(0o644)
    arguments = ("trust", "new-key", str(silo.folder), "--person", "B", "--passphrase-file", str(path), "--json")
    done = silo.command(*arguments)
    assert (done.returncode, "at least 12 characters" in done.stdout, str(path) in done.stdout) == (2, True, True)
    path.write_text("twelve chars\n")
    done = silo.command(*arguments)
    assert (done.returncode, f"chmod 600 {path}" in done.stderr) == (0, True), done.stdout
    path.chmod(0o600)
    assert silo.command(*arguments[:4], "C", *arguments[5:]).stderr == ""


def test_the_metrics_make_no_folder(silo, tmp_path):
    done = silo.command("metrics", str(silo.folder), "--out", str(tmp_path / "nope" / "silo.prom"))
    assert (done.returncode, f"there is no folder {tmp_path}/nope" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "nope").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_another_user_is_told_which_path_and_what_to_do(name, silo):
    if name == "silo version":
        return
    silo.folder.chmod(0)
    words = typed(examples(COMMANDS[name])[0], "-C", str(silo.folder))
    try:
        done = silo.command(*words, preexec_fn=without_rights)
    finally:
        silo.folder.chmod(0o700)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == (1 if name == "silo doctor" else 2), text
    assert str(silo.folder) in text and "owner" in text, text
    assert "is not readable" not in text and "Traceback" not in text, text


def test_the_end_of_input_at_a_passphrase_is_a_sentence_with_a_code(silo):
    mine, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "silo_node.cli", "trust", "new-key", str(silo.folder), "--person", "B"],
        cwd=ROOT, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with suppress(OSError):
        os.close(terminal)
    err = ""
    while "Steward's passphrase: " not in err:  # then it waits, with what was typed before thrown away
        err += (letter := process.stderr.read(1))
        assert letter, err
    os.write(mine, b"\x04")
    out, more = process.communicate(timeout=60)
    err += more
    os.close(mine)
    assert (process.returncode, "ABORTED" in err, "was not answered" in err) == (2, True, True), out + err
    assert len(list((silo.folder / "keys").glob("steward-*"))) == 1
