"""Who came in at the page, who was kept out and who may: entries of the silo's own log, which name no person."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from protocol.transparency.record import check_record
from silo_node.errors import DiskFull, Refused
from silo_node.evidence.evidence_log import EvidenceLog
from silo_node.page import accounts as module
from silo_node.page import entries
from silo_node.page.accounts import Accounts
from tests.silo_node.conftest import SiloUnderTest
from tests.silo_node.page.conftest import PASSWORD, PageUnderTest


def noted(silo: SiloUnderTest, *kinds: str) -> list[dict[str, Any]]:
    node = silo.node()
    found = [record for record in node.evidence.records() if record["type"] in kinds]
    node.close()
    return found


def private(silo: SiloUnderTest, kind: str, subject: str) -> Any:
    node = silo.node()
    [*_, last] = node.evidence.find(kind, subject)
    node.close()
    check_record(last.data)
    return last.payload


def test_signing_in_and_out_are_entries_with_an_id_and_the_name_beside_them(page: PageUnderTest):
    visitor = page.visitor("steward")
    visitor.post("/sign-out")
    user = page.accounts.known("dr-steward")
    first, second = noted(page.silo, "auth.login", "auth.logout")
    for record, kind in ((first, "auth.login"), (second, "auth.logout")):
        assert record["type"] == kind and record["outcome"] == "success"
        assert record["subject"] == {"kind": "user", "id": user.id, "version": None}
        assert record["actor"]["id"] == user.id and record["actor"]["role"] == "steward"
        assert private(page.silo, kind, user.id) == {"name": "dr-steward", "person": "Dr. Steward"}
        assert "dr-steward" not in str(record) and "Dr. Steward" not in str(record)


def test_an_entry_of_a_failure_is_made_with_the_pause_and_not_for_each_try(page: PageUnderTest):
    for _ in range(module.FREE_TRIES - 1):
        page.visitor().sign_in("it-nord", "wrong")
    assert noted(page.silo, "auth.failed") == []
    for _ in range(4):
        page.visitor().sign_in("it-nord", "wrong")
    [record] = noted(page.silo, "auth.failed")
    user = page.accounts.known("it-nord")
    assert record["subject"]["id"] == user.id and record["outcome"] == "denied"
    assert record["reasons"] == ["SIGN_IN_PAUSED"] and record["actor"]["role"] == "silo"
    assert private(page.silo, "auth.failed", user.id)["name"] == "it-nord"


def test_a_name_without_an_account_is_noted_nowhere_and_many_of_them_once(silo: SiloUnderTest):
    """It may be a password that was typed into the wrong field."""
    accounts = Accounts(silo.folder, wait=lambda seconds: None, note=lambda event: entries.record(silo.config, event))
    for number in range(int(module.MANY_WRONG) + 20):
        with pytest.raises(Refused):
            accounts.sign_in(f"my-secret-{number}", "wrong")
    for _ in range(module.FREE_TRIES + 1):
        with pytest.raises(Refused):
            accounts.sign_in("my-secret", "wrong")
    accounts.close()
    [record] = noted(silo, "auth.failed")
    assert record["subject"]["kind"] == "page"
    held = b"".join(path.read_bytes() for path in silo.folder.glob("*.db*"))
    assert b"my-secret" not in held


def test_accounts_that_come_change_and_go_are_entries(page: PageUnderTest):
    page.accounts.add("dr-x", role="steward", person="Dr. X", password=PASSWORD)
    user = page.accounts.known("dr-x")
    visitor = page.visitor("it")
    visitor.get("/password")
    visitor.post("/password", old=PASSWORD, new="another long password", again="another long password")
    page.accounts.remove("dr-x")
    records = noted(page.silo, "role.changed")[2:]  # beside the two users of the page under test
    assert [each["data"] for each in records] == [
        {"change": "added", "role": "steward"},
        {"change": "password", "role": "it"},
        {"change": "removed", "role": "steward"},
    ]
    assert [each["actor"]["role"] for each in records] == ["silo", "it", "silo"]
    assert records[0]["subject"]["id"] == records[2]["subject"]["id"] == user.id
    assert private(page.silo, "role.changed", user.id) == {"name": "dr-x", "person": "Dr. X"}


def test_what_cannot_be_noted_is_not_done(page: PageUnderTest, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: Any, **more: Any) -> str:
        raise DiskFull("no room for the audit log")

    visitor = page.visitor()
    monkeypatch.setattr(EvidenceLog, "record", full)
    assert visitor.sign_in("it-nord").status_code == 409
    assert page.accounts._db.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
    with pytest.raises(DiskFull):
        page.accounts.remove("it-nord")
    assert page.accounts.known("it-nord")


def test_users_by_command_are_entries_too(silo: SiloUnderTest):
    secret = silo.folder / "password"
    secret.write_text(PASSWORD)
    where = ("--folder", str(silo.folder), "--json")
    silo.command("page", "user", "add", "it-nord", "--role", "it", "--password-file", str(secret), *where)
    assert silo.command("page", "user", "remove", "it-nord", *where).returncode == 0
    assert [each["data"]["change"] for each in noted(silo, "role.changed")] == ["added", "removed"]


def test_accounts_of_the_first_format_are_taken_over(silo: SiloUnderTest):
    new = Accounts(silo.folder)
    new.add("it-nord", role="it", person="", password=PASSWORD)
    new.close()
    with closing(sqlite3.connect(silo.folder / "page.db", isolation_level=None)) as db:
        for statement in (
            "ALTER TABLE users DROP COLUMN id",
            "DROP TABLE tries",
            *module.STEPS[0],
            "PRAGMA user_version = 0",
        ):
            db.execute(statement)
    taken = Accounts(silo.folder)
    assert len(taken.known("it-nord").id) == 16
    assert taken.sign_in("it-nord", PASSWORD)
    taken.close()
