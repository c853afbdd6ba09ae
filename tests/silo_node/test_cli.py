"""The command `silo` as people type it: what it says, what it asks for, and its exit codes."""

from __future__ import annotations

import json
import stat

import pytest

from protocol.approval import APPROVAL_TYPE
from protocol.signing import Envelope
from tests.silo_node.conftest import PASSPHRASE, POLICY, SiloUnderTest
from tests.silo_node.portal_double import TOKEN


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    return path


@pytest.fixture
def fresh(tmp_path, portal):
    """A folder that is not there yet."""
    under_test = SiloUnderTest(tmp_path / "old", portal)
    under_test.folder = tmp_path / "hospital" / "silo"
    yield under_test
    under_test.close()


def test_from_nothing_to_an_approved_study(fresh, portal, passphrase, tmp_path):
    folder = str(fresh.folder)
    data = tmp_path / "data"
    done = fresh.command(
        "init", folder, "--name", "site-1", "--portal", portal.address, "--data", str(data),
        "--steward", "Dr. Steward", "--passphrase-file", str(passphrase),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Fingerprint" in done.stdout
    for path in (fresh.folder / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    done = fresh.command("enrol", folder, "--token", TOKEN, "--json")
    assert done.returncode == 0, done.stderr
    enrolled = json.loads(done.stdout)
    assert enrolled["silo"] == "site-1"
    assert len(enrolled["portal_fingerprint"].split()) == 16
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(POLICY))
    done = fresh.command("policy", folder, "--file", str(policy), "--passphrase-file", str(passphrase), "--send")
    assert done.returncode == 0, done.stderr
    assert len(portal.policies) == 1
    study = portal.make_study(title="Lungs of four hospitals")
    done = fresh.command("approve", folder, study, "--passphrase-file", str(passphrase), "--yes")
    assert done.returncode == 0, done.stderr
    assert "Lungs of four hospitals" in done.stdout
    assert "PERMIT" in done.stdout
    statement = json.loads(Envelope.from_dict(portal.approvals[0]).payload)
    assert portal.approvals[0]["payloadType"] == APPROVAL_TYPE
    assert (statement["decision"], statement["manifest"]) == ("approve", portal.manifest_digest)
    status = json.loads(fresh.command("status", folder, "--json").stdout)
    assert status["fingerprint"] == enrolled["fingerprint"]
    assert status["state"] == "never started"
    assert [each["decision"] for each in status["approvals"]] == ["approve"]
    assert "Dr. Steward" in fresh.command("status", folder).stdout or status["approvals"][0]["by"] == "Dr. Steward"


def test_init_keeps_what_is_there(fresh, portal, passphrase, tmp_path):
    arguments = ("init", str(fresh.folder), "--name", "site-1", "--portal", portal.address, "--data", str(tmp_path))
    assert fresh.command(*arguments).returncode == 0
    before = {path.name: path.read_bytes() for path in (fresh.folder / "keys").iterdir()}
    assert fresh.command(*arguments).returncode == 0
    assert {path.name: path.read_bytes() for path in (fresh.folder / "keys").iterdir()} == before
    done = fresh.command("init", str(fresh.folder), "--name", "site-2")
    assert done.returncode == 2
    assert "another name" in done.stderr


def test_a_denied_study_can_not_be_approved_but_rejected(silo, portal, passphrase):
    silo.policy(permission="DUO:0000007", diseases=["DOID:162"])
    study = portal.make_study()
    done = silo.command("approve", str(silo.folder), study, "--passphrase-file", str(passphrase), "--yes")
    assert done.returncode == 3
    assert "POLICY_DENY" in done.stderr
    assert portal.approvals == []
    done = silo.command(
        "approve", str(silo.folder), study, "--passphrase-file", str(passphrase), "--yes", "--reject", "--reason", "No."
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Envelope.from_dict(portal.approvals[0]).payload)["decision"] == "reject"


def test_a_decision_is_asked_for_before_the_passphrase(silo, portal, passphrase):
    study = portal.make_study()
    done = silo.command("approve", str(silo.folder), study, "--passphrase-file", str(passphrase), input="n\n")
    assert done.returncode == 2
    assert "nothing was signed" in done.stderr
    assert portal.approvals == []


def test_a_rejection_needs_a_reason(silo, portal, passphrase):
    study = portal.make_study()
    done = silo.command("approve", str(silo.folder), study, "--passphrase-file", str(passphrase), "--reject", "--yes")
    assert done.returncode == 2
    assert "--reason" in done.stderr


def test_a_reason_with_accents_typed_apart_is_signed_composed(silo, portal, passphrase):
    study = portal.make_study()
    done = silo.command(
        *("approve", str(silo.folder), study, "--passphrase-file", str(passphrase), "--yes"),
        *("--reject", "--reason", "Nicht fu\u0308r uns."),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Envelope.from_dict(portal.approvals[0]).payload)["reason"] == "Nicht f\u00fcr uns."


def test_a_wrong_passphrase_is_said_and_nothing_is_signed(silo, portal, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("guess\n")
    study = portal.make_study()
    done = silo.command("approve", str(silo.folder), study, "--passphrase-file", str(wrong), "--yes")
    assert done.returncode == 2
    assert "passphrase is wrong" in done.stderr
    assert portal.approvals == []


def test_what_a_researcher_wrote_can_not_style_the_stewards_terminal(silo, portal, passphrase):
    study = portal.make_study(title="[red]urgent[/red] study", summary="Plain.")
    done = silo.command("approve", str(silo.folder), study, "--passphrase-file", str(passphrase), "--yes")
    assert "[red]urgent[/red]" in done.stdout


def test_a_signed_decision_holds_even_when_the_portal_does_not_take_it(silo, portal, passphrase):
    study = portal.make_study()
    portal.fault = lambda method, path: 0 if path.endswith("/approval") else None
    done = silo.command("approve", str(silo.folder), study, "--passphrase-file", str(passphrase), "--yes")
    assert done.returncode == 4
    assert "in force here" in done.stdout
    assert len(list((silo.config.approvals / study).iterdir())) == 1


def test_an_unreachable_portal_is_exit_code_4(silo, portal):
    portal.close()
    done = silo.command("approve", str(silo.folder), "st-abc", "--yes", "--passphrase-file", "/dev/null")
    assert done.returncode == 4
    assert "PORTAL_UNREACHABLE" in done.stderr


def test_a_used_token_is_exit_code_3_with_the_portals_words(fresh, portal, tmp_path, passphrase):
    folder = str(fresh.folder)
    fresh.command("init", folder, "--name", "site-1", "--portal", portal.address, "--data", str(tmp_path))
    fresh.command("steward", folder, "--person", "Dr. S", "--passphrase-file", str(passphrase))
    done = fresh.command("enrol", folder, "--token", "wrong")
    assert done.returncode == 3
    assert "The token is not valid." in done.stderr
    assert not (fresh.folder / "portal.json").exists()


def test_enrolling_needs_a_stewards_key(fresh, portal, tmp_path):
    folder = str(fresh.folder)
    fresh.command("init", folder, "--name", "site-1", "--portal", portal.address, "--data", str(tmp_path))
    done = fresh.command("enrol", folder, "--token", TOKEN)
    assert done.returncode == 2
    assert "silo steward" in done.stderr


def test_running_without_enrolment_says_what_to_do(fresh, portal, tmp_path):
    folder = str(fresh.folder)
    fresh.command("init", folder, "--name", "site-1", "--portal", portal.address, "--data", str(tmp_path))
    done = fresh.command("run", folder)
    assert done.returncode == 2
    assert "silo enrol" in done.stderr
    assert "NOT_ENROLLED" in done.stderr
    problems = json.loads(fresh.command("status", folder, "--json").stdout)["problems"]
    [problem] = [each for each in problems if each["code"] == "NOT_ENROLLED"]
    assert "silo enrol" in problem["do"]


def test_init_says_what_is_wrong_without_a_librarys_words(fresh, tmp_path):
    done = fresh.command("init", str(fresh.folder), "--name", "site-1", "--portal", "x", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "--portal: " in done.stderr
    assert "Value error" not in done.stderr


def test_errors_as_json_are_one_object(tmp_path, fresh):
    done = fresh.command("status", str(tmp_path / "nowhere"), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "USAGE"


@pytest.mark.parametrize("command", ["status", "doctor", "run"])
def test_settings_that_are_no_text_are_named(fresh, command):
    fresh.folder.mkdir(parents=True)
    settings = fresh.folder / "silo.toml"
    settings.write_bytes('name = "m\u00fcnchen"'.encode("latin-1"))
    done = fresh.command(command, str(fresh.folder))
    assert done.returncode in (1, 2) and "not UTF-8 text" in done.stdout + done.stderr
    settings.unlink()
    settings.mkdir()
    done = fresh.command(command, str(fresh.folder))
    assert done.returncode in (1, 2) and "can't be read" in done.stdout + done.stderr


def test_a_silo_is_not_made_where_a_file_is(tmp_path, fresh):
    (tmp_path / "file").touch()
    done = fresh.command("init", str(tmp_path / "file"), "--name", "a", "--portal", "https://a.example", "--data", "/a")
    assert (done.returncode, "is no folder" in done.stderr) == (2, True), done.stderr


def test_a_folder_is_tried_before_the_silo_of_the_environment_is_made(tmp_path, fresh):
    assert not fresh.folder.exists()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").touch()
    done = fresh.command("scan", "--data", str(tmp_path / "images"), "--json")
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (0, "NOT_DICOM"), (
        done.stderr
    )  # a row also for what is no image by its name
    assert fresh.command("scan", str(tmp_path / "other"), "--data", str(tmp_path / "images")).returncode == 2


def test_a_path_to_import_that_is_not_there_is_named(silo, tmp_path):
    done = silo.command("consent", "import", str(tmp_path / "none"), "--folder", str(silo.folder))
    assert (done.returncode, f"{tmp_path / 'none'}: there is no such" in done.stderr) == (2, True), done.stderr


def test_a_question_without_a_terminal_is_an_error_with_a_sentence_and_nothing_is_signed(silo, passphrase):
    before = (silo.folder / "policy.json").read_bytes()
    done = silo.command(
        "policy", "edit", str(silo.folder), "--set", "limits.min_cohort=20",
        "--passphrase-file", str(passphrase), "--json", input="",
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "ABORTED"), done.stderr
    assert (silo.folder / "policy.json").read_bytes() == before


def test_no_editor_is_opened_without_a_terminal(silo, monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    done = silo.command("policy", "edit", str(silo.folder), input="")
    assert (done.returncode, "no terminal" in done.stderr) == (2, True), done.stderr
    assert not (silo.folder / "policy.edit.json").exists()


def test_no_folder_is_a_usage_error(silo):
    import os
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if name != "SILO_HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "silo_node.cli", "status"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "SILO_HOME" in done.stderr


def test_a_policy_of_an_older_version_is_refused(silo, passphrase, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({**POLICY, "version": 1}))
    done = silo.command("policy", str(silo.folder), "--file", str(policy), "--passphrase-file", str(passphrase))
    assert done.returncode == 2
    assert "higher version" in done.stderr


def test_importing_the_command_loads_nothing_heavy():
    import subprocess
    import sys

    program = (
        "import sys, silo_node.cli, silo_node.sync, silo_node.service.worker\n"
        "print([name for name in ('torch', 'monai', 'pydicom') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
