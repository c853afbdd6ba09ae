"""Awkward and hostile files: each is read right or is a row with its reason; never a crash, a hang or a name shown."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from silo_node.imaging import bounded, decode, header, index
from silo_node.imaging.decoder_pool import DecoderPool
from silo_node.imaging.errors import PixelError, ScanError
from tests.silo_node.imaging import awkward
from tests.silo_node.imaging.conftest import item_of


def _rows(folder: Path, db: Path) -> dict[str, str | None]:
    index.scan(folder, db)
    return {file.path.relative_to(folder).as_posix(): file.problem for file in index.files(db)}


def _as_white(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float64) / np.iinfo(picture.dtype).max


def _own_range(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return (values - values.min()) / (values.max() - values.min())


def test_each_hostile_file_is_a_row_with_its_reason(tmp_path: Path, watched: Callable) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    expected = awkward.refused(folder)
    began = time.process_time()
    with watched() as opened:
        found = _rows(folder, tmp_path / "index.db")
    assert found == expected
    assert time.process_time() - began < 30
    assert not {path for path in opened if path.name in ("pipe.dcm", "socket.dcm", "link.dcm", "link_device.dcm")}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1.5 * 2**20, "in kB"


def test_a_file_whose_name_is_not_text_is_a_row_and_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    awkward.image(folder / "good.dcm")
    (folder / "bad.dcm").write_bytes((folder / "good.dcm").read_bytes())
    Path(bytes(folder / "bad.dcm").decode()).rename(folder / b"b\xe4d.dcm".decode("utf-8", "surrogateescape"))
    assert _rows(folder, tmp_path / "index.db") == {"good.dcm": None, "b\\xe4d.dcm": "BAD_NAME"}


def test_a_name_that_is_not_text_takes_no_other_files_place(tmp_path: Path) -> None:
    """It is shown with backslashes, as another file may really be called."""
    folder = tmp_path / "data"
    awkward.image(folder / "a\\xff.dcm")
    for name in (b"a\xff.dcm", b"b\\xff\xff.dcm", b"b\xff\xff.dcm", b"\xff" * 240):
        (folder / name.decode("utf-8", "surrogateescape")).touch()
    found = _rows(folder, tmp_path / "index.db")
    assert found.pop("a\\xff.dcm") is None
    assert list(found.values()) == ["BAD_NAME"] * 4


def test_a_folder_whose_name_is_not_text_is_refused_with_its_reason(tmp_path: Path) -> None:
    awkward.image(tmp_path / "data" / "a.dcm")
    named = tmp_path / b"d\xff".decode("utf-8", "surrogateescape")
    (tmp_path / "data").rename(named)
    with pytest.raises(ScanError) as caught:
        index.scan(named, tmp_path / "index.db")
    assert caught.value.code == "DATA_FOLDER_NAME" and "rename" in caught.value.sentence


def test_a_folder_that_cannot_be_listed_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    awkward.image(folder / "a.dcm")
    awkward.image(folder / "closed" / "b.dcm")
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert _rows(folder, tmp_path / "index.db") == {"a.dcm": None, "closed": "UNREADABLE"}


def test_a_folder_of_hostile_files_tells_no_name_anywhere(tmp_path: Path) -> None:
    """`silo scan --data` with pixels, as text and as JSON: whatever it prints."""
    folder = tmp_path / "data"
    folder.mkdir()
    awkward.refused(folder)
    (folder / "wide.dcm").unlink()  # takes seconds, and is looked at above
    for path in awkward.damaged(folder):
        awkward.before_pixels(path, awkward.element(0x00091010, b"LO", awkward.NAME.encode()))
    command = [sys.executable, "-m", "silo_node.cli", "scan", "--data", str(folder), "--pixels"]
    for options in (["--files"], ["--json"]):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        for planted in ("Plantedsson", "Ada", "PLANTED-7731", "1.2.826"):
            assert planted not in done.stdout + done.stderr, options
        if options == ["--json"]:
            facts = [json.loads(line) for line in done.stdout.splitlines()]
            assert len(facts) == len(list(folder.iterdir()))
            assert all(each["status"] == "refused" and each["reason"] in index.PROBLEMS for each in facts)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, syntax: str) -> None:
    body = awkward.image(tmp_path / "whole.dcm", syntax=pydicom.uid.UID(syntax)).read_bytes()
    assert header.read(tmp_path / "whole.dcm").problem is None
    for tenth in range(1, 11):
        (tmp_path / "cut.dcm").write_bytes(body[: (len(body) - 2) * tenth // 10])
        assert header.read(tmp_path / "cut.dcm").problem in index.PROBLEMS, tenth


def test_damaged_pixels_are_refused_by_the_pool(tmp_path: Path) -> None:
    files = awkward.damaged(tmp_path)
    with DecoderPool(size=(16, 16)) as pool:
        found = dict(pool.decode([item_of(path) for path in files]))
    assert set(found) == set(files)
    wrong = {path.name: code for path, code in found.items() if not isinstance(code, str) or code not in index.PROBLEMS}
    assert not wrong


def test_every_depth_is_read_right(tmp_path: Path) -> None:
    for path, values in awkward.depths(tmp_path).items():
        picture = decode.read(path, size=values.shape)
        assert picture.dtype == (np.uint8 if int(path.name.split("_")[0]) <= 8 else np.uint16)
        step = 1 / np.iinfo(picture.dtype).max
        assert np.abs(_as_white(picture) - _own_range(values)).max() <= 0.51 * step, path.name


def test_the_middle_frame_is_read_right_in_every_encoding(tmp_path: Path) -> None:
    for path, values in awkward.films(tmp_path).items():
        assert header.read(path).problem is None, path.name
        picture = decode.read(path, size=values.shape)
        assert np.abs(_as_white(picture) - _own_range(values)).max() <= 1 / np.iinfo(picture.dtype).max, path.name


def test_a_frames_own_meaning_is_used(tmp_path: Path) -> None:
    picture = decode.read(awkward.enhanced(tmp_path / "1.dcm"), size=(16, 16), window="dicom")
    expected = np.clip((awkward.RAMP.astype(float) - 50) / 100, 0, 1)
    assert np.abs(_as_white(picture) - expected).max() < 1 / 255


def test_one_frame_of_a_long_film_costs_one_frames_memory(tmp_path: Path) -> None:
    """Four gigabytes, of which a sparse file holds next to nothing."""
    path = awkward.image(tmp_path / "1.dcm")
    frames = 2**32 // 256 - 2
    body = awkward._edit(path, NumberOfFrames=str(frames)).read_bytes()
    at = body.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(body[: at + 8] + (frames * 256).to_bytes(4, "little"))
    with path.open("r+b") as file:
        file.truncate(at + 12 + frames * 256)
        file.seek(at + 12 + frames // 2 * 256)
        file.write(awkward.RAMP.tobytes())
    assert header.read(path).problem is None
    with DecoderPool(size=(16, 16), memory=128 * 2**20) as pool:
        ((_, picture),) = pool.decode([item_of(path)])
    assert np.array_equal(picture, awkward.RAMP)


_NAMES = sorted(
    path.name
    for path in Path(str(get_testdata_file("MR_small.dcm", download=False))).parent.glob("*.dcm")
    if path.stat().st_size < 700_000
)


@pytest.mark.parametrize("name", _NAMES)
def test_other_makers_files_are_read_as_pydicom_reads_them_or_refused(name: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    found = header.read(path)
    if found.problem not in (None, "NO_PATIENT"):
        assert found.problem in index.PROBLEMS
        return
    assert found.rows is not None and found.columns is not None
    dataset = pydicom.dcmread(path)
    try:
        theirs = dataset.pixel_array
    except RuntimeError:
        with pytest.raises(PixelError):
            decode.read(path, size=(found.rows, found.columns))
        return
    dataset.PixelSpacing = None  # decoding counts it in; here pixels are compared one by one
    frame = theirs[(found.frames or 1) // 2] if (found.frames or 1) > 1 else theirs
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = pydicom.pixels.apply_color_lut(frame, dataset)[..., :3] / 256 / 255
        frame = frame @ [0.299, 0.587, 0.114]
    elif frame.ndim == 3:
        frame = frame @ [0.299, 0.587, 0.114] / (2**dataset.BitsStored - 1)
    elif "PixelPaddingValue" in dataset:  # becomes black, and counts for no range
        frame = (frame - frame[frame != dataset.PixelPaddingValue].min()) / np.ptp(
            frame[frame != dataset.PixelPaddingValue]
        )
    else:
        frame = _own_range(frame)
    height, width = found.rows, found.columns
    grey, _ = _whole(path)
    assert grey.shape == (height, width)
    counts = np.ones(grey.shape, bool) if "PixelPaddingValue" not in dataset else theirs != dataset.PixelPaddingValue
    assert np.abs(grey - frame)[counts].max() < 0.01


def _whole(path: Path) -> tuple[np.ndarray, int]:
    with bounded.opened(path) as source:
        return decode._grey(decode._one_frame(source, None), "full")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_mutation_of_a_file_is_a_crash_or_shows_a_name(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    bodies, pool = _seeds(tmp_path_factory)
    body = bytearray(data.draw(st.sampled_from(bodies)))
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(128, len(body) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        if data.draw(st.booleans()):
            body[at : at + len(piece)] = piece
        else:
            body[at:at] = piece
    path = tmp_path_factory.mktemp("mutated") / "1.dcm"
    path.write_bytes(bytes(body[: data.draw(st.integers(0, len(body)))]) if data.draw(st.booleans()) else bytes(body))
    began = time.process_time()
    found = header.read(path)
    assert time.process_time() - began < bounded.MAX_SECONDS + 5
    assert found.problem is None or found.problem in index.PROBLEMS
    shown = f"{found!r}"
    ((_, picture),) = pool.decode([item_of(path)])
    if isinstance(picture, str):
        assert picture in index.PROBLEMS
        # A header that only the scan can't read names nobody, so that whoever decodes takes the file for another one.
        assert picture != "FILE_CHANGED" or found.problem is not None
        if picture not in index.WORTH_ANOTHER_TRY:  # what ended a worker would end this process too
            with pytest.raises(PixelError) as caught:
                decode.read(path, size=(16, 16))
            shown += f"{caught.value} {caught.value!r}"
    else:
        assert picture.shape == (16, 16)
    assert "Plantedsson" not in shown and "PLANTED" not in shown


def _seeds(factory: pytest.TempPathFactory) -> tuple[list[bytes], DecoderPool]:
    if not hasattr(_seeds, "made"):
        folder = factory.mktemp("seeds")
        syntaxes = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5",
                    "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.90")  # fmt: skip
        pixels = np.kron(awkward.RAMP, np.ones((4, 4), np.uint8))
        made = [awkward.image(folder / syntax, pixels, syntax=pydicom.uid.UID(syntax)) for syntax in syntaxes]
        made.append(awkward.enhanced(folder / "enhanced"))
        for name in ("MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPEG-lossy.dcm", "SC_rgb_rle.dcm"):
            dataset = pydicom.dcmread(str(get_testdata_file(name, download=False)))
            dataset.PatientID, dataset.PatientName = awkward.PATIENT, awkward.NAME
            dataset.save_as(folder / name)
            made.append(folder / name)
        _seeds.made = [path.read_bytes() for path in made], DecoderPool(size=(16, 16), seconds=5)  # type: ignore[attr-defined]
    return _seeds.made  # type: ignore[attr-defined, no-any-return]
