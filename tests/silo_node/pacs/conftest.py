"""A silo's folder with settings for a PACS, a private Orthanc, and a PACS that lies."""

from __future__ import annotations

import csv
import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from demo.processes import free_port
from silo_node.config import Config

ORTHANC = shutil.which("Orthanc")
PLUGIN = next(iter(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb*.so")), None)
ROOT = Path(__file__).resolve().parents[3]
CHEST = Path(os.environ.get("CHEST", ROOT.parent / "shared" / "data" / "chest"))


def needs(condition: object, what: str) -> None:
    """Skips with the way to get it; in CI, where everything is installed, fails instead."""
    if not condition:
        if os.environ.get("CONSILIUM_TEST_ALL"):
            pytest.fail(f"{what} is missing, and CONSILIUM_TEST_ALL is set")
        pytest.skip(f"{what} is not here: apt-get install orthanc orthanc-dicomweb dcmtk")


class Orthanc:
    """A private Orthanc; `start` again after `kill` keeps its files and ports."""

    user, password = "silo", "pacs-secret"

    def __init__(self, folder: Path) -> None:
        self.port, self.dicom_port, self._folder = free_port(), free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"
        self._settings = folder / "orthanc.json"
        self._settings.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
                    "HttpPort": self.port, "DicomPort": self.dicom_port, "DicomAet": "ORTHANC",
                    "RemoteAccessAllowed": False, "DicomAlwaysAllowStore": True, "AuthenticationEnabled": True,
                    "RegisteredUsers": {self.user: self.password}, "Plugins": [str(PLUGIN)],
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, "DicomCheckCalledAet": False,
                }
            )
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen([str(ORTHANC), str(self._settings)], stdout=log, stderr=log)
        until = time.monotonic() + 30
        while True:
            try:
                requests.get(f"http://127.0.0.1:{self.port}/system", auth=(self.user, self.password), timeout=5)
                return
            except requests.ConnectionError:
                assert time.monotonic() < until, (self._folder / "orthanc.log").read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def store(self, files: list[Path]) -> list[str]:
        """Orthanc's own ids of what it stored."""
        return [self.ask("POST", "/instances", file.read_bytes())["ID"] for file in files]

    def ask(self, method: str, path: str, body: bytes) -> Any:
        answer = requests.request(
            method, f"http://127.0.0.1:{self.port}{path}", data=body, auth=(self.user, self.password), timeout=60
        )
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.content else None


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    needs(ORTHANC and PLUGIN, "Orthanc with its DICOMweb plugin")
    folder = tmp_path / "orthanc"
    folder.mkdir()
    server = Orthanc(folder)
    server.start()
    yield server
    server.kill()


class Hospital:
    """A silo's folder; nobody is enrolled, because nothing here talks to a portal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder.parent / "data"
        self.data.mkdir()
        folder.mkdir(mode=0o700)

    def config(self, tables: str = "", limits: str = "") -> Config:
        (self.folder / "silo.toml").write_text(
            f'name = "site-a"\nportal = "http://127.0.0.1:1"\ndata = "{self.data}"\n[limits]\n{limits}{tables}'
        )
        return Config.load(self.folder, {})

    def asks(self, url: str, more: str = "", *, user: str = "", password: str = "") -> Config:
        (self.folder / "pacs.password").write_text(password + "\n")
        sign_in = f'user = "{user}"\npassword_file = "pacs.password"\n' if user else ""
        return self.config(f'[dicomweb]\nurl = "{url}"\n{sign_in}free_mb = 0\ntimeout_seconds = 5\n{more}\n')

    def asks_orthanc(self, orthanc: Orthanc, more: str = "") -> Config:
        return self.asks(orthanc.url, more, user=orthanc.user, password=orthanc.password)

    def opts_out(self, *patients: str) -> None:
        lines = [f"{patient},2024-01-01" for patient in patients]
        (self.folder / "opt_out.csv").write_text("\n".join(["PatientID,date", *lines]) + "\n")

    def receives(
        self,
        more: str = "",
        *,
        port: int | None = None,
        peers: Mapping[str, str] = MappingProxyType({"HOSPITAL-PACS": "127.0.0.1"}),
        free_mb: int = 0,
    ) -> Config:
        """A receiver for these peers (AE title -> host)."""
        lines = ", ".join(f'{{ ae_title = "{title}", host = "{host}" }}' for title, host in peers.items())
        return self.config(
            f'[receiver]\nport = {port or free_port()}\nae_title = "SILO"\nfree_mb = {free_mb}\n'
            f"peers = [{lines}]\n{more}\n"
        )

    def inbox(self) -> list[Path]:
        return sorted((self.folder / "inbox").glob("??/*.dcm"))


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "silo")


@pytest.fixture(scope="session")
def chest() -> list[Path]:
    """200 chest films: 100 of the first site and 100 of the third (RLE)."""
    if not CHEST.is_dir():
        pytest.skip(f"{CHEST} is not here: set CHEST to the folder of chest films")
    files = [sorted(path for path in (CHEST / site).rglob("*.dcm"))[:100] for site in ("site_1", "site_3")]
    found = [path for part in files for path in part]
    assert len(found) == 200
    return found


Answer = Callable[[BaseHTTPRequestHandler], None]


class Liar:
    """A DICOMweb server whose answers a test writes: `studies` and `instances` for QIDO, `wado` for the bytes."""

    study, series = "1.2.3", "1.2.3.4"

    def __init__(self) -> None:
        self.instances: list[str] = ["1.2.3.4.5"]
        self.patient: str | None = "P1"
        self.count: int | None = None
        self.asked: list[str] = []
        self.wado: Answer = lambda request: request.send_error(404)
        self.search: Answer | None = None
        liar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.close_connection = True
                liar.asked.append(self.path)
                path, _, query = self.path.partition("?")
                if "/series/" in path:
                    liar.wado(self)
                elif liar.search is not None:
                    liar.search(self)
                elif path.endswith("/instances"):
                    rows = [
                        {"00080018": _v(sop), "0020000E": _v(liar.series), "00080060": _v("CR")}
                        for sop in liar.instances
                    ]
                    reply(self, json.dumps(rows if "offset=0" in query or "offset" not in query else []).encode())
                else:
                    row = {"0020000D": _v(liar.study), "00201208": _v(liar.count or len(liar.instances))}
                    if liar.patient is not None:
                        row["00100020"] = _v(liar.patient)
                    reply(self, json.dumps([row] if "offset=0" in query or "offset" not in query else []).encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign] # the silo hangs up: that is the test
        self.url = f"http://127.0.0.1:{self.server.server_port}/dicom-web"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def encrypt(self, certificate: Path, key: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = self.url.replace("http://", "https://")

    def wado_asked(self) -> int:
        return sum("/series/" in path for path in self.asked)


def chest_labels(films: list[Path]) -> str:
    """labels.csv of these films, by SOP instance: no path, because the PACS knows none."""
    named = {(path.parents[1].parent.name, f"{path.parent.name}/{path.name}") for path in films}
    lines = ["PatientID,SOPInstanceUID,label,split"]
    for site in sorted({site for site, _ in named}):
        with (CHEST / site / "labels.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if (site, row["file"].removeprefix("dicom/")) in named:
                    lines.append(f"{row['PatientID']},{row['SOPInstanceUID']},{row['label']},{row['split']}")
    assert len(lines) == len(films) + 1
    return "\n".join(lines) + "\n"


def _v(value: Any) -> dict[str, Any]:
    return {"vr": "UI", "Value": [value]}


def reply(
    request: BaseHTTPRequestHandler, body: bytes, kind: str = "application/dicom+json", length: int | None = None
) -> None:
    request.send_response(200)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(body)


MULTIPART = 'multipart/related; type="application/dicom"; boundary=frontier'


def part(data: bytes) -> bytes:
    """A multipart body with one instance."""
    return b"--frontier\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--frontier--\r\n"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pacs")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "pacs.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "pacs.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "pacs.pem", folder / "pacs.key"


@pytest.fixture
def liar() -> Iterator[Liar]:
    server = Liar()
    yield server
    server.server.shutdown()
    server.server.server_close()
