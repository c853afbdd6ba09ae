"""The log as files: the same tree as in memory, whatever the sizes, and nothing that a crash or a URL can spoil."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.signing import SigningKey
from protocol.transparency.note import Checkpoint, LogKey, sign_checkpoint
from protocol.transparency.tiles import (
    MAX_ENTRY,
    FolderTileStore,
    TileError,
    TilePath,
    append,
    consistency_from_tiles,
    entries,
    inclusion_from_tiles,
    parse_path,
    paths,
    root_at,
    split_bundle,
    tile_path,
)
from protocol.transparency.tree import (
    EMPTY_ROOT,
    ProofError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root,
    verify_consistency,
    verify_inclusion,
)


class MemoryStore(dict[str, bytes]):
    """Files in memory, so that thousands of appends cost nothing."""

    def read(self, path: str) -> bytes | None:
        return self.get(path)

    def write(self, path: str, data: bytes) -> None:
        self[path] = data


BIG = 66_200  # beyond 256 * 256, so that level 2 begins
DATAS = [b"%d" % at for at in range(BIG)]
HASHES = [leaf_hash(data) for data in DATAS]


@pytest.fixture(scope="module")
def big() -> MemoryStore:
    store = MemoryStore()
    assert append(store, 0, DATAS) == (BIG, root(HASHES))
    return store


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_tiles_hold_the_same_tree_however_it_grew(steps: list[int]) -> None:
    store, size = MemoryStore(), 0
    sizes = [0]
    for step in steps:
        size, top = append(store, size, DATAS[size : size + step])
        assert top == root(HASHES[:size])
        sizes.append(size)
    assert list(entries(store, size)) == DATAS[:size]
    assert store == expected_files(sizes)
    for old, new in pairwise(sizes):
        assert root_at(store, old) == root(HASHES[:old])
        if old:
            assert consistency_from_tiles(store, old, new) == consistency_proof(HASHES, old, new)


def expected_files(sizes: Sequence[int]) -> dict[str, bytes]:
    """Every file of these checkpoints, from the definition: hash i of tile n at level l is MTH of its 256^l leaves."""
    files = {}
    for size in sizes:
        for level in range(4):
            count = size // 256**level
            for n in range(-(-count // 256)):
                hashes = [
                    root(HASHES[(n * 256 + i) * 256**level : (n * 256 + i + 1) * 256**level])
                    for i in range(min(256, count - n * 256))
                ]
                files[tile_path(level, n, len(hashes))] = b"".join(hashes)
        for n in range(-(-size // 256)):
            part = DATAS[n * 256 : min(size, n * 256 + 256)]
            files[tile_path(None, n, len(part))] = b"".join(len(data).to_bytes(2, "big") + data for data in part)
    return files


def test_proofs_from_tiles_are_those_of_the_plain_tree(big: MemoryStore) -> None:
    top = root(HASHES)
    for index in (0, 1, 255, 256, 257, 65_535, 65_536, 65_537, BIG - 1):
        proof = inclusion_from_tiles(big, index, BIG)
        assert proof == inclusion_proof(HASHES, index, BIG)
        verify_inclusion(HASHES[index], index, BIG, proof, top)
    for old in (1, 2, 255, 256, 257, 511, 512, 65_280, 65_535, 65_536, 65_537, BIG):
        proof = consistency_from_tiles(big, old, BIG)
        assert proof == consistency_proof(HASHES, old, BIG)
        verify_consistency(old, BIG, proof, root(HASHES[:old]), top)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_size_that_full_tiles_cover_can_be_proved(big: MemoryStore, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 256)) * 256
    index = data.draw(st.integers(0, size - 1))
    assert root_at(big, size) == root(HASHES[:size])
    verify_inclusion(HASHES[index], index, size, inclusion_from_tiles(big, index, size), root(HASHES[:size]))


def test_exactly_the_files_of_the_definition_exist(big: MemoryStore) -> None:
    assert sorted(big) == sorted(paths(BIG)) == sorted(expected_files([BIG]))
    assert {path for path in big if path.startswith("tile/2/")} == {"tile/2/000.p/1"}
    # The specification's own example: 70,000 entries.
    names = list(paths(70_000))
    assert sum(name.startswith("tile/0/") and ".p/" not in name for name in names) == 273
    assert [name for name in names if ".p/" in name] == [
        "tile/entries/273.p/112",
        "tile/0/273.p/112",
        "tile/1/001.p/17",
        "tile/2/000.p/1",
    ]
    assert list(paths(256)) == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
    assert list(paths(0)) == []


@pytest.mark.parametrize(
    ("path", "tile"),
    [
        ("tile/0/x001/x234/067", TilePath(0, 1_234_067, 256)),
        ("tile/0/000", TilePath(0, 0, 256)),
        ("tile/63/999.p/255", TilePath(63, 999, 255)),
        ("tile/1/x001/000.p/1", TilePath(1, 1000, 1)),
        ("tile/entries/x123/456", TilePath(None, 123_456, 256)),
    ],
)
def test_paths_are_written_and_read_as_specified(path: str, tile: TilePath) -> None:
    assert tile_path(tile.level, tile.index, tile.width) == path
    assert parse_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/64/000",
        "tile/00/000",
        "tile/0/0",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/",
        "tile/0/../0/000",
        "tile/data/000",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/٠٠٠",
        "checkpoint",
        "",
    ],
)
def test_other_spellings_are_no_tile(path: str) -> None:
    assert parse_path(path) is None


@given(st.text("tile/0123456789xp.entries", max_size=40) | st.text(max_size=30))
def test_reading_a_path_never_fails(path: str) -> None:
    found = parse_path(path)
    assert found is None or tile_path(found.level, found.index, found.width) == path


def test_a_path_from_a_url_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    store = FolderTileStore(tmp_path / "log")
    for path in ("../secret", "tile/../../secret", str(tmp_path / "secret"), "policy", "", "tile/0/000.p/0"):
        assert store.read(path) is None
        with pytest.raises(TileError, match="not the path"):
            store.write(path, b"x")


def test_a_folder_keeps_what_is_written_and_nothing_else(tmp_path: Path) -> None:
    store = FolderTileStore(tmp_path / "log")
    size, top = append(store, 0, DATAS[:300])
    store.write("checkpoint", b"one")
    store.write("checkpoint", b"two")
    assert store.read("checkpoint") == b"two"
    assert store.read("tile/0/000/000") is None  # below a file, where a folder would have to be
    found = {str(path.relative_to(tmp_path / "log")) for path in (tmp_path / "log").rglob("*") if path.is_file()}
    assert found == {"checkpoint", *paths(300)}
    assert root_at(store, size) == top


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderTileStore(tmp_path)
    store.write("checkpoint", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write("checkpoint", b"new")
    monkeypatch.undo()
    assert store.read("checkpoint") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_a_crash_left_beyond_the_old_size_is_overwritten() -> None:
    store = MemoryStore()
    append(store, 0, DATAS[:10])
    append(store, 10, [b"lost"] * 300)
    assert append(store, 10, DATAS[10:310]) == (310, root(HASHES[:310]))
    assert list(entries(store, 310)) == DATAS[:310]


def test_appending_behind_the_published_checkpoint_would_fork_and_is_refused() -> None:
    store, key = MemoryStore(), LogKey("log", SigningKey.generate())
    size, top = append(store, 0, DATAS[:10])
    store.write("checkpoint", sign_checkpoint(Checkpoint("log", size, top), key).encode())
    assert append(store, 10, DATAS[10:12])[0] == 12
    before = dict(store)
    for old in (0, 9):
        with pytest.raises(TileError, match="would fork"):
            append(store, old, [b"x"])
    assert store == before
    for unreadable in (b"\xff", b"no note"):
        store.write("checkpoint", unreadable)
        with pytest.raises(TileError, match="cannot be read"):
            append(store, 12, [b"x"])


def test_nothing_appended_changes_nothing() -> None:
    store = MemoryStore()
    assert append(store, 0, []) == (0, EMPTY_ROOT)
    assert store == {}
    append(store, 0, DATAS[:3])
    assert append(store, 3, []) == (3, root(HASHES[:3]))


def test_an_entry_has_at_most_65535_bytes() -> None:
    store = MemoryStore()
    datas = [b"x" * MAX_ENTRY, b""]
    append(store, 0, datas)
    assert list(entries(store, 2)) == datas
    with pytest.raises(TileError, match="entry 3 has 65536 bytes"):
        append(store, 2, [b"", b"x" * (MAX_ENTRY + 1)])
    assert list(entries(store, 2)) == datas


def test_a_full_tile_serves_where_the_partial_one_was_deleted() -> None:
    store = MemoryStore()
    append(store, 0, DATAS[:200])
    append(store, 200, DATAS[200:300])
    del store["tile/0/000.p/200"], store["tile/entries/000.p/200"]
    assert root_at(store, 200) == root(HASHES[:200])
    assert list(entries(store, 200)) == DATAS[:200]


def test_missing_and_damaged_tiles_are_named() -> None:
    store = MemoryStore()
    append(store, 0, DATAS[:300])
    for path, change, reader in [
        ("tile/0/001.p/44", None, "tree"),
        ("tile/0/000", b"short", "tree"),
        ("tile/1/000.p/1", None, "tree"),
        ("tile/entries/000", None, "entries"),
        ("tile/entries/000", b"\x00", "entries"),
        ("tile/entries/000", b"\x00\x05ab", "entries"),
        ("tile/entries/000", b"\x00\x01a", "entries"),
    ]:
        broken = MemoryStore(store)
        if change is None:
            del broken[path]
        else:
            broken[path] = change
        with pytest.raises(TileError, match=path):
            if reader == "tree":
                root_at(broken, 300)
                inclusion_from_tiles(broken, 3, 300)
            else:
                list(entries(broken, 300))
    with pytest.raises(ProofError):
        inclusion_from_tiles(store, 300, 300)


@given(st.binary(max_size=100))
def test_a_bundle_of_any_bytes_is_split_or_refused(data: bytes) -> None:
    try:
        found = list(split_bundle(data))
    except TileError:
        return
    assert b"".join(len(item).to_bytes(2, "big") + item for item in found) == data
