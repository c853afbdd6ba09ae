"""`silo evidence` and `silo export`: what an auditor takes home can be checked by the auditor's own command, alone."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest


def checked(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "protocol.transparency.verify", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def busy(silo, portal):
    """A silo whose steward has decided about a study."""
    portal.make_study()
    silo.decide()
    return silo


def test_entries_are_listed_and_sorted_out_by_type_and_day(busy):
    every = json.loads(busy.command("evidence", "list", "--json").stdout)["entries"]
    kinds = [each["type"] for each in every]
    assert "policy.changed" in kinds and "study.approved" in kinds
    assert [each["number"] for each in every] == list(range(len(every)))
    only = json.loads(busy.command("evidence", "list", "--type", "study.approved", "--json").stdout)["entries"]
    assert [each["type"] for each in only] == ["study.approved"]
    assert json.loads(busy.command("evidence", "list", "--since", "2999-01-01", "--json").stdout)["entries"] == []
    assert busy.command("evidence", "list", "--since", "tomorrow").returncode == 2


def test_a_proved_entry_is_believed_by_the_auditors_command_and_a_changed_one_is_not(busy, tmp_path):
    done = busy.command("evidence", "proof", "0", "--out", str(tmp_path / "proof"))
    assert done.returncode == 0, done.stderr
    record, proof, policy = (tmp_path / "proof" / name for name in ("entry-0.json", "entry-0.tlog-proof", "policy"))
    assert checked("proof", proof, "--record", record, "--policy", policy).returncode == 0
    record.write_bytes(record.read_bytes().replace(b"success", b"failure"))
    assert checked("proof", proof, "--record", record, "--policy", policy).returncode == 1


def test_an_entry_that_is_not_there_is_refused_with_what_there_is(busy):
    done = busy.command("evidence", "show", "4711")
    assert done.returncode == 2
    assert "entries 0 to" in done.stderr
    assert json.loads(busy.command("evidence", "show", "0", "--json").stdout)["v"] == 1


def test_an_export_is_checked_alone_and_lists_every_message_that_left(busy, tmp_path):
    done = busy.command("export", "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert checked(tmp_path / "out" / "log").returncode == 0
    rows = list(csv.DictReader((tmp_path / "out" / "sent.csv").open()))
    node = busy.node()
    assert rows and len(rows) == len(node.egress_log.rows()) == facts["messages"]
    node.close()
    assert all(row["digest"].startswith("sha256:") for row in rows)
    assert busy.command("export", "--out", str(tmp_path / "out")).returncode == 2


def test_a_log_that_was_changed_on_disk_is_found(busy):
    assert busy.command("evidence", "verify").returncode == 0
    tile = next(path for path in (busy.folder / "log" / "tile" / "entries").rglob("*") if path.is_file())
    tile.chmod(0o600)
    tile.write_bytes(tile.read_bytes().replace(b"success", b"failure"))
    done = busy.command("evidence", "verify")
    assert done.returncode == 1
    assert "EVIDENCE_DAMAGED" in done.stderr


def test_an_empty_log_says_so(tmp_path, portal):
    from tests.silo_node.conftest import SiloUnderTest

    silo = SiloUnderTest(tmp_path / "silo", portal)
    silo.command("init", str(silo.folder))
    done = silo.command("export", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "empty" in done.stderr
    assert not (tmp_path / "out").exists()
