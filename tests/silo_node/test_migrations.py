"""A silo's databases outlive the software that wrote them: files of earlier formats, as SQL in formats/, are taken over."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from silo_node import __version__, journal, software
from silo_node.evidence import egress_log, evidence_log
from silo_node.evidence.egress_log import EgressLog
from silo_node.evidence.evidence_log import EvidenceLog
from silo_node.imaging import cache, index
from silo_node.journal import SqliteJournal
from silo_node.keys import Keys
from silo_node.pacs import book
from silo_node.pacs.book import Book
from silo_node.page import accounts
from silo_node.page.accounts import Accounts
from silo_node.service.migrations import UpgradeNeeded, migrate

FORMATS = Path(__file__).parent / "formats"
STEPS = {
    "journal": journal.STEPS,
    "egress": egress_log.STEPS,
    "evidence": evidence_log.STEPS,
    "index": index.STEPS,
    "slots": cache.STEPS,
    "page": accounts.STEPS,
    "pacs": book.STEPS,
}


def old(folder, name):
    """The database as the first version of the software wrote it."""
    path = folder / f"{name}.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript((FORMATS / f"{name}-0.sql").read_text())
    return path


def opened(folder, name, silo):
    """Open and close it as the silo does; returns what a reader sees of the content that the old file has."""
    if name == "journal":
        store = SqliteJournal(folder / "journal.db")
        found = {key: store.get(key) for key in store.keys("")}
    elif name == "egress":
        store = EgressLog(folder / "egress.db")
        found = store.rows(), store.totals()
    elif name == "evidence":
        store = EvidenceLog(folder, Keys(silo.config), silo="site-1")
        found = [record["type"] for record in store.records()], store.counts()
    elif name == "index":
        return [(file.path, file.patient, file.problem) for file in index.files(folder / "index.db")]
    elif name == "page":
        store = Accounts(folder)
        found = [(each.name, each.role, each.person, len(each.id)) for each in store.users()]
    elif name == "pacs":
        store = Book(folder / "pacs.db")
        found = store.counts()
    else:
        cache.Cache.existing(folder)
        with closing(sqlite3.connect(folder / "slots.db")) as db:
            return db.execute("SELECT salt, hex(key), hex(patient), seen FROM form, slots").fetchall()
    store.close()
    return found


CONTENT = {
    "journal": {"round/st-1/1/1/keys": b"\x01\x02", "trained/st-1/sha256:ab": b"1"},
    "evidence": (["policy.changed", "study.approved"], {"entries": 2, "sequenced": 1}),
    # Not the file of the inbox: nothing says where it has to lie, so it is scanned again.
    "index": [(Path("/data/a/b.dcm"), "PAT-0001", None), (Path("/data/c.dcm"), None, "NOT_DICOM")],
    "slots": [(b"\x01\x02", "AA", "BB", None)],
    "page": [("it", "it", "", 16)],
    "pacs": {"there": 1},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_database_of_the_first_version_is_taken_over_with_its_content(silo, tmp_path, name):
    path = old(tmp_path, name)
    found = opened(tmp_path, name, silo)
    if name == "egress":
        [row], totals = found
        assert (row["round"], row["bytes"], row["status"]) == ("st-1.1.1", 4096, 200)
        assert totals["poll"] == {"requests": 1, "bytes_up": 200, "bytes_down": 0}
    else:
        assert found == CONTENT[name]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(STEPS[name]),)


@pytest.mark.parametrize("name", STEPS)
def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(silo, tmp_path, name):
    path = old(tmp_path, name)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(UpgradeNeeded, match=rf"{path.name} was written by a newer version.*99.*Nothing was changed"):
        opened(tmp_path, name, silo)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", STEPS)
def test_a_new_database_has_the_same_tables_as_one_that_was_upgraded(tmp_path, name):
    def tables(path):
        with closing(sqlite3.connect(path)) as db:
            migrate(db, STEPS[name])
            master = db.execute("SELECT name, type FROM sqlite_master ORDER BY name").fetchall()
            return master, [db.execute(f"PRAGMA table_info({table})").fetchall() for table, _ in master]

    assert tables(tmp_path / "new.db") == tables(old(tmp_path, name))


def test_a_step_that_fails_leaves_the_version_before_it(tmp_path):
    steps = (("CREATE TABLE a(x)",), ("ALTER TABLE a ADD COLUMN y", "INSERT INTO nowhere VALUES (1)"))
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        with pytest.raises(sqlite3.OperationalError):
            migrate(db, steps)
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert [name for _, name, *_ in db.execute("PRAGMA table_info(a)")] == ["x"]


def test_two_processes_that_upgrade_at_once_do_each_step_once(tmp_path):
    """The second waits for the first, and finds that its step is done: a second ALTER would fail."""
    first, second = (sqlite3.connect(tmp_path / "x.db", isolation_level=None) for _ in range(2))
    steps = (("CREATE TABLE a(x)",), ("ALTER TABLE a ADD COLUMN y",))

    class Late:
        """Reads the version, then is overtaken by the other process."""

        def __init__(self):
            self.overtaken = False
            self.in_transaction = False

        def execute(self, sql):
            found = second.execute(sql)
            if not self.overtaken:
                self.overtaken, found = True, [found.fetchone()]
                migrate(first, steps)
                return type("Row", (), {"fetchone": lambda _: found[0]})()
            return found

    assert migrate(Late(), steps) == 0
    assert second.execute("PRAGMA user_version").fetchone() == (2,)
    first.close()
    second.close()


def test_silo_run_refuses_a_folder_of_newer_software(ready):
    SqliteJournal(ready.folder / "journal.db").close()
    with closing(sqlite3.connect(ready.folder / "journal.db")) as db:
        db.execute("PRAGMA user_version = 99")
    done = ready.command("run", str(ready.folder))
    assert done.returncode == 2
    assert "UPGRADE_NEEDED" in done.stderr
    assert "journal.db" in done.stderr


def test_another_version_of_the_software_is_in_the_silos_own_log(silo):
    node = silo.node()
    software.note(node)
    updated = [record for record in node.evidence.records() if record["type"] == "software.updated"]
    assert updated == []
    (silo.folder / "software.json").write_text(json.dumps({"version": "0.0.9"}))
    for _ in range(2):
        software.note(node)
    [record] = [record for record in node.evidence.records() if record["type"] == "software.updated"]
    node.close()
    assert record["subject"]["version"] == __version__
    assert record["data"] == {"before": "0.0.9"}
