"""`silo trust`, `silo policy` and `silo approve` where two people decide for a hospital; in this process, for speed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from protocol.approval import open_trust
from protocol.canonical import b64, decode
from protocol.signing import Envelope
from protocol.trust import TRUST_TYPE
from silo_node.cli import app
from silo_node.errors import Refused, UsageError
from silo_node.health import status
from silo_node.steward import decisions, documents, trust_changes
from tests.protocol.software_passkey import SoftwarePasskey
from tests.silo_node.conftest import PASSPHRASE, POLICY
from tests.silo_node.test_gate import Door

SECOND = b"the passphrase of another person"


class Terminal:
    """Both people's commands in one silo's folder."""

    def __init__(self, silo: Any, folder: Any) -> None:
        self.silo, self.runner = silo, CliRunner()
        self.files = {}
        for name, secret in (("Dr. Steward", PASSPHRASE), ("Ben", SECOND)):
            self.files[name] = folder / f"passphrase-{name[:3]}"
            self.files[name].write_bytes(secret + b"\n")

    def __call__(self, *words: str, by: str | None = None, fails: int = 0) -> Any:
        """The JSON answer of `silo WORDS FOLDER ... --json`."""
        group = 2 if words[0] in ("trust", "policy") and not words[1].startswith("-") else 1
        line = [*words[:group], str(self.silo.folder), *words[group:], "--json"]
        if by is not None:
            line += ["--passphrase-file", str(self.files[by])]
        done = self.runner.invoke(app, line)
        assert done.exit_code == fails, (done.output, done.exception)
        return json.loads(done.stdout.splitlines()[-1])

    def text(self, *words: str) -> str:
        done = self.runner.invoke(app, [*filter(None, words[:2]), str(self.silo.folder), *words[2:]])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    def two_people(self) -> None:
        """Dr. Steward and Ben, who must both agree."""
        self("trust", "new-key", "--person", "Ben", by="Ben")
        self("trust", "propose", "--needed", "2")
        self("trust", "sign", "--yes", by="Dr. Steward")
        self("trust", "sign", "--yes", by="Ben")
        self("trust", "apply")


@pytest.fixture
def terminal(silo: Any, tmp_path: Any) -> Terminal:
    return Terminal(silo, tmp_path)


def policy_of(silo: Any) -> Any:
    return documents.load_policy(silo.config, documents.load_trust(silo.config), now=datetime.now(UTC))[1]


def evidence(silo: Any, kind: str) -> list[dict[str, Any]]:
    node = silo.node()
    try:
        rows = node.evidence._db.execute("SELECT record FROM entry ORDER BY number").fetchall()
    finally:
        node.close()
    return [each for (record,) in rows if (each := decode(record))["type"] == kind]


def test_a_second_person_comes_in_by_the_signatures_of_both_and_the_portal_learns_it(terminal, silo, portal):
    first = documents.load_trust(silo.config)
    draft = terminal("trust", "new-key", "--person", "Ben", by="Ben")["draft"]
    assert draft["version"] == 2 and draft["changes"][0].startswith("New: a key of Ben")
    assert terminal("trust", "apply", fails=3)["error"]["code"] == "TRUST_THRESHOLD"
    draft = terminal("trust", "propose", "--needed", "2")["draft"]
    assert draft["changes"][1] == "From now on 2 people must agree, instead of 1."
    assert draft["missing"] == {"in_force": 1, "draft": 2}
    assert terminal("trust", "sign", "--yes", by="Ben")["draft"]["missing"] == {"in_force": 1, "draft": 1}
    assert terminal("trust", "apply", fails=3)["error"]["code"] == "TRUST_THRESHOLD"
    assert documents.load_trust(silo.config).version == 1
    terminal("trust", "sign", "--yes", by="Ben", fails=2)
    assert terminal("trust", "sign", "--yes", by="Dr. Steward")["draft"]["missing"] == {"in_force": 0, "draft": 0}
    applied = terminal("trust", "apply")
    assert (applied["version"], applied["sent"], applied["policy_missing"]) == (2, True, 1)
    trust = documents.load_trust(silo.config)
    assert open_trust(Envelope.from_dict(portal.trust), first) == trust and trust.roles == {"steward": 2}
    (record,) = evidence(silo, "role.changed")
    assert record["refs"] == {"before": first.digest, "trust": trust.digest} and record["data"]["needed"] == 2
    assert (silo.config.folder / "trust" / "1.json").exists()
    assert not trust_changes.draft_path(silo.config).exists()
    shown = terminal("trust", "show")
    assert shown["people"] == ["Ben", "Dr. Steward"] and shown["needed"] == 2 and shown["draft"] is None
    assert all(each["fingerprint"].replace(" ", "") == each["keyid"] for each in shown["keys"])
    assert "2 of 2 people must agree" in terminal.text("trust", "show")


def test_a_change_of_the_draft_takes_its_signatures_off(terminal):
    terminal("trust", "new-key", "--person", "Ben", by="Ben")
    assert terminal("trust", "sign", "--yes", by="Dr. Steward")["draft"]["signed"]
    assert terminal("trust", "propose", "--needed", "2")["draft"]["signed"] == []


def test_a_key_is_extended_and_taken_out(terminal, silo):
    terminal.two_people()
    ben = next(name for name, key in documents.load_trust(silo.config).keys.items() if key.person == "Ben")
    terminal("trust", "propose", "--extend", ben[:16], "--until", "2031-05-06")
    for person in ("Ben", "Dr. Steward"):
        terminal("trust", "sign", "--yes", by=person)
    terminal("trust", "apply")
    assert documents.load_trust(silo.config).keys[ben].not_after.date().isoformat() == "2031-05-06"
    assert "only 1 have a key" in terminal("trust", "propose", "--remove", ben[:16], fails=2)["error"]["sentence"]
    terminal("trust", "propose", "--needed", "1")
    terminal("trust", "propose", "--remove", ben[:16])
    terminal("trust", "sign", "--yes", by="Dr. Steward")
    assert terminal("trust", "apply", fails=3)["error"]["code"] == "TRUST_THRESHOLD"
    terminal("trust", "sign", "--yes", by="Ben")
    terminal("trust", "apply")
    assert {key.person for key in documents.load_trust(silo.config).keys.values()} == {"Dr. Steward"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["propose"], "say what to change"),
        (["propose", "--remove", "00000000"], "beginning of 0 keys"),
        (["propose", "--remove", "0"], "beginning of"),
        (["propose", "--needed", "2"], "only 1 have a key"),
        (["new-key", "--person", "dr.  STEWARD"], "one person one way"),
        (["new-key"], "name the person"),
        (["sign", "--yes"], "there is no draft"),
        (["apply"], "there is no draft"),
    ],
)
def test_a_change_that_makes_no_sense_says_what_to_do_and_leaves_nothing(terminal, silo, words, problem):
    keys = sorted(silo.config.keys.iterdir())
    by = "Ben" if words[0] != "apply" and words[0] != "propose" else None
    assert problem in terminal("trust", *words, by=by, fails=2)["error"]["sentence"]
    assert not trust_changes.draft_path(silo.config).exists()
    assert sorted(silo.config.keys.iterdir()) == keys


def test_a_passkey_comes_in_by_a_file_and_one_of_the_portals_page_must_say_so(terminal, silo, portal, tmp_path):
    own = SoftwarePasskey(origin="http://localhost:8765", rp_id="localhost")
    host = portal.address.replace("127.0.0.1", "localhost")
    text = (silo.folder / "silo.toml").read_text().replace(portal.address, host)
    (silo.folder / "silo.toml").write_text(text)
    portals = SoftwarePasskey(8, origin=host, rp_id="localhost")
    file = tmp_path / "passkey.json"
    file.write_text(json.dumps({portals.passkey.keyid: portals.entry("Dr. Steward")}))
    assert 'page must be "portal"' in terminal("trust", "propose", "--add", str(file), fails=2)["error"]["sentence"]
    entries = {own.passkey.keyid: own.entry("Ben"), portals.passkey.keyid: portals.entry("Dr. Steward", page="portal")}
    file.write_text(json.dumps(entries))
    changes = " ".join(terminal("trust", "propose", "--add", str(file))["draft"]["changes"])
    assert "used on http://localhost:8765" in changes and "decided on the portal's page" in changes
    terminal("trust", "sign", "--yes", by="Dr. Steward")
    terminal("trust", "apply")
    remarks = {each["keyid"]: each["remark"] for each in terminal("trust", "show")["keys"]}
    assert remarks[own.passkey.keyid] is None and remarks[portals.passkey.keyid] == "decided on the portal's page"


def test_a_passkey_that_moves_to_another_page_is_said_before_anybody_signs(terminal, silo, portal, tmp_path):
    """Its keyid is of its public key alone: origin, name and credential can change under the same keyid."""
    own = SoftwarePasskey(origin="http://localhost:8765", rp_id="localhost")
    file = tmp_path / "passkey.json"
    file.write_text(json.dumps({own.passkey.keyid: own.entry("Ben")}))
    terminal("trust", "propose", "--add", str(file))
    terminal("trust", "sign", "--yes", by="Dr. Steward")
    terminal("trust", "apply")
    host = portal.address.replace("127.0.0.1", "localhost")
    (silo.folder / "silo.toml").write_text((silo.folder / "silo.toml").read_text().replace(portal.address, host))
    moved = own.entry("Ben", origin=host, page="portal", credential=b64(b"another"))
    file.write_text(json.dumps({own.passkey.keyid: moved}))
    changes = terminal("trust", "propose", "--add", str(file))["draft"]["changes"]
    assert any(host in each and "http://localhost:8765" in each for each in changes), changes
    assert any("a page that the portal serves" in each for each in changes), changes
    assert any("credential" in each for each in changes), changes


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "\udcff"])
def test_a_file_with_a_key_that_is_no_json_is_said_to_be(terminal, tmp_path, text):
    (tmp_path / "passkey.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    error = terminal("trust", "propose", "--add", str(tmp_path / "passkey.json"), fails=2)["error"]
    assert "is not JSON" in error["sentence"]


def test_a_damaged_draft_or_one_of_another_version_is_not_signed(terminal, silo):
    terminal("trust", "new-key", "--person", "Ben", by="Ben")
    path = trust_changes.draft_path(silo.config)
    whole = path.read_text()
    for wrong in ("{}", '{"payload": "*", "signatures": []}', '{"payload": "e30=", "signatures": []}', "no"):
        path.write_text(wrong)
        terminal("trust", "sign", "--yes", by="Ben", fails=2)
    path.write_text(whole)
    terminal("trust", "sign", "--yes", by="Dr. Steward")
    signed = path.read_text()
    terminal("trust", "apply")
    path.write_text(signed)
    assert "propose again" in terminal("trust", "sign", "--yes", by="Ben", fails=2)["error"]["sentence"]
    assert terminal("trust", "propose", "--drop") == {"draft": None}
    assert not path.exists()


def test_two_people_sign_the_policy_and_the_study_before_a_round_runs(terminal, silo, portal, tmp_path):
    terminal.two_people()
    portal.make_study()
    study = portal.manifest.study
    with pytest.raises(Refused, match="POLICY_SIGNATURE"):
        policy_of(silo)
    assert terminal("policy", "sign", "--yes", by="Ben")["missing"] == 0
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({**POLICY, "limits": {"min_cohort": 1}}))
    waits = terminal("policy", "--file", str(file), by="Dr. Steward")
    assert waits["missing"] == 1
    assert policy_of(silo).version == 1
    assert (
        "has not signed yet"
        in terminal("policy", "sign", "--yes", "--person", "Dr. Steward", by="Dr. Steward", fails=2)["error"][
            "sentence"
        ]
    )
    assert terminal("policy", "sign", "--yes", "--send", by="Ben") == {
        "policy": waits["policy"],
        "sent": True,
        "missing": 0,
    }
    assert policy_of(silo).version == 2

    (listed,) = terminal("approve", "--list")["studies"]
    assert (listed["study"], listed["decision"], listed["missing"]) == (study, None, 2)
    assert terminal("approve", study, "--yes", by="Ben")["missing"] == 1
    door = Door(silo, portal)
    assert door.refused() == "APPROVAL_THRESHOLD"
    assert terminal("approve", study, "--yes", by="Ben")["missing"] == 1
    assert door.refused() == "APPROVAL_THRESHOLD"
    assert terminal("approve", study, "--yes", by="Dr. Steward")["missing"] == 0
    assert len(door.ask().approvals) == 3
    terminal("approve", study, "--revoke", "--reason", "Doubts.", "--yes", by="Ben")
    assert door.refused() == "APPROVAL_REVOKED"
    door.node.close()


def test_a_policy_is_previewed_and_edited_without_a_file(terminal, silo, portal):
    portal.make_study()
    terminal("approve", portal.manifest.study, "--yes", by="Dr. Steward")
    (seen,) = terminal("policy", "preview")["studies"]
    assert (seen["study"], seen["decision"]) == (portal.manifest.study, "PERMIT")
    found = terminal("policy", "preview", "--set", "permission=DUO:0000011")
    (seen,) = found["studies"]
    assert (seen["decision"], seen["before"]) == ("DENY", "PERMIT") and seen["reasons"]
    assert found["new"] and found["gone"]
    assert policy_of(silo).version == 1
    terminal("policy", "edit", "--set", "limits.min_cohort=50", "--yes", by="Dr. Steward")
    policy = policy_of(silo)
    assert (policy.version, policy.limits.min_cohort, policy.permission) == (2, 50, "DUO:0000042")
    for wrong in ("nothing", "permission=DUO:1", "limits.min_cohort=-1", "schema.x=1"):
        terminal("policy", "preview", "--set", wrong, fails=2)


def test_a_policy_is_edited_as_commented_text_and_a_mistake_loses_nothing(terminal, silo, tmp_path, monkeypatch):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i \'s/"share_metrics": false/"share_metrics": true/\' "$1"\n')
    editor.chmod(0o700)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "false")
    assert "nothing was changed" in terminal("policy", "edit", "--yes", by="Dr. Steward", fails=2)["error"]["sentence"]
    draft = silo.folder / "policy.edit.json"
    assert draft.read_text().count("// ") > 6
    draft.write_text(draft.read_text().replace(",\n", "\n", 1))
    monkeypatch.setenv("EDITOR", str(editor))
    assert "not JSON" in terminal("policy", "edit", "--yes", by="Dr. Steward", fails=2)["error"]["sentence"]
    draft.unlink()
    terminal("policy", "edit", "--yes", by="Dr. Steward")
    assert policy_of(silo).share_metrics
    assert not draft.exists()


def test_a_new_version_of_a_study_is_shown_against_the_last_one_decided_about(terminal, silo, portal):
    portal.make_study()
    study, first = portal.manifest.study, portal.manifest_digest
    assert terminal("approve", study, "--yes", by="Dr. Steward")["changes"] is None
    portal.make_study(summary="Adds a larger constant to every weight.")
    found = terminal("approve", study, "--yes", by="Dr. Steward")["changes"]
    assert (found["manifest"], found["decision"]) == (first, "approve")
    assert found["summary"] == "Nothing changed but: Summary."
    assert [each["path"] for each in found["fields"]] == ["summary"]
    assert terminal("approve", study, "--yes", by="Dr. Steward")["changes"]["manifest"] == first
    portal.make_study(summary="Adds a larger constant to every weight.", title="Another")
    done = terminal.runner.invoke(app, ["approve", str(silo.folder), study], input="n\n")
    assert "Nothing changed but: Title." in done.output and "title: A constant -> Another" in done.output
    assert "Study, now: Another." in done.output and "Study, no longer: A constant." in done.output
    for path in (silo.config.studies / study).glob("*.json"):
        path.unlink()
    done = terminal.runner.invoke(app, ["approve", str(silo.folder), study], input="n\n")
    assert "no longer here" in done.output


def test_what_ends_within_two_weeks_is_said_by_status(terminal, silo, portal):
    portal.make_study()
    soon = (datetime.now(UTC) + timedelta(days=10)).date().isoformat()
    assert decisions.reminders(silo.config) == []
    terminal("approve", portal.manifest.study, "--yes", "--until", soon, by="Dr. Steward")
    silo.policy(limits={"expires": soon})
    report = status.report(silo.config)
    assert [each["until"] for each in report["reminders"]] == [soon, soon]
    assert all("in 10 days" in each["sentence"] or "in 11 days" in each["sentence"] for each in report["reminders"])
    soon_over = decisions.reminders(silo.config, datetime.now(UTC) + timedelta(days=12))
    assert any("approval" in each["what"] and "was over on" in each["sentence"] for each in soon_over)
    later = decisions.reminders(silo.config, datetime.now(UTC) + timedelta(days=725))
    assert any("of a steward ends on" in each["sentence"] and "--extend" in each["sentence"] for each in later)
    with pytest.raises(UsageError):
        trust_changes.sign(silo.config, passphrase=PASSPHRASE)


def test_nobody_is_reminded_of_an_approval_of_a_study_that_has_ended(terminal, silo, portal):
    """A silo that is left alone for years would else show each study that it was ever in."""
    portal.make_study()
    study = portal.manifest.study
    terminal("approve", study, "--yes", by="Dr. Steward")
    end = datetime.fromisoformat(f"{portal.manifest.dates.end}T12:00:00+00:00")
    named = f"the approval of {study}"
    assert named in [each["what"] for each in decisions.reminders(silo.config, end)]
    assert named not in [each["what"] for each in decisions.reminders(silo.config, end + timedelta(days=1))]


def test_status_says_of_each_problem_what_to_do_and_which_study_asks(terminal, silo):
    live = {"state": "idle", "problems": [], "studies": [
        {"kind": "study", "study": "st-asks", "title": "A question", "manifest": "", "state": "approved"},
        {"kind": "completed", "study": "st-over", "title": None, "manifest": None, "state": None},
    ]}  # fmt: skip
    (silo.folder / "status.json").write_text(json.dumps({**live, "state": "stopped"}))
    said = terminal.text("status", "")
    assert "Nothing is wrong" in said and "does not run now" in said
    assert "st-asks asks" in said and "`silo approve st-asks`" in said and "A question" in said
    assert "st-over" not in said
    (silo.folder / "status.json").write_text(json.dumps(live))
    said = terminal.text("status", "")
    assert "NOT_RUNNING" in said and "what to do: " in said and "systemctl" in said and "Nothing is wrong" not in said


def test_the_study_alone_is_enough_where_the_environment_names_the_folder(terminal, silo, portal, monkeypatch):
    portal.make_study()
    monkeypatch.setenv("SILO_HOME", str(silo.folder))
    for line in (["approve", portal.manifest.study], ["approve", str(silo.folder), portal.manifest.study]):
        done = terminal.runner.invoke(app, line, input="n\n")
        assert done.exit_code == 2 and "This hospital's policy says: PERMIT" in done.output
    done = terminal.runner.invoke(app, ["resume", portal.manifest.study, "--reason", "x"])
    assert "is not paused at this silo" in done.output


def test_a_passkey_signs_a_draft_of_trust_json(terminal, silo, tmp_path):
    own = SoftwarePasskey(origin="http://localhost:8765", rp_id="localhost")
    file = tmp_path / "passkey.json"
    file.write_text(json.dumps({own.passkey.keyid: own.entry("Ben")}))
    terminal("trust", "propose", "--add", str(file))
    draft = trust_changes.read_draft(silo.config)
    stranger = SoftwarePasskey(9, origin="http://localhost:8765", rp_id="localhost")
    with pytest.raises(UsageError, match="neither"):
        trust_changes.add_signature(silo.config, stranger.envelope(TRUST_TYPE, draft.envelope.payload))
    with pytest.raises(UsageError, match="different things"):
        trust_changes.add_signature(silo.config, own.envelope(TRUST_TYPE, b"{}"))
    elsewhere = own.envelope(TRUST_TYPE, draft.envelope.payload, origin="http://localhost:1")
    with pytest.raises(UsageError, match="another page"):
        trust_changes.add_signature(silo.config, elsewhere)
    signed = trust_changes.add_signature(silo.config, own.envelope(TRUST_TYPE, draft.envelope.payload))
    assert signed.missing == (1, 0) and trust_changes.read_draft(silo.config) == signed


def test_a_withdrawal_ends_the_rounds_of_the_running_node(ready, portal, tmp_path):
    """The real process, the real command: the round after the withdrawal is refused, the one before it was held."""
    secret = tmp_path / "passphrase"
    secret.write_bytes(PASSPHRASE + b"\n")
    ready.train_once()
    portal.wait(lambda: portal.finished(1))
    words = ("--revoke", "--reason", "The board asked.", "--yes", "--passphrase-file", str(secret), "--json")
    done = ready.command("approve", str(ready.folder), portal.manifest.study, *words)
    assert done.returncode == 0 and json.loads(done.stdout)["decision"] == "revoke"
    portal.go_on(hold=True)
    ((code, sentence),) = portal.wait(portal.refused)
    assert code == "APPROVAL_REVOKED" and "taken back" in sentence
    assert {each.path.rsplit("/", 1)[1] for each in portal.received if ".2.1/" in each.path} == {"refusal"}
