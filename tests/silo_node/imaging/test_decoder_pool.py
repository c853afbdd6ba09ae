"""A crash, a hang or too much memory in a decoder costs one file and one process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from silo_node.imaging import decode, index
from silo_node.imaging.cache import Cache
from silo_node.imaging.decoder_pool import DecoderPool
from tests.silo_node.imaging.conftest import item_of

Dicom = Callable[..., Path]
_FAULTY = """
import ctypes, os, signal, sys, time
import silo_node.imaging.decode as decode
read = decode.read

def faulty(path, **options):
    if "crash" in path.name:
        ctypes.string_at(0)  # as a decoder that follows a bad pointer
    if "hang" in path.name:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        ctypes.CDLL(None).sleep(600)  # inside C code, where no Python runs
    if "deaf" in path.name:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(600)
    if "print" in path.name:
        os.write(1, b"Plantedsson" * 100)
    return read(path, **options)

decode.read = faulty
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers in which files of certain names do what a C library could do."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(_FAULTY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    yield


def _files(tmp_path: Path, dicom: Dicom, *names: str) -> list[Path]:
    return [dicom(tmp_path / f"data/{name}.dcm", patient=name, sop=f"1.{number}") for number, name in enumerate(names)]


def test_a_crash_or_a_hang_is_one_row_and_the_others_go_on(tmp_path: Path, dicom: Dicom, faulty: None) -> None:
    files = _files(tmp_path, dicom, "a", "crash1", "b", "crash2", "hang", "c", "print", "d", *"efghijklm")
    with DecoderPool(size=(8, 8), seconds=3) as pool:
        found = dict(pool.decode([item_of(path) for path in files]))
    codes = {path.stem: code for path, code in found.items() if isinstance(code, str)}
    assert codes == {"crash1": "PIXELS_CRASHED", "crash2": "PIXELS_CRASHED", "hang": "PIXELS_SLOW"}
    assert set(codes.values()) <= set(index.PROBLEMS)
    expected = decode.read(files[0], size=(8, 8))
    assert all(np.array_equal(picture, expected) for picture in found.values() if not isinstance(picture, str))
    assert len(found) == len(files)


def test_a_worker_that_heeds_no_alarm_is_ended(
    tmp_path: Path, dicom: Dicom, faulty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silo_node.imaging.decoder_pool._GRACE", 0.5)
    monkeypatch.setattr("silo_node.imaging.decoder_pool._STARTING", 0.0)
    files = _files(tmp_path, dicom, "first", "deaf", "last")
    with DecoderPool(size=(8, 8), seconds=4) as pool:
        found = dict(pool.decode([item_of(path) for path in files]))
    assert found[files[1]] == "PIXELS_SLOW"
    assert not isinstance(found[files[2]], str)


def test_a_picture_that_takes_too_much_memory_is_a_row(tmp_path: Path, dicom: Dicom) -> None:
    large = dicom(tmp_path / "large.dcm", np.zeros((5000, 5000), np.uint16))
    small = dicom(tmp_path / "small.dcm")
    with DecoderPool(size=(8, 8), memory=200 * 2**20) as pool:
        found = dict(pool.decode([item_of(large), item_of(small)]))
    assert found[large] == "PIXELS_MEMORY"
    assert not isinstance(found[small], str)


def test_the_largest_picture_fits_into_the_memory_of_one_file(tmp_path: Path, dicom: Dicom) -> None:
    path = dicom(tmp_path / "1.dcm", np.arange(2**26, dtype=np.uint16).reshape(8192, 8192))
    with DecoderPool(size=(8, 8), seconds=120) as pool:
        ((_, found),) = pool.decode([item_of(path)])
    assert not isinstance(found, str)


def test_no_worker_outlives_its_pool(tmp_path: Path, dicom: Dicom) -> None:
    with DecoderPool(size=(8, 8)) as pool:
        list(pool.decode([item_of(path) for path in _files(tmp_path, dicom, "a")]))
        (worker,) = pool._idle
        os.kill(worker._process.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(worker._process.pid, 0)


def test_a_worker_that_was_killed_while_it_waited_is_replaced(tmp_path: Path, dicom: Dicom) -> None:
    files = _files(tmp_path, dicom, "a", "b", "c")
    with DecoderPool(size=(8, 8)) as pool:
        list(pool.decode([item_of(files[0])]))
        pool._idle[0]._process.send_signal(signal.SIGKILL)
        pool._idle[0]._process.wait()
        found = dict(pool.decode([item_of(path) for path in files[1:]]))
    assert not any(isinstance(picture, str) for picture in found.values())


def test_the_cache_goes_on_after_a_crash(tmp_path: Path, dicom: Dicom, faulty: None) -> None:
    files = _files(tmp_path, dicom, "a", "crash", "b")
    items = [item_of(path) for path in files]
    store = Cache(tmp_path / "cache", "sha256:" + "ab" * 32, size=(8, 8))
    assert store.fill(items) == {files[1]: "PIXELS_CRASHED"}
    assert len(store.open([items[0], items[2]])) == 2


def test_files_with_long_names_do_not_stop_the_pool(tmp_path: Path, dicom: Dicom) -> None:
    """A worker that writes a large picture does not read; more names than its pipe holds would wait for it for ever."""
    folder = tmp_path.joinpath(*["\x01" * 250] * 12)
    picture = np.zeros((16, 16), np.uint16)
    paths = [dicom(folder / f"{number}.dcm", picture) for number in range(8)]
    found: list[object] = []
    with DecoderPool(size=(512, 512), workers=1) as pool:
        thread = threading.Thread(
            target=lambda: found.extend(pool.decode([item_of(path) for path in paths])), daemon=True
        )
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "the pool waits for its worker, and the worker for the pool"
    assert len(found) == 8
