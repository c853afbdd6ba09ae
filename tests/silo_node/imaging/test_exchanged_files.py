"""What is exchanged in the data folder after the scan, or while it runs, gets into no study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from silo_node.imaging import bounded, cohort, decode, index, labels
from silo_node.imaging.cache import Cache
from silo_node.imaging.cohort import Cohort, Item
from silo_node.imaging.decoder_pool import DecoderPool
from silo_node.imaging.errors import CohortError, TableError
from silo_node.imaging.known import Known
from silo_node.pacs.inbox import Patients
from tests.silo_node.imaging.conftest import item_of, write_dicom

Study = Callable[..., Any]
DIGEST = "sha256:" + "ab" * 32
SIZE = (16, 16)
OTHER_SOP = "2.25.99"


def forge(path: Path, item: Item) -> None:
    """Give a file the size and time that the index knows, as whoever may write to it can."""
    with path.open("ab") as file:
        file.truncate(item.size)
    os.utime(path, ns=(item.mtime_ns, item.mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (item.size, item.mtime_ns)


def renamed(item: Item, other: Item, outside: Path) -> None:
    """Another patient's file takes its name."""
    shutil.copy(other.path, outside / "new.dcm")
    forge(outside / "new.dcm", item)
    (outside / "new.dcm").replace(item.path)


def overwritten(item: Item, other: Item, outside: Path) -> None:
    item.path.write_bytes(other.path.read_bytes())
    forge(item.path, item)


def linked_out(item: Item, other: Item, outside: Path) -> None:
    """To a copy of itself, outside: nothing but its place is another."""
    item.path.rename(outside / "same.dcm")
    item.path.symlink_to(outside / "same.dcm")
    assert item_of(item.path, item.label, item.root) == item


def linked_inside(item: Item, other: Item, outside: Path) -> None:
    """To another patient's file in the same folder, which has the same size and time."""
    forge(other.path, item)
    item.path.unlink()
    item.path.symlink_to(other.path)


def folder_linked_out(item: Item, other: Item, outside: Path) -> None:
    shutil.move(item.path.parent, outside / "images")
    item.path.parent.symlink_to(outside / "images")
    assert item_of(item.path, item.label, item.root) == item


def folder_linked_inside(item: Item, other: Item, outside: Path) -> None:
    """A folder of the data folder, in which another patient's file bears the name."""
    inner = item.root / "others"
    inner.mkdir()
    shutil.copy(other.path, inner / item.path.name)
    forge(inner / item.path.name, item)
    shutil.move(item.path.parent, outside / "images")
    item.path.parent.symlink_to(inner)


def whole_folder_linked_out(item: Item, other: Item, outside: Path) -> None:
    shutil.move(item.root, outside / "all")
    item.root.symlink_to(outside / "all")


def same_picture_later(item: Item, other: Item, outside: Path) -> None:
    os.utime(item.path)


def same_picture_longer(item: Item, other: Item, outside: Path) -> None:
    with item.path.open("ab") as file:
        file.write(b"\0\0")
    os.utime(item.path, ns=(item.mtime_ns, item.mtime_ns))


def same_patient(item: Item, other: Item, outside: Path) -> None:
    """Another picture of the same patient."""
    written = write_dicom(item.path, np.zeros((40, 40), np.uint8), patient=item.patient, sop=OTHER_SOP)
    forge(written, item)


def same_instance(item: Item, other: Item, outside: Path) -> None:
    """The same UID under another patient's id."""
    forge(write_dicom(item.path, np.zeros((40, 40), np.uint8), patient=other.patient, sop=item.sop), item)


def a_pipe(item: Item, other: Item, outside: Path) -> None:
    item.path.unlink()
    os.mkfifo(item.path)


EXCHANGES = (
    renamed, overwritten, linked_out, linked_inside, folder_linked_out, folder_linked_inside, whole_folder_linked_out,
    same_picture_later, same_picture_longer, same_patient, same_instance, a_pipe,
)  # fmt: skip
OF_THE_FOLDER = (folder_linked_out, folder_linked_inside, whole_folder_linked_out)
exchanges = pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.__name__)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


@pytest.fixture
def made(hospital: Path, study: Study, tmp_path: Path) -> Cohort:
    """The cohort of a scan, as the training process reads it from its file."""
    index.scan(hospital, tmp_path / "index.db")
    built = cohort.build(study(), tmp_path / "index.db", labels.load(hospital / "labels.csv"), None)
    built.save(tmp_path / "cohort.json")
    return Cohort.load(tmp_path / "cohort.json")


def _items(made: Cohort) -> list[Item]:
    return [*made.train, *made.test]


def _again(made: Cohort, study: Any, listed: labels.Labels) -> list[Item]:
    """Whose pictures the next round uses; none where nobody is left."""
    try:
        return _items(cohort.build(study, made.index_db, listed, None))
    except CohortError as error:
        assert error.code == "COHORT_EMPTY"
        return []


def _rows(made: Cohort) -> dict[str, str | None]:
    return {file.path.name: file.problem for file in index.files(made.index_db)}


@exchanges
def test_no_decoder_makes_a_picture_of_what_was_exchanged(
    made: Cohort, outside: Path, exchange: Callable[..., None]
) -> None:
    first, second, *others = _items(made)
    exchange(first, second, outside)
    with DecoderPool(size=SIZE) as pool:
        found = dict(pool.decode([first, *others]))
    assert found[first.path] == "FILE_CHANGED"
    if exchange not in OF_THE_FOLDER:
        assert not any(isinstance(found[item.path], str) for item in others)


@exchanges
def test_what_was_exchanged_is_in_no_cache_and_stays_out_until_a_scan_has_read_it(
    made: Cohort, outside: Path, study: Study, tmp_path: Path, exchange: Callable[..., None]
) -> None:
    first, second, *others = _items(made)
    listed = labels.load(first.root / "labels.csv")
    exchange(first, second, outside)
    store = Cache(tmp_path / "cache", DIGEST, size=SIZE)
    problems = store.fill([first, *others])
    assert problems[first.path] == "FILE_CHANGED"
    with pytest.raises(KeyError):
        store.open([first])
    index.mark(made.index_db, problems)
    assert _rows(made)[first.path.name] == "FILE_CHANGED" in index.PROBLEMS
    left = {item.path for item in _again(made, study(), listed)}
    assert first.path not in left and (left or exchange in OF_THE_FOLDER)


@exchanges
def test_the_next_scan_says_what_is_there_now(
    made: Cohort, outside: Path, study: Study, exchange: Callable[..., None]
) -> None:
    """And the label of the one who was there before labels nobody else."""
    first, second, *_ = _items(made)
    listed = labels.load(first.root / "labels.csv")
    exchange(first, second, outside)
    index.mark(made.index_db, {first.path: "FILE_CHANGED"})
    index.scan(first.root, made.index_db)
    assert "FILE_CHANGED" not in _rows(made).values()
    again = _again(made, study(), listed)
    for item in again:
        if item.path == first.path:
            assert (item.patient, item.sop) in {(first.patient, first.sop), (first.patient, OTHER_SOP)}
    with DecoderPool(size=SIZE) as pool:
        assert not [code for _, code in pool.decode(again) if isinstance(code, str)]


def test_a_link_that_stays_in_the_folder_is_used_as_before(hospital: Path, tmp_path: Path) -> None:
    (hospital / "archive").mkdir()
    (hospital / "images/3.dcm").rename(hospital / "archive/kept.dcm")
    (hospital / "images/3.dcm").symlink_to("../archive/kept.dcm")
    index.scan(hospital, tmp_path / "index.db")
    files = [file for file in index.files(tmp_path / "index.db") if file.path.name in ("3.dcm", "kept.dcm")]
    with DecoderPool(size=SIZE) as pool:
        assert not [code for _, code in pool.decode(files) if isinstance(code, str)]
    assert len(files) == 2


def test_the_process_that_decodes_gets_no_identity_and_answers_with_a_code_alone(made: Cohort) -> None:
    item = replace(_items(made)[0], patient="SOMEBODY^ELSE")
    job = json.dumps({"path": str(item.path), "known": vars(Known.of(item)), "size": SIZE, "window": "full"})
    assert "SOMEBODY" not in job and item.sop not in job
    command = [sys.executable, "-m", "silo_node.imaging.decoder_worker", str(2**30), "60"]
    done = subprocess.run(command, input=job.encode() + b"\n", capture_output=True, check=True, timeout=120)
    assert done.stdout == b'{"code": "FILE_CHANGED"}\n' and done.stderr == b""


def test_a_file_that_is_written_to_while_it_is_read_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = item_of(write_dicom(tmp_path / "1.dcm"))
    seen = (item.size, item.mtime_ns)
    with pytest.raises(bounded.Changed), bounded.opened(item.path, root=item.root, seen=(item.size, 0)):
        pytest.fail("a file with another time is opened for reading")
    with pytest.raises(bounded.Changed), bounded.opened(item.path, root=item.root, seen=seen) as source:
        source.read(200)
        os.utime(item.path)
    whole = decode._one_frame

    def slow(*args: Any) -> Any:
        found = whole(*args)
        os.utime(item.path)
        return found

    item = item_of(item.path)
    monkeypatch.setattr(decode, "_one_frame", slow)
    with pytest.raises(decode.PixelError) as caught:
        decode.read(item.path, size=SIZE, known=Known.of(item))
    assert caught.value.code == "FILE_CHANGED"


def test_a_picture_that_is_in_the_cache_stays_the_one_that_was_decoded(
    made: Cohort, outside: Path, tmp_path: Path
) -> None:
    items = _items(made)
    store = Cache(tmp_path / "cache", DIGEST, size=SIZE)
    store.fill(items)
    before = store.open(items).batch(np.arange(len(items)))
    linked_inside(items[0], items[1], outside)
    again = Cache(tmp_path / "cache", DIGEST, size=SIZE)
    assert again.fill(items) == {} and again.decoded == 0
    assert np.array_equal(again.open(items).batch(np.arange(len(items))), before)


def test_a_new_picture_of_an_instance_takes_the_place_of_the_one_in_the_cache(made: Cohort, tmp_path: Path) -> None:
    items = _items(made)
    store = Cache(tmp_path / "cache", DIGEST, size=SIZE)
    store.fill(items)
    old = store.open(items[:1]).batch(np.arange(1))
    write_dicom(items[0].path, np.arange(1600, dtype=np.uint8).reshape(40, 40), patient="P77", sop=items[0].sop)
    corrected = item_of(items[0].path, 0, items[0].root)
    assert store.fill([corrected, *items[1:]]) == {} and store.decoded == len(items) + 1
    assert not np.array_equal(store.open([corrected]).batch(np.arange(1)), old)
    with pytest.raises(KeyError):
        store.open(items[:1])
    assert store.forget([items[0].patient]) == 0
    assert store.forget(["P77"]) == 1


class Exchanging(labels.Labels):
    """A list that is asked whose a file is, between the look at it and its opening; then something happens."""

    def patient_of(self, path: Path) -> str | None:
        EXCHANGING.pop(path.name, lambda: None)()
        return super().patient_of(path)


EXCHANGING: dict[str, Callable[[], object]] = {}


@pytest.fixture
def list_of(hospital: Path) -> Iterator[Exchanging]:
    found = labels.load(hospital / "labels.csv")
    yield Exchanging(found.name, found.folder, found.rows, found.files)
    EXCHANGING.clear()


def test_a_scan_reads_nothing_outside_that_was_exchanged_after_the_look_at_it(
    hospital: Path, list_of: Exchanging, outside: Path, tmp_path: Path
) -> None:
    """By a link in place of the file, and by one in place of its folder; put back, both are read."""
    secret = write_dicom(outside / "secret.dcm", patient="SECRET")
    file, folder = hospital.resolve() / "images/3.dcm", hospital.resolve() / "images"

    def link() -> None:
        file.rename(outside / "3.dcm")
        file.symlink_to(secret)

    def link_folder() -> None:
        folder.rename(outside / "images")
        folder.symlink_to(outside / "images")

    EXCHANGING.update({"3.dcm": link, "7.dcm": link_folder})
    index.scan(hospital, tmp_path / "index.db", labels=list_of)
    problems = {file.path.name: file.problem for file in index.files(tmp_path / "index.db")}
    assert problems.pop("3.dcm") == problems.pop("7.dcm") == "LINK_OUTSIDE"
    assert {name for name, problem in problems.items() if problem} == {"8.dcm", "9.dcm"}
    assert "SECRET" not in {file.patient for file in index.files(tmp_path / "index.db")}
    folder.unlink()
    (outside / "images").rename(folder)
    (outside / "3.dcm").replace(file)
    assert index.scan(hospital, tmp_path / "index.db").usable == 10


def test_a_row_has_the_size_and_time_of_the_file_that_was_opened(
    hospital: Path, list_of: Exchanging, tmp_path: Path
) -> None:
    new = write_dicom(tmp_path / "new.dcm", np.zeros((50, 50), np.uint16), patient="P3")
    os.utime(new, ns=(10**18, 10**18))
    EXCHANGING["3.dcm"] = lambda: new.replace(hospital / "images/3.dcm")
    index.scan(hospital, tmp_path / "index.db", labels=list_of)
    (row,) = [file for file in index.files(tmp_path / "index.db") if file.path.name == "3.dcm"]
    assert (row.rows, row.mtime_ns, row.size) == (50, 10**18, (hospital / "images/3.dcm").stat().st_size)
    with DecoderPool(size=SIZE) as pool:
        ((_, picture),) = pool.decode([row])
    assert not isinstance(picture, str)


def test_a_file_of_the_inbox_has_to_lie_in_the_inbox(hospital: Path, tmp_path: Path) -> None:
    """Which may be reached by a link; the data folder is another place."""
    (tmp_path / "disk/inbox").mkdir(parents=True)
    (tmp_path / "silo").symlink_to(tmp_path / "disk")
    inbox = Patients(tmp_path / "silo/inbox", tmp_path / "pacs.db")
    for name in "ab":
        write_dicom(inbox.folder / f"{name}.dcm", patient=name)
    index.scan(hospital, tmp_path / "index.db", inbox=inbox)
    files = {file.path.name: file for file in index.files(tmp_path / "index.db")}
    assert files["a.dcm"].problem is files["b.dcm"].problem is None
    (hospital / "b.dcm").write_bytes((inbox.folder / "b.dcm").read_bytes())
    os.utime(hospital / "b.dcm", ns=(files["b.dcm"].mtime_ns,) * 2)
    (inbox.folder / "b.dcm").unlink()
    (inbox.folder / "b.dcm").symlink_to(hospital / "b.dcm")
    with DecoderPool(size=SIZE) as pool:
        found = {path.name: code for path, code in pool.decode([files["a.dcm"], files["b.dcm"], files["0.dcm"]])}
    assert [name for name, code in found.items() if isinstance(code, str)] == ["b.dcm"]
    assert found["b.dcm"] == "FILE_CHANGED"


def test_a_list_of_labels_that_does_not_lie_in_its_folder_is_not_read(hospital: Path, outside: Path) -> None:
    (hospital / "labels.csv").rename(hospital / "kept.csv")
    (hospital / "labels.csv").symlink_to("kept.csv")
    assert len(labels.load(hospital / "labels.csv").rows) == 10
    (hospital / "kept.csv").rename(outside / "kept.csv")
    (hospital / "kept.csv").symlink_to(outside / "kept.csv")
    with pytest.raises(TableError) as caught:
        labels.load(hospital / "labels.csv")
    assert caught.value.code == "LABELS_MISSING" and "leads out of its folder" in caught.value.sentence
