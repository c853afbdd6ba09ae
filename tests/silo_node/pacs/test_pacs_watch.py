"""New files and the time of a fetch are noticed by `silo run` itself, without opening a file."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from demo.processes import free_port
from silo_node import scanning
from silo_node.imaging import index
from silo_node.imaging.errors import ScanError
from silo_node.node import Node
from silo_node.pacs import watch
from tests.silo_node.conftest import SiloUnderTest
from tests.silo_node.imaging.conftest import write_dicom
from tests.silo_node.opened_files import watched  # noqa: F401
from tests.silo_node.pacs.conftest import MULTIPART, Hospital, Liar, needs, part, reply

pytestmark = pytest.mark.timeout(120)
OLD = 10 * watch.HOT_SECONDS


def tree(tmp_path: Path) -> Path:
    """Two folders with a file each, quiet for long."""
    for name in ("a", "b/c"):
        write_dicom(tmp_path / f"tree/{name}/1.dcm")
    for path in (tmp_path / "tree").rglob("*"):
        os.utime(path, (time.time() - OLD, time.time() - OLD))
    os.utime(tmp_path / "tree", (time.time() - OLD, time.time() - OLD))
    return tmp_path / "tree"


def test_what_comes_goes_or_grows_changes_the_signature(tmp_path: Path) -> None:
    root, now = tree(tmp_path), time.time()
    seen = [watch.signature([root], now)]
    assert watch.signature([root], now) == seen[0]
    new = root / "b/c/2.dcm"
    new.write_bytes(b"half")
    seen.append(watch.signature([root], now))
    with new.open("ab") as file:  # the folder does not change, the file does
        file.write(b" and whole")
    seen.append(watch.signature([root], now))
    new.unlink()
    seen.append(watch.signature([root], now))
    (root / "new folder").mkdir()
    seen.append(watch.signature([root], now))
    assert len(set(seen)) == len(seen)
    assert watch.signature([tmp_path / "gone"], now) == watch.signature([], now)


def test_a_folder_that_has_become_quiet_is_looked_at_once_more(tmp_path: Path) -> None:
    root, now = tree(tmp_path), time.time()
    (root / "a/2.dcm").write_bytes(b"new")
    hot = watch.signature([root], now)
    later = now + watch.HOT_SECONDS + 60
    assert watch.signature([root], later) != hot
    assert watch.signature([root], later) == watch.signature([root], later + 3600)


def test_a_change_is_known_until_a_scan_ended_that_began_after_it(hospital: Hospital, watched: Any) -> None:  # noqa: F811
    write_dicom(hospital.data / "1.dcm", patient="P1")
    config = hospital.config()
    assert watch.changed(config) is not None
    scanning.scan(config)
    assert watch.changed(config) is None
    write_dicom(hospital.data / "2.dcm", patient="P2")
    with watched() as opened:
        assert watch.changed(config) is not None
    assert not [path for path in opened if path.suffix == ".dcm"]
    scanning.scan(config)
    assert watch.changed(config) is None


def test_a_task_is_asked_for_once_for_one_reason(
    hospital: Hospital, liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(hospital.data / "1.dcm")
    config = hospital.asks(liar.url)
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    watching = watch.Watch(Node(config, None), events)
    for _ in range(3):
        watching.turn()
    assert sorted([events.get_nowait(), events.get_nowait()]) == [("task", "fetch"), ("task", "scan")]
    assert events.empty()
    monkeypatch.setattr(watch, "AGAIN_SECONDS", 0.0)  # both may have been lost with their broker
    watching.turn()
    assert not events.empty()


def test_the_inbox_is_part_of_the_index_and_an_empty_drive_does_not_empty_it(hospital: Hospital) -> None:
    mine = write_dicom(hospital.data / "mine.dcm", patient="P1")
    sent = write_dicom(hospital.folder / "inbox/ab/abcd.dcm", patient="P2")
    config = hospital.config()
    assert scanning.scan(config).usable == 2
    assert {file.path for file in index.files(config.index_db)} == {mine, sent}
    index.mark(config.index_db, {mine: "PIXELS_CORRUPT", sent: "PIXELS_CORRUPT"})
    assert {file.problem for file in index.files(config.index_db)} == {"PIXELS_CORRUPT"}
    mine.unlink()
    with pytest.raises(ScanError, match="DATA_FOLDER_EMPTY"):
        scanning.scan(config)
    assert len(index.files(config.index_db)) == 2


def test_silo_run_fetches_receives_and_scans_by_itself(silo: SiloUnderTest, liar: Liar, tmp_path: Path) -> None:
    storescu = shutil.which("storescu")
    needs(storescu, "dcmtk")
    asked = write_dicom(tmp_path / "asked.dcm", sop="1.2.3.4.5", patient="P1")
    sent = write_dicom(tmp_path / "sent.dcm", sop="1.2.3.4.6", patient="P2")
    liar.wado = lambda request: reply(request, part(asked.read_bytes()), MULTIPART)
    port = free_port()
    settings = silo.folder / "silo.toml"
    settings.write_text(
        settings.read_text().replace("[limits]\n", "[limits]\nwatch_seconds = 0.5\n")
        + f'[dicomweb]\nurl = "{liar.url}"\nfree_mb = 0\n[receiver]\nport = {port}\n'
        'ae_title = "SILO"\nfree_mb = 0\npeers = [{ ae_title = "PACS", host = "127.0.0.1" }]\n'
    )
    process = silo.start()
    receiver = silo.folder / "receiver.json"
    silo.until(receiver.exists)
    killed = json.loads(receiver.read_text())["pid"]
    os.kill(killed, signal.SIGKILL)
    silo.until(lambda: json.loads(receiver.read_text())["pid"] != killed)
    subprocess.run(
        [str(storescu), "-aet", "PACS", "-aec", "SILO", "127.0.0.1", str(port), str(sent)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip

    def indexed() -> bool:
        try:
            return {file.patient for file in index.files(silo.config.index_db)} == {"P1", "P2"}
        except ScanError:
            return False  # not scanned yet

    silo.until(indexed, seconds=60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
