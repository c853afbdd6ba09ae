"""The journal: durable, put once, destroyable."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secure_aggregation import JournalConflict
from silo_node.errors import DiskFull
from silo_node.journal import INLINE_BYTES, JournalBusy, JournalDamaged, SqliteJournal

SECRET = b"the seed of a pair of silos, 32 bytes or so"
LARGE = os.urandom(9 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def everything_on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.rglob("*") if file.is_file())


def test_a_value_is_there_after_the_process_is_gone(path):
    SqliteJournal(path).put("round/st/1/1/keys", SECRET)
    again = SqliteJournal(path)
    assert again.get("round/st/1/1/keys") == SECRET
    assert again.get("round/st/1/1/other") is None


@pytest.mark.parametrize("value", [SECRET, LARGE, b"", bytes(INLINE_BYTES), bytes(INLINE_BYTES + 1)])
def test_a_key_is_decided_once(path, value):
    journal = SqliteJournal(path)
    journal.put("k", value)
    journal.put("k", value)
    assert journal.get("k") == value
    with pytest.raises(JournalConflict):
        journal.put("k", value + b"x")
    assert journal.get("k") == value


def test_what_is_forgotten_is_gone_from_the_disk(path):
    journal = SqliteJournal(path)
    for number in range(50):
        journal.put(f"round/st/1/1/{number}", SECRET + bytes([number]))
    journal.put("study/st/spent/1", b"stays")
    assert SECRET in everything_on_disk(path)
    journal.forget("round/st/1/1/")
    assert SECRET not in everything_on_disk(path)
    assert journal.get("round/st/1/1/0") is None
    assert journal.get("study/st/spent/1") == b"stays"


def test_forgetting_reaches_exactly_the_prefix(path):
    journal = SqliteJournal(path)
    for key in ("a/1", "a/10", "a/2", "ab", "b"):
        journal.put(key, b"x")
    journal.forget("a/1")
    assert journal.keys() == ["a/2", "ab", "b"]
    journal.forget("a/")
    assert journal.keys() == ["ab", "b"]


def test_large_values_lie_encrypted_beside_it(path):
    journal = SqliteJournal(path)
    journal.put("words", LARGE)
    assert LARGE[:64] not in everything_on_disk(path)
    assert SqliteJournal(path).get("words") == LARGE
    journal.forget("words")
    assert list(path.with_suffix(".d").iterdir()) == []


def test_a_damaged_large_value_is_noticed(path):
    journal = SqliteJournal(path)
    journal.put("words", LARGE)
    [file] = path.with_suffix(".d").iterdir()
    with file.open("r+b") as handle:
        handle.seek(5 << 20)
        handle.write(b"\0")
        handle.write(b"\1")
    with pytest.raises(JournalDamaged):
        journal.get("words")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(JournalDamaged):
        journal.get("words")


def test_only_the_owner_reads_it(path):
    journal = SqliteJournal(path)
    journal.put("words", LARGE)
    for file in [path, *path.with_suffix(".d").iterdir()]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.with_suffix(".d").stat().st_mode) == 0o700


def test_it_is_synced_and_overwrites(path):
    journal = SqliteJournal(path)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA secure_delete").fetchone() == (1,)


def test_a_full_disk_leaves_nothing_half_written(path):
    journal = SqliteJournal(path)
    journal.put("before", b"x")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(DiskFull, match="nothing was sent"):
            journal.put("words", LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.get("words") is None
    assert list(path.with_suffix(".d").iterdir()) == []
    journal.put("words", LARGE)
    assert journal.get("words") == LARGE


def test_a_file_without_its_row_is_removed_at_the_next_start(path):
    SqliteJournal(path).close()
    (path.with_suffix(".d") / "0123").write_bytes(b"half of something")
    SqliteJournal(path)
    assert list(path.with_suffix(".d").iterdir()) == []


def test_kill_9_at_any_moment_keeps_what_was_put(path):
    """A process that puts without end is killed; whatever it said it had put is there."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom silo_node.journal import SqliteJournal\n"
        f"journal = SqliteJournal(Path({str(path)!r}))\n"
        "for n in range(10**6):\n"
        "    journal.put(f'n/{n:07d}', bytes(200_000 if n % 5 == 0 else 100))\n"
        "    sys.stdout.write(f'{n}\\n'); sys.stdout.flush()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(60)][-1]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    said = int(rest[-1]) if rest else said
    journal = SqliteJournal(path)
    for n in range(said + 1):
        value = journal.get(f"n/{n:07d}")
        assert value is not None
        assert len(value) == (200_000 if n % 5 == 0 else 100)


def test_it_shows_no_secret(path):
    journal = SqliteJournal(path)
    journal.put("k", SECRET)
    assert "seed" not in repr(journal)
    with pytest.raises(JournalConflict) as caught:
        journal.put("k", b"other")
    assert "seed" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.binary(max_size=4)), max_size=25))
def test_it_behaves_like_a_dictionary_that_only_fills(tmp_path_factory, steps):
    journal = SqliteJournal(tmp_path_factory.mktemp("journal") / "journal.db")
    model: dict[str, bytes] = {}
    for prefix, number, value in steps:
        key = f"{prefix}/{number}"
        if value == b"":
            journal.forget(f"{prefix}/")
            model = {k: v for k, v in model.items() if not k.startswith(f"{prefix}/")}
        elif model.get(key, value) == value:
            journal.put(key, value)
            model[key] = value
        else:
            with pytest.raises(JournalConflict):
                journal.put(key, value)
    assert {key: journal.get(key) for key in journal.keys("")} == model
    journal.close()


def test_another_program_can_not_read_a_forgotten_value_through_sqlite(path):
    journal = SqliteJournal(path)
    journal.put("k", SECRET)
    journal.forget("k")
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM entry").fetchone() == (0,)
    other.close()


def test_forgetting_says_so_where_another_program_keeps_what_was_forgotten_on_the_disk(path):
    journal = SqliteJournal(path, patience=0.05)
    journal.put("round/st/1/1/k", SECRET)
    other = sqlite3.connect(path)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM entry").fetchone()
    with pytest.raises(JournalBusy, match="end it"):
        journal.forget("round/st/1/1/")
    other.close()
    journal.forget("round/st/1/1/")
    assert SECRET not in everything_on_disk(path)
