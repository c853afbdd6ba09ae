"""The cache: decode once, lose nothing, forget on demand."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from silo_node.imaging import cache, decode
from silo_node.imaging.cohort import Item
from silo_node.imaging.errors import StorageError
from tests.silo_node.imaging.conftest import item_of

Dicom = Callable[..., Path]
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def items(tmp_path: Path, dicom: Dicom) -> list[Item]:
    """Two pictures of each of three patients: 8 bits, and for the third 16."""
    found = []
    rng = np.random.default_rng(2)
    for number in range(6):
        kind = np.uint16 if number > 3 else np.uint8
        pixels = rng.integers(0, 255, (40, 30)).astype(kind)
        path = dicom(tmp_path / f"data/{number}.dcm", pixels, patient=f"P{number // 2}", sop=f"1.{number}")
        found.append(item_of(path, number % 2))
    return found


def _cache(tmp_path: Path, **options: object) -> cache.Cache:
    return cache.Cache(tmp_path / "cache", DIGEST, **{"size": (16, 12), **options})


def test_the_second_time_no_file_is_opened(tmp_path: Path, items: list[Item], watched: Callable) -> None:
    first = _cache(tmp_path)
    assert first.fill(items) == {} and first.decoded == 6
    second = _cache(tmp_path)
    with watched() as opened:
        assert second.fill(items) == {}
        batch = second.open(items).batch(np.arange(6))
    assert second.decoded == 0 and not opened & {item.path for item in items}
    assert batch.shape == (6, 16, 12)


def test_cached_pictures_are_the_decoded_ones_bit_for_bit(tmp_path: Path, items: list[Item]) -> None:
    store = _cache(tmp_path)
    store.fill(items)
    order = np.array([5, 0, 3, 4])
    batch = store.open(items).batch(order)
    for row, number in zip(batch, order, strict=True):
        picture = decode.read(items[number].path, size=(16, 12))
        assert np.array_equal(row, picture / np.float32(np.iinfo(picture.dtype).max))
    assert {path.name for path in (tmp_path / "cache").glob("*/*.bin")} == {"uint8.bin", "uint16.bin"}


def test_a_patients_pictures_are_overwritten_in_every_plans_cache(tmp_path: Path, items: list[Item]) -> None:
    stores = [_cache(tmp_path), cache.Cache(tmp_path / "cache", "sha256:" + "cd" * 32, size=(8, 8))]
    for store in stores:
        store.fill(items)
    assert cache.forget(tmp_path / "cache", ["P1", "somebody else"]) == 4
    assert cache.forget(tmp_path / "cache", ["P1"]) == 0
    for store in stores:
        with pytest.raises(KeyError):
            store.open(items[2:3])
        store.open([*items[:2], *items[4:]])
    pixels = np.fromfile(next((tmp_path / "cache").glob("ab*/uint8.bin")), dtype=np.uint8).reshape(-1, 16 * 12)
    assert (pixels[:4].any(axis=1)).tolist() == [True, True, False, False]


def test_freed_slots_are_used_again(tmp_path: Path, items: list[Item]) -> None:
    store = _cache(tmp_path)
    store.fill(items[:4])
    cache.forget(tmp_path / "cache", ["P0"])
    store.fill([*items[2:4], *items[:2]])
    batch = store.open(items[:4]).batch(np.arange(4))
    assert len({picture.tobytes() for picture in batch}) == 4
    with sqlite3.connect(next((tmp_path / "cache").glob("*/slots.db"))) as db:
        assert db.execute("SELECT max(slot) FROM slots").fetchone() == (3,)


def test_a_file_that_cannot_be_decoded_does_not_stop_the_others(tmp_path: Path, items: list[Item]) -> None:
    items[1].path.write_bytes(items[1].path.read_bytes()[:-500])
    items[1] = item_of(items[1].path, 1)
    store = _cache(tmp_path)
    assert store.fill(items) == {items[1].path: "PIXELS_CORRUPT"}
    assert len(store.open([items[0], *items[2:]])) == 5


def test_no_header_value_stands_in_the_cache(tmp_path: Path, dicom: Dicom) -> None:
    path = dicom(tmp_path / "1.dcm", patient="VERYSECRET", sop="1.2.826.0.1.77777")
    _cache(tmp_path).fill([item_of(path, 1)])
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            body = file.read_bytes()
            assert b"VERYSECRET" not in body and b"77777" not in body and b"Secretly" not in body
            assert file.stat().st_mode & 0o077 == 0


def test_pixels_that_were_never_committed_are_not_taken_for_a_picture(tmp_path: Path, items: list[Item]) -> None:
    """As after a kill between the pixels and their row."""
    store = _cache(tmp_path)
    store.fill(items)
    with sqlite3.connect(next((tmp_path / "cache").glob("*/slots.db"))) as db:
        db.execute("DELETE FROM slots WHERE slot = 2 AND kind = 'uint8'")
    again = _cache(tmp_path)
    assert again.fill(items) == {} and again.decoded == 1
    again.open(items).batch(np.arange(6))


def test_a_picture_of_which_nobody_says_what_file_it_was_is_decoded_again(tmp_path: Path, items: list[Item]) -> None:
    """As after an upgrade from the first format."""
    store = _cache(tmp_path)
    store.fill(items)
    with sqlite3.connect(next((tmp_path / "cache").glob("*/slots.db"))) as db:
        db.execute("UPDATE slots SET seen = NULL WHERE slot = 2 AND kind = 'uint8'")
    again = _cache(tmp_path)
    assert again.fill(items) == {} and again.decoded == 1
    again.open(items).batch(np.arange(6))


def test_another_size_under_the_same_digest_is_refused(tmp_path: Path) -> None:
    _cache(tmp_path)
    with pytest.raises(ValueError, match="another size"):
        _cache(tmp_path, size=(8, 8))


def test_a_full_disk_is_a_clear_error(tmp_path: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import resource

    # The kernel's own limit on a file's size: fallocate fails as on a full disk, without filling one.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = _cache(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        with pytest.raises(StorageError) as caught:
            store.fill(items)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.code == "DISK_FULL"
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.EFBIG
    assert store.fill(items) == {} and len(store.open(items)) == 6
