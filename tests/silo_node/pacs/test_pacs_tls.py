"""DICOM TLS at the receiver: what is not encrypted, too old or not certified gets no association, and nobody holds others up."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydicom import dcmread, uid
from pynetdicom import AE, Association
from pynetdicom.sop_class import ComputedRadiographyImageStorage, Verification

from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.health import doctor, status
from silo_node.pacs import receiver, tls
from silo_node.pacs.receiver import Server
from silo_node.service import logs
from tests.silo_node import faults
from tests.silo_node.imaging.conftest import write_dicom
from tests.silo_node.pacs.conftest import Hospital, needs
from tests.silo_node.pacs.test_pacs_receiver import counts
from tests.silo_node.pacs.test_pacs_receiver import listen as listen  # a fixture

pytestmark = pytest.mark.timeout(60)
STORESCU = shutil.which("storescu")


@dataclass(frozen=True)
class Pair:
    """A certificate for 127.0.0.1 with its key in one PEM file, and the authority that signed it."""

    authority: Path
    pem: Path


def made(folder: Path, **valid: int) -> Pair:
    folder.mkdir()
    authority, pem = faults.certificate(folder, **valid)
    pem.chmod(0o600)
    return Pair(authority, pem)


@pytest.fixture
def mine(tmp_path: Path) -> Pair:
    """The receiver's."""
    return made(tmp_path / "mine")


@pytest.fixture
def pacs(tmp_path: Path) -> Pair:
    """The PACS's own."""
    return made(tmp_path / "pacs")


def receives(hospital: Hospital, mine: Pair, more: str = "", **settings: Any) -> Config:
    return hospital.receives(f'tls_cert = "{mine.pem}"\ntls_key = "{mine.pem}"\n{more}', **settings)


def trusting(mine: Pair, shows: Path | None = None) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context(cafile=str(mine.authority))
    if shows is not None:
        context.load_cert_chain(shows)
    return context


def call(server: Server, context: ssl.SSLContext | None, *, host: str = "127.0.0.1") -> Association:
    ae = AE(ae_title="HOSPITAL-PACS")
    for each in (ComputedRadiographyImageStorage, Verification):
        ae.add_requested_context(each, [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 10
    arguments = None if context is None else (context, "127.0.0.1")
    return ae.associate("127.0.0.1", server.port, ae_title="SILO", tls_args=arguments, bind_address=(host, 0))


def stores(association: Association, dataset: Any) -> int:
    """The status; -1 where the association ended instead."""
    assert association.is_established
    answer = association.send_c_store(dataset)
    association.release()
    return int(answer.Status) if "Status" in answer else -1


def storescu(server: Server, file: Path, *options: str) -> int:
    """Its exit code."""
    command = [str(STORESCU), "-to", "10", "-ta", "10", *options, "-aet", "HOSPITAL-PACS", "-aec", "SILO"]
    done = subprocess.run(
        [*command, "127.0.0.1", str(server.port), str(file)], capture_output=True, timeout=30, check=False
    )
    return done.returncode


def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def counted(hospital: Hospital, **expected: int) -> bool:
    """Soon: a peer may hear of its refusal before it is written."""
    until(lambda: counts(hospital) == expected)
    return True


Listen = Callable[[Config], Server]


# --- who gets an association ---------------------------------------------------------------------------------------------


def test_dcmtk_sends_over_tls_with_and_without_a_certificate_of_its_own(
    hospital: Hospital, mine: Pair, pacs: Pair, listen: Listen, tmp_path: Path
) -> None:
    needs(STORESCU, "dcmtk")
    server = listen(receives(hospital, mine))
    authority = ("+cf", str(mine.authority))
    assert storescu(server, write_dicom(tmp_path / "1.dcm", sop="1.2.1"), "+tla", *authority) == 0
    assert storescu(server, write_dicom(tmp_path / "2.dcm", sop="1.2.2"), "+tls", *[str(pacs.pem)] * 2, *authority) == 0
    assert storescu(server, write_dicom(tmp_path / "3.dcm", sop="1.2.3")) != 0, "without TLS"
    assert {str(dcmread(path).SOPInstanceUID) for path in hospital.inbox()} == {"1.2.1", "1.2.2"}
    assert counted(hospital, received=2, not_tls=1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_carry_images(
    hospital: Hospital, mine: Pair, listen: Listen, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = trusting(mine)
    context.minimum_version = context.maximum_version = version
    big = dcmread(write_dicom(tmp_path / "1.dcm"))
    big.Rows = big.Columns = 1024
    big.PixelData = bytes(range(256)) * 4096
    assert stores(call(listen(receives(hospital, mine)), context), big) == 0x0000
    assert dcmread(hospital.inbox()[0]).PixelData == big.PixelData


@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256"),  # CBC
        (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256"),  # no forward secrecy
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
def test_older_tls_and_weaker_ciphers_are_refused(
    hospital: Hospital, mine: Pair, listen: Listen, version: ssl.TLSVersion, ciphers: str
) -> None:
    server = listen(receives(hospital, mine))
    context = trusting(mine)
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    with socket.create_connection(("127.0.0.1", server.port), 10) as plain, pytest.raises(ssl.SSLError, match="ALERT"):
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    assert counted(hospital, tls_refused=1)


def test_dicom_without_tls_is_refused_and_nothing_of_it_is_printed(
    hospital: Hospital, mine: Pair, listen: Listen, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure(hospital.folder, "site-a")
    server = listen(receives(hospital, mine))
    assert not call(server, None).is_established
    with socket.create_connection(("127.0.0.1", server.port), 10) as browser:
        browser.sendall(b"GET /anna-secret HTTP/1.0\r\n\r\n")
        assert hung_up(browser)
    with socket.create_connection(("127.0.0.1", server.port), 10) as other:
        other.sendall(b"\x16\x03\x01anna-secret" + bytes(100))
        assert hung_up(other)
    assert counted(hospital, not_tls=2, tls_refused=1)
    assert call(server, trusting(mine)).is_established, "it goes on"
    printed = "".join([*capfd.readouterr(), (hospital.folder / "silo.log").read_text()])
    assert "receiver.not_secured" in printed and "anna" not in printed and "HOSPITAL-PACS" not in printed


def hung_up(connection: socket.socket) -> bool:
    """After an alert at most; with a reset where something was left unread."""
    connection.settimeout(10)
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return True


def test_with_authorities_only_a_peer_with_their_certificate_may_send(
    hospital: Hospital, mine: Pair, pacs: Pair, listen: Listen, tmp_path: Path
) -> None:
    server = listen(receives(hospital, mine, f'tls_ca = "{pacs.authority}"'))
    other = made(tmp_path / "other")
    assert not call(server, trusting(mine)).is_established, "no certificate"
    assert not call(server, trusting(mine, other.pem)).is_established, "of another authority"
    assert counted(hospital, tls_refused=2)
    assert stores(call(server, trusting(mine, pacs.pem)), write_dicom(tmp_path / "1.dcm")) == 0x0000


def test_dcmtk_is_held_to_the_authorities_too(
    hospital: Hospital, mine: Pair, pacs: Pair, listen: Listen, tmp_path: Path
) -> None:
    needs(STORESCU, "dcmtk")
    server = listen(receives(hospital, mine, f'tls_ca = "{pacs.authority}"'))
    image, authority = write_dicom(tmp_path / "1.dcm"), ("+cf", str(mine.authority))
    other = made(tmp_path / "other")
    assert storescu(server, image, "+tla", *authority) != 0
    assert storescu(server, image, "+tls", str(other.pem), str(other.pem), *authority) != 0
    assert hospital.inbox() == [] and counted(hospital, tls_refused=2)
    assert storescu(server, image, "+tls", str(pacs.pem), str(pacs.pem), *authority) == 0
    assert counted(hospital, tls_refused=2, received=1)


def test_a_peer_that_does_not_know_the_receivers_authority_sends_nothing(
    hospital: Hospital, mine: Pair, pacs: Pair, listen: Listen, tmp_path: Path
) -> None:
    needs(STORESCU, "dcmtk")
    server = listen(receives(hospital, mine))
    assert storescu(server, write_dicom(tmp_path / "1.dcm"), "+tla", "+cf", str(pacs.authority)) != 0
    assert hospital.inbox() == [] and counted(hospital, tls_refused=1)


def test_title_and_host_are_asked_for_as_ever(hospital: Hospital, mine: Pair, listen: Listen) -> None:
    server = listen(receives(hospital, mine, peers={"OTHER": "127.0.0.1"}))
    assert call(server, trusting(mine)).is_rejected
    assert counted(hospital, rejected=1)


def test_a_stranger_is_hung_up_on_before_a_handshake(hospital: Hospital, mine: Pair, listen: Listen) -> None:
    server = listen(receives(hospital, mine))
    with (
        socket.create_connection(("127.0.0.1", server.port), 10, ("127.0.0.3", 0)) as stranger,
        pytest.raises((ssl.SSLEOFError, ConnectionResetError)),
    ):
        trusting(mine).wrap_socket(stranger, server_hostname="127.0.0.1")
    assert call(server, trusting(mine)).is_established
    assert not (hospital.folder / "receiver.json").read_text().count("tls_refused")


def test_an_instance_larger_than_allowed_ends_the_association_under_tls_too(
    hospital: Hospital, mine: Pair, listen: Listen, tmp_path: Path
) -> None:
    server = listen(receives(hospital, mine, "max_mb = 1"))
    big = dcmread(write_dicom(tmp_path / "1.dcm"))
    big.Rows = big.Columns = 2048
    big.PixelData = bytes(2048 * 2048)
    assert stores(call(server, trusting(mine)), big) == -1
    assert hospital.inbox() == [] and counted(hospital, INSTANCE_TOO_BIG=1)


# --- who stalls ----------------------------------------------------------------------------------------------------------


def test_handshakes_that_stall_hold_up_nobody_and_end(
    hospital: Hospital, mine: Pair, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "SECONDS", 3.0)
    server = listen(receives(hospital, mine))
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(4)]
    for each in silent[:2]:
        each.sendall(b"\x16\x03\x01\x02\x00\x01")  # a handshake's first bytes, and no more
    until(lambda: threading.active_count() >= before + 4)
    began = time.monotonic()
    association = call(server, trusting(mine))
    assert association.is_established and counts(hospital) == {}, "while the others still stall"
    association.release()
    assert all(hung_up(each) for each in silent) and time.monotonic() - began < 9
    assert counted(hospital, tls_refused=4)
    until(lambda: threading.active_count() <= before)


def test_a_handshake_that_drips_is_ended_by_the_clock(
    hospital: Hospital, mine: Pair, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "SECONDS", 1.0)
    server = listen(receives(hospital, mine))
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), 10) as dripping:
        dripping.sendall(b"\x16\x03\x01\x02\x00")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() - began < 15:
                dripping.sendall(b"\x01")
                time.sleep(0.05)  # what drips has no event
    assert time.monotonic() - began < 9 and counted(hospital, tls_refused=1)


def test_a_host_that_stalls_often_takes_no_place_of_another(hospital: Hospital, mine: Pair, listen: Listen) -> None:
    peers = {"OTHER": "127.0.0.2", "HOSPITAL-PACS": "127.0.0.1"}
    server = listen(receives(hospital, mine, "max_associations = 1", peers=peers))
    silent = [socket.create_connection(("127.0.0.1", server.port), 10, ("127.0.0.2", 0)) for _ in range(tls.PLACES + 3)]
    assert counted(hospital, tls_refused=3)
    assert call(server, trusting(mine)).is_established
    for each in silent:
        each.close()


@pytest.mark.parametrize("encrypted", [True, False])
def test_half_a_message_and_then_silence_does_not_keep_an_association_for_ever(
    hospital: Hospital, mine: Pair, listen: Listen, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    monkeypatch.setattr(receiver, "_SILENT", 1.0)
    more = "max_associations = 1"
    server = listen(receives(hospital, mine, more) if encrypted else hospital.receives(more))
    context = trusting(mine) if encrypted else None
    association = call(server, context)
    assert association.is_established
    transport = association.dul.socket
    assert transport is not None and transport.socket is not None
    transport.socket.sendall(b"\x04\x00\x00\x00\x40\x00half")
    end = time.monotonic() + 20
    while not (again := call(server, context)).is_established:
        assert time.monotonic() < end, "the only place is taken for ever"
    again.release()


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_message_that_drips_does_not_keep_an_association_longer_than_a_message_may_take(
    hospital: Hospital, mine: Pair, listen: Listen, encrypted: bool
) -> None:
    """A byte comes before every silence is too long, for as long as the peer likes."""
    more = "max_associations = 1\ninstance_seconds = 2"
    server = listen(receives(hospital, mine, more) if encrypted else hospital.receives(more))
    context = trusting(mine) if encrypted else None
    association = call(server, context)
    assert association.is_established
    transport = association.dul.socket
    assert transport is not None and transport.socket is not None
    peer, began = transport.socket, time.monotonic()
    peer.sendall(b"\x04\x00\x00\x00\x40\x00")
    with pytest.raises(OSError):
        while time.monotonic() < began + 20:
            peer.sendall(b"a")
            time.sleep(0.1)
    assert 1.9 < time.monotonic() - began < 10 and counted(hospital, PACS_SLOW=1)
    until(lambda: (again := call(server, context)).is_established and again.release() is None)


def test_messages_that_are_whole_may_follow_each_other_longer_than_one_may_take(
    hospital: Hospital, listen: Listen, tmp_path: Path
) -> None:
    association = call(listen(hospital.receives("instance_seconds = 1")), None)
    film = dcmread(write_dicom(tmp_path / "1.dcm"))
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert association.send_c_store(film).Status == 0x0000
        time.sleep(0.2)
    association.release()
    assert "PACS_SLOW" not in json.loads((hospital.folder / "receiver.json").read_text())["counts"]


def test_the_end_does_not_wait_for_a_handshake(hospital: Hospital, mine: Pair) -> None:
    server = Server(receives(hospital, mine))
    with socket.create_connection(("127.0.0.1", server.port), 10):
        until(lambda: any("process_request" in thread.name for thread in threading.enumerate()))
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < tls.SECONDS / 2
    assert json.loads((hospital.folder / "receiver.json").read_text())["state"] == "stopped"


# --- the certificate -----------------------------------------------------------------------------------------------------


def split(pair: Pair, folder: Path) -> tuple[Path, Path]:
    """Certificate and key in two files of their own, as a hospital has them."""
    both = pair.pem.read_bytes()
    at = both.index(b"-----BEGIN CERT")
    folder.mkdir(exist_ok=True)
    (folder / "cert.pem").write_bytes(both[at:])
    (folder / "key.pem").write_bytes(both[:at])
    (folder / "key.pem").chmod(0o600)
    return folder / "cert.pem", folder / "key.pem"


def test_a_renewed_certificate_is_taken_at_the_next_association_and_half_of_one_is_not(
    hospital: Hospital, mine: Pair, pacs: Pair, listen: Listen, tmp_path: Path
) -> None:
    cert, key = split(mine, tmp_path / "in use")
    config = hospital.receives(f'tls_cert = "{cert}"\ntls_key = "{key}"')
    server = listen(config)
    open_before = call(server, trusting(mine))
    assert open_before.is_established
    new_cert, new_key = split(pacs, tmp_path / "new")
    cert.write_bytes(new_cert.read_bytes())
    assert call(server, trusting(mine)).is_established, "the old one, until the new key is there too"
    assert (problem(config) or {})["code"] == "RECEIVER_CERTIFICATE"
    key.write_bytes(new_key.read_bytes())
    assert not call(server, trusting(mine)).is_established
    assert call(server, trusting(pacs)).is_established
    assert open_before.send_c_echo().Status == 0x0000, "associations go on"
    assert problem(config) is None


def problem(config: Config) -> dict[str, str] | None:
    """What `silo status` tells of the certificate, once at most."""
    found = [each for each in status.report(config)["problems"] if each["code"].startswith("RECEIVER")]
    assert len(found) < 2 and all(len(each["do"]) > 20 for each in found)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("missing", "is missing"),
        ("no PEM", "can't be used"),
        ("another's key", "belongs to another certificate"),
        ("passphrase", "can't be used"),
        ("over", "was valid until"),
        ("to come", "is not valid before"),
        ("open to others", "chmod 600"),
        ("no authorities", "tls_ca"),
        ("authorities that are over", "valid any more"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_said_at_the_start_in_status_and_by_the_doctor(
    hospital: Hospital,
    mine: Pair,
    pacs: Pair,
    tmp_path: Path,
    fault: str,
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    valid = {"over": {"days": -2}, "to come": {"since": -1, "days": 3}}.get(fault, {})
    cert, key = split(made(tmp_path / "used", **valid) if valid else mine, tmp_path / "in use")
    authority = ""
    if fault == "missing":
        key.unlink()
    elif fault == "no PEM":
        cert.write_text("not a certificate")
    elif fault == "another's key":
        key.write_bytes(split(pacs, tmp_path / "other")[1].read_bytes())
    elif fault == "passphrase":
        under = load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(under.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    elif fault == "open to others":
        key.chmod(0o640)
    elif fault == "no authorities":
        authority = str(tmp_path / "none.pem")
    elif fault == "authorities that are over":
        authority = str(made(tmp_path / "old", days=-2).authority)
    config = hospital.receives(f'tls_cert = "{cert}"\ntls_key = "{key}"\ntls_ca = "{authority}"')
    assert receiver.main(str(hospital.folder)) == 2
    assert "RECEIVER_CERTIFICATE" in capsys.readouterr().err
    found = problem(config)
    assert found is not None and found["code"] == "RECEIVER_CERTIFICATE" and word in found["sentence"]
    [check] = [each for each in doctor.receiver(config) if each.name == "receiver certificate"]
    assert check.state == doctor.FAIL and word in check.found and check.do == found["do"]


@pytest.mark.parametrize("table", ['tls_cert = "a.pem"', 'tls_key = "a.pem"', 'tls_ca = "a.pem"'])
def test_half_of_tls_is_no_setting(hospital: Hospital, table: str) -> None:
    with pytest.raises(UsageError, match="tls_cert and tls_key"):
        hospital.receives(table)
