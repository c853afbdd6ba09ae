"""Caches, copies and logs stay within their limits over months; the oldest goes first."""

from __future__ import annotations

import os

import pytest

from silo_node.service import disk


@pytest.fixture
def config(silo):
    silo.settings(
        (silo.folder / "silo.toml").read_text().split("[training]")[0],
        limits="cache_gb = 0.003\nsent_mb = 1\nlogs_mb = 1\n",
    )
    return silo.config


def cache(config, name, *, used, size=2_000_000):
    folder = config.cache / name
    folder.mkdir(parents=True)
    (folder / "uint8.bin").write_bytes(os.urandom(size))
    for path in (folder / "uint8.bin", folder):
        os.utime(path, (used, used))


def test_the_longest_unused_cache_goes_and_the_newest_stays(config):
    for number, name in enumerate(("c", "a", "b")):
        cache(config, name, used=1_000_000 + number)
    assert disk.tidy(config)["caches"] == 2
    assert [path.name for path in config.cache.iterdir()] == ["b"]


def test_a_cache_that_is_too_large_by_itself_stays_because_the_next_round_needs_it(config):
    cache(config, "one", used=1_000_000, size=9_000_000)
    assert disk.tidy(config)["caches"] == 0
    assert (config.cache / "one" / "uint8.bin").stat().st_size == 9_000_000


def test_a_cache_that_was_read_lately_counts_as_used(config):
    cache(config, "a", used=1_000_000)
    cache(config, "b", used=1_000_001)
    os.utime(config.cache / "a" / "uint8.bin", (2_000_000, 1_000_000))
    assert disk.tidy(config)["caches"] == 1
    assert [path.name for path in config.cache.iterdir()] == ["a"]


def test_a_removal_that_a_crash_interrupted_is_finished(config):
    cache(config, ".going-a", used=1_000_000, size=10)
    disk.tidy(config)
    assert list(config.cache.iterdir()) == []


def test_the_oldest_copies_of_what_left_go_and_nothing_else(config):
    sent = config.folder / "sent"
    sent.mkdir()
    for number in range(1, 5):
        (sent / f"{number:08d}-update").write_bytes(bytes(400_000))
    (sent / "notes of ours").write_bytes(bytes(2_000_000))
    assert disk.tidy(config)["copies"] == 2
    assert sorted(path.name for path in sent.iterdir()) == ["00000003-update", "00000004-update", "notes of ours"]


def test_all_logs_with_their_pieces_are_kept_within_the_limit(config):
    (config.folder / "broker").mkdir(exist_ok=True)
    for name in disk.LOGS:
        path = config.folder / name
        for number in (1, 2, 3):
            path.with_name(f"{path.stem}-{number:06d}.log.gz").write_bytes(bytes(400_000))
    disk.tidy(config)
    for name in disk.LOGS:
        path = config.folder / name
        assert sorted(each.name for each in path.parent.glob(f"{path.stem}-0*")) == [
            f"{path.stem}-000002.log.gz",
            f"{path.stem}-000003.log.gz",
        ]


def test_it_leaves_what_proves_and_what_remembers(config):
    kept = ["evidence.db", "journal.db", "egress.db", "rounds.jsonl", "log/tile", "models/x.state", "inbox/a.dcm"]
    for name in kept:
        path = config.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(2_000_000))
    disk.tidy(config)
    assert all((config.folder / name).stat().st_size == 2_000_000 for name in kept)
