"""TLS of the receiver: DICOM PS3.15 B.12, that is BCP 195 (RFC 8996 and RFC 9325). A renewed certificate needs no restart.

| what a known host sends                       | what it gets                                          | counted       |
|-----------------------------------------------|-------------------------------------------------------|---------------|
| TLS 1.2 or 1.3 with a cipher of `CIPHERS`     | the association's turn                                | by what comes |
| DICOM without TLS, or anything else           | the connection is closed                              | `not_tls`     |
| an older TLS, another cipher; with `tls_ca`   | an alert, and the connection is closed                | `tls_refused` |
| ... no certificate of these authorities       |                                                       |               |
| nothing for `SECONDS`, or too many at once    | the connection is closed                              | `tls_refused` |
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from silo_node import certificates
from silo_node.config import Config, Receiver
from silo_node.errors import UsageError
from silo_node.keys import check_mode
from silo_node.service import logs

CIPHERS: Final = ":".join(
    f"ECDHE-{signature}-AES{suite}" for suite in ("128-GCM-SHA256", "256-GCM-SHA384") for signature in ("ECDSA", "RSA")
)
"""Of TLS 1.2: those that RFC 9325, 4.2, recommends. TLS 1.3 has its own."""
SECONDS: Final = 10.0
"""From a connection to the end of its handshake."""
PLACES: Final = 4
"""Handshakes of one host at once, for each association allowed: more threads than that no host can hold up."""
_HANDSHAKE: Final = b"\x16"
"""The first byte of a TLS connection (RFC 8446, 5.1); of a DICOM association it is 0x01."""


def load(config: Config, settings: Receiver) -> tuple[ssl.SSLContext, datetime]:
    """The context of the settings' certificate, and the end of its validity. Raises: UsageError (RECEIVER_CERTIFICATE)."""
    cert, key = config.folder / settings.tls_cert, config.folder / settings.tls_key
    try:
        context, ends = certificates.server_context(cert, key)
    except certificates.Unusable as error:
        raise UsageError(f"The receiver's {error}", "RECEIVER_CERTIFICATE") from None
    check_mode(key, "RECEIVER_CERTIFICATE")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # An association lasts for many images: nothing is gained by resuming a session, and no key for it must be kept.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    if settings.tls_ca:
        _ask_for_certificates(context, config.folder / settings.tls_ca)
    return context, ends


def _ask_for_certificates(context: ssl.SSLContext, path: Path) -> None:
    from cryptography import x509

    try:
        context.load_verify_locations(path)
        known = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The receiver's tls_ca {path} can't be used ({certificates.why(error)}).", "RECEIVER_CERTIFICATE"
        ) from None
    if all(each.not_valid_after_utc <= datetime.now(UTC) for each in known):
        raise UsageError(f"No authority in the receiver's tls_ca {path} is valid any more.", "RECEIVER_CERTIFICATE")
    context.verify_mode = ssl.CERT_REQUIRED


class Tls:
    """The handshakes, each in the thread of its connection. count: takes a word for each that was refused.

    Raises: UsageError (RECEIVER_CERTIFICATE).
    """

    def __init__(self, config: Config, settings: Receiver, count: Callable[[str], None]) -> None:
        self._config, self._settings, self._count = config, settings, count
        self._files = [config.folder / name for name in (settings.tls_cert, settings.tls_key, settings.tls_ca) if name]
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()
        self._seen = certificates.stamps(self._files)
        self._context, _ = load(config, settings)

    def secured(self, connection: socket.socket, host: str) -> socket.socket | None:
        """The same connection under TLS; None where it was refused, and is closed."""
        with self._lock:
            self._under_way[host] += 1
            many = self._under_way[host] > PLACES * self._settings.max_associations
        end = time.monotonic() + SECONDS
        try:
            if many:
                return self._refuse(connection, host, "tls_refused", "too many at once")
            connection.settimeout(SECONDS)
            first = connection.recv(1, socket.MSG_PEEK)
            if first == b"":  # a look whether the port is open
                connection.close()
                return None
            if first != _HANDSHAKE:
                return self._refuse(connection, host, "not_tls", "no TLS")
            connection = self._current().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            # For all of it, however slowly it drips in.
            connection.settimeout(max(end - time.monotonic(), 0.001))
            connection.do_handshake()
            return connection
        except OSError as error:
            return self._refuse(
                connection, host, "tls_refused", getattr(error, "verify_message", "") or certificates.why(error)
            )
        finally:
            with self._lock:
                self._under_way[host] -= 1

    def _refuse(self, connection: socket.socket, host: str, what: str, reason: str) -> None:
        self._count(what)
        # The host is one of silo.toml, the reason is OpenSSL's own word: nothing here is the peer's.
        logs.get().warning("receiver.not_secured", host=host, what=what, why=reason)
        connection.close()

    def _current(self) -> ssl.SSLContext:
        """With what lies on the disk now, where it can be used: a renewed certificate needs no restart."""
        with self._lock:
            state = certificates.stamps(self._files)
            if state != self._seen:
                self._seen = state
                try:
                    self._context, ends = load(self._config, self._settings)
                except UsageError as error:
                    # Perhaps one of two files is new and the other not yet. `silo status` says the same.
                    logs.get().error("receiver.certificate_kept", code=error.code, sentence=error.sentence)
                else:
                    logs.get().info("receiver.certificate_taken", valid_until=ends.isoformat())
            return self._context
