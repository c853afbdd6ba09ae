"""docs/hospital-it.md says of each file of a silo's folder whether it belongs in the backup."""

from __future__ import annotations

import re

from tests.silo_node.conftest import ROOT

MADE_AGAIN = {"alive", "silo.lock", "steward.lock", "status.json", "watched.json", "receiver.json", "run.log"}
"""What a silo says about itself while it runs: "what else is there"."""


def table() -> dict[str, str]:
    """Name -> "yes..." or "no", from the page's rows."""
    page = (ROOT / "docs" / "hospital-it.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|.*\| (yes.*|no) \|$", page, re.MULTILINE)
    return {name.rstrip("/"): answer for names, answer in rows for name in re.findall(r"`([^`]+)`", names)}


def test_every_file_of_a_silo_that_has_worked_is_in_the_table_of_backups(ready, portal):
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(1))
    named = table()
    there = {path.name for path in ready.folder.iterdir() if not path.name.startswith(".")}
    of_databases = {f"{name}{end}" for name in named for end in ("-wal", "-shm")}
    left = {name for name in there - set(named) - of_databases - MADE_AGAIN if not name.endswith(".log")}
    assert left == set()
    assert {"keys", "trust.json", "egress.db", "evidence.db", "journal.db"} <= there, "a silo that has worked"


def test_what_nobody_can_make_again_is_backed_up_and_the_journal_is_not():
    named = table()
    assert all(
        named[name].startswith("yes")
        for name in ("keys", "trust.json", "opt_out.csv", "consent", "page.db", "egress.db")
    )
    assert named["journal.db"] == named["journal.d"] == "no"
