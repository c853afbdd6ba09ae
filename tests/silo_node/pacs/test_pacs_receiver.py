"""The C-STORE receiver: known peers, images only, whole files; with dcmtk's and pynetdicom's senders."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pynetdicom import AE, Association, _config
from pynetdicom.sop_class import BasicTextSRStorage, ComputedRadiographyImageStorage, Verification

from silo_node import scanning
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.health import status
from silo_node.pacs import fetch, receiver
from silo_node.pacs.receiver import LATER, Server
from tests.silo_node.imaging.conftest import write_dicom
from tests.silo_node.pacs.conftest import ROOT, Hospital, Orthanc, needs
from tests.silo_node.pacs.test_pacs_orthanc import trains

pytestmark = pytest.mark.timeout(180)
STORESCU, DCMSEND = shutil.which("storescu"), shutil.which("dcmsend")


@pytest.fixture
def listen() -> Iterator[Callable[[Config], Server]]:
    servers = []

    def start(config: Config) -> Server:
        server = Server(config)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def call(server: Server, *classes: uid.UID, title: str = "HOSPITAL-PACS", called: str = "SILO") -> Association:
    """An association from this machine; not established where it was rejected."""
    ae = AE(ae_title=title)
    for each in classes or (ComputedRadiographyImageStorage, Verification):
        ae.add_requested_context(each, [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    return ae.associate("127.0.0.1", server.port, ae_title=called)


def send(server: Server, dataset: Dataset | Path) -> int:
    """Store one instance. Returns the status; -1 where the association ended instead."""
    association = call(server)
    assert association.is_established
    status = association.send_c_store(dataset)
    association.release()
    return int(status.Status) if "Status" in status else -1


def counts(hospital: Hospital) -> dict[str, int]:
    found: dict[str, int] = json.loads((hospital.folder / "receiver.json").read_text())["counts"]
    return found


def test_200_films_sent_by_dcmtk_are_received_and_trained_on(
    hospital: Hospital, chest: list[Path], listen: Callable[[Config], Server], tmp_path: Path
) -> None:
    needs(STORESCU and DCMSEND, "dcmtk")
    config = hospital.receives()
    server = listen(config)
    # -dn: each file in its own transfer syntax, RLE among them.
    for number in range(2):
        subprocess.run(
            [str(DCMSEND), "-aet", "HOSPITAL-PACS", "-aec", "SILO", "-dn", "127.0.0.1", str(server.port),
             *(str(path) for path in chest[100 * number : 100 * (number + 1)])],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    assert counts(hospital) == {"received": 200}
    stored = {dcmread(path).SOPInstanceUID: dcmread(path) for path in chest}
    for path in hospital.inbox():
        found = dcmread(path)
        assert found == stored[found.SOPInstanceUID]
        assert found.file_meta.TransferSyntaxUID == stored[found.SOPInstanceUID].file_meta.TransferSyntaxUID
    result = trains(config, hospital, chest)
    assert result.update.any() and result.problems == {}


def test_200_films_sent_by_an_orthanc_are_received_and_trained_on_and_not_fetched_again(
    orthanc: Orthanc, hospital: Hospital, chest: list[Path], listen: Callable[[Config], Server]
) -> None:
    ids = orthanc.store(chest)
    config = hospital.receives(peers={"ORTHANC": "localhost"})
    server = listen(config)
    orthanc.ask("PUT", "/modalities/silo", json.dumps(["SILO", "127.0.0.1", server.port]).encode())
    orthanc.ask("POST", "/modalities/silo/store", json.dumps({"Resources": ids}).encode())
    assert counts(hospital) == {"received": 200} and len(hospital.inbox()) == 200
    result = trains(config, hospital, chest)
    assert result.update.any() and result.problems == {}
    report, error = fetch.fetch(hospital.asks_orthanc(orthanc))
    assert error is None and (report.studies, report.got, report.missing) == (200, 0, 0)


def test_an_orthanc_that_stops_while_it_sends_leaves_whole_files_and_sends_the_rest_when_it_is_back(
    orthanc: Orthanc, hospital: Hospital, chest: list[Path], listen: Callable[[Config], Server]
) -> None:
    ids = orthanc.store(chest)
    server = listen(hospital.receives(peers={"ORTHANC": "localhost"}))

    def sends(**how: Any) -> Any:
        orthanc.ask("PUT", "/modalities/silo", json.dumps(["SILO", "127.0.0.1", server.port]).encode())
        body = json.dumps({"Resources": ids, **how}).encode()
        return orthanc.ask("POST", "/modalities/silo/store", body)

    sends(Asynchronous=True)
    until = time.monotonic() + 60
    while len(hospital.inbox()) < 5:
        assert time.monotonic() < until
    orthanc.kill()
    while server._server.active_associations:
        assert time.monotonic() < until
    first = hospital.inbox()
    assert 5 <= len(first) < 200, "it had sent all before it was stopped"
    assert {str(dcmread(path).SOPInstanceUID) for path in first} <= {
        str(dcmread(path).SOPInstanceUID) for path in chest
    }
    left = {path for path in (hospital.folder / "inbox").rglob("*") if path.is_file()}
    assert left == set(first), "half a file"
    orthanc.start()
    sends()
    assert len(hospital.inbox()) == 200


def test_c_echo_is_answered(hospital: Hospital, listen: Callable[[Config], Server]) -> None:
    association = call(listen(hospital.receives()), Verification)
    assert association.is_established and association.send_c_echo().Status == 0x0000
    association.release()


@pytest.mark.parametrize("wrong", [{"title": "SOMEBODY"}, {"called": "OTHER"}])
def test_only_known_titles_may_associate(
    hospital: Hospital, listen: Callable[[Config], Server], wrong: dict[str, str]
) -> None:
    association = call(listen(hospital.receives()), **wrong)
    assert association.is_rejected and not association.is_established


def test_a_title_counts_only_from_its_own_host_and_other_hosts_are_not_spoken_to(
    hospital: Hospital, listen: Callable[[Config], Server]
) -> None:
    server = listen(hospital.receives(peers={"HOSPITAL-PACS": "127.0.0.2", "OTHER": "127.0.0.1"}))
    assert call(server).is_rejected
    association = call(server, title="OTHER")
    assert association.is_established
    association.release()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10, source_address=("127.0.0.3", 0)) as stranger:
        assert stranger.recv(1) == b"", "an unknown host is hung up on"


def test_only_images_are_negotiated(hospital: Hospital, listen: Callable[[Config], Server]) -> None:
    association = call(listen(hospital.receives()), BasicTextSRStorage, Verification)
    assert [context.abstract_syntax for context in association.accepted_contexts] == [Verification]
    association.release()


def test_an_instance_of_somebody_who_opted_out_is_not_kept_and_the_sender_warned(
    hospital: Hospital, listen: Callable[[Config], Server], tmp_path: Path
) -> None:
    hospital.opts_out("P2")
    server = listen(hospital.receives())
    assert send(server, write_dicom(tmp_path / "1.dcm", patient="P1")) == 0x0000
    assert send(server, write_dicom(tmp_path / "2.dcm", patient="P2")) == 0xB006
    assert [dcmread(path).PatientID for path in hospital.inbox()] == ["P1"]
    assert not any((hospital.folder / "inbox/.incoming/receive").iterdir())
    assert counts(hospital) == {"received": 1, "OPTED_OUT": 1}


def test_without_a_readable_opt_out_list_nothing_is_taken(
    hospital: Hospital, listen: Callable[[Config], Server], tmp_path: Path
) -> None:
    (hospital.folder / "opt_out.csv").write_text("no column\n")
    assert send(listen(hospital.receives()), write_dicom(tmp_path / "1.dcm")) == LATER
    assert hospital.inbox() == []


def test_a_full_disk_is_said_so_that_the_peer_tries_later(
    hospital: Hospital, listen: Callable[[Config], Server], tmp_path: Path
) -> None:
    server = listen(hospital.receives(free_mb=1_000_000_000))
    assert send(server, write_dicom(tmp_path / "1.dcm")) == LATER
    assert hospital.inbox() == [] and counts(hospital) == {"SILO_DISK_FULL": 1}


def test_what_is_not_what_its_command_says_or_no_image_is_refused(
    hospital: Hospital, listen: Callable[[Config], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So sent, the command names what the file's meta group says.
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    server = listen(hospital.receives())
    other = dcmread(write_dicom(tmp_path / "0.dcm"))
    other.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    other.save_as(tmp_path / "0.dcm", enforce_file_format=False)
    assert send(server, tmp_path / "0.dcm") == 0xA900
    assert send(server, write_dicom(tmp_path / "1.dcm", patient=None)) == 0xC000
    assert send(server, write_dicom(tmp_path / "2.dcm", Rows=0)) == 0xC000
    assert hospital.inbox() == [] and counts(hospital) == {"PACS_OTHER": 1, "NO_PATIENT": 1, "NO_IMAGE": 1}


def test_an_instance_larger_than_allowed_ends_the_association(
    hospital: Hospital, listen: Callable[[Config], Server], tmp_path: Path
) -> None:
    server = listen(hospital.receives("max_mb = 1"))
    big = write_dicom(tmp_path / "big.dcm")
    dataset = dcmread(big)
    dataset.Rows = dataset.Columns = 2048
    dataset.PixelData = bytes(2048 * 2048)
    assert send(server, dataset) == -1
    assert hospital.inbox() == [] and counts(hospital) == {"INSTANCE_TOO_BIG": 1}
    assert send(server, big) == 0x0000, "the receiver goes on"


def test_at_most_so_many_associations_at_once(hospital: Hospital, listen: Callable[[Config], Server]) -> None:
    server = listen(hospital.receives("max_associations = 2"))
    open_ones = [call(server, Verification) for _ in range(2)]
    assert all(each.is_established for each in open_ones)
    assert not call(server, Verification).is_established
    for each in open_ones:
        each.release()


def test_garbage_and_cut_connections_leave_it_listening(
    hospital: Hospital, listen: Callable[[Config], Server], tmp_path: Path
) -> None:
    server = listen(hospital.receives())
    for data in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x01\x00" + struct.pack(">I", 2**32 - 1),
        b"\x04\x00\x00\x00\x00\x06abcdef",
        b"",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stranger:
            stranger.sendall(data)
    assert send(server, write_dicom(tmp_path / "1.dcm")) == 0x0000


def test_a_film_that_is_sent_again_replaces_the_first(
    hospital: Hospital, listen: Callable[[Config], Server], tmp_path: Path
) -> None:
    """A PACS sends again what it has corrected, such as a patient id after two records were merged."""
    config = hospital.receives()
    server = listen(config)
    assert send(server, write_dicom(tmp_path / "1.dcm", patient="P1", sop="1.2.3")) == 0x0000
    assert send(server, write_dicom(tmp_path / "2.dcm", patient="P2", sop="1.2.3")) == 0x0000
    assert [dcmread(path).PatientID for path in hospital.inbox()] == ["P2"]
    assert scanning.scan(config).files == 1


def test_a_port_that_is_taken_and_a_host_that_is_unknown_are_said_at_the_start(
    hospital: Hospital, listen: Callable[[Config], Server]
) -> None:
    server = listen(hospital.receives())
    with pytest.raises(UsageError, match="can't be listened on"):
        Server(hospital.receives(port=server.port))
    assert receiver.main(str(hospital.folder)) == 2
    assert status.report(Config.load(hospital.folder, {}))["problems"][-1]["code"] == "RECEIVER_PORT"
    with pytest.raises(UsageError, match="is not known here"):
        Server(hospital.receives(peers={"PACS": "no-such-host.invalid"}))


def test_silo_receive_listens_until_it_is_told_to_stop(hospital: Hospital, tmp_path: Path) -> None:
    needs(STORESCU, "dcmtk")
    config = hospital.receives()
    assert config.settings.receiver is not None
    port = config.settings.receiver.port
    process = subprocess.Popen(
        [sys.executable, "-m", "silo_node.cli", "receive", str(hospital.folder), "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 30
        while not (hospital.folder / "receiver.json").exists():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        image = write_dicom(tmp_path / "1.dcm")
        subprocess.run(
            [str(STORESCU), "-aet", "HOSPITAL-PACS", "-aec", "SILO", "127.0.0.1", str(port), str(image)],
            check=True, capture_output=True, timeout=30,
        )  # fmt: skip
        assert len(hospital.inbox()) == 1
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert json.loads((hospital.folder / "receiver.json").read_text())["state"] == "stopped"
    assert process.stdout is not None
    printed = process.stdout.read()
    found = [json.loads(line) for line in printed.splitlines()]
    assert [each["event"] for each in found] == ["receiver.listening", "receiver.association", "receiver.stopped"]
    assert found[1]["counts"] == {"received": 1}
    assert not [secret for secret in ("P1", "Secretly", dcmread(image).SOPInstanceUID, str(image)) if secret in printed]
