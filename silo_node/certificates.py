"""A TLS server's certificate and key, checked before anybody is served: for the node's page and the receiver."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_OTHER_KEY: Final = "the key belongs to another certificate"
_WORDS: Final = {"KEY_VALUES_MISMATCH": _OTHER_KEY, "KEY_TYPE_MISMATCH": _OTHER_KEY}


class Unusable(Exception):
    """Its text goes on after "The page's" or "The receiver's"."""


def server_context(cert: Path, key: Path) -> tuple[ssl.SSLContext, datetime]:
    """A server's context that shows this certificate, and the end of its validity.

    Raises: Unusable, where a file is missing, the two don't belong together, or the certificate is not valid now.
    """
    from cryptography import x509

    for path in (cert, key):
        try:
            there = path.is_file()
        except OSError:
            there = False
        if not there:
            raise Unusable(f"{path} is missing or can't be reached.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key under a passphrase is refused: nobody would be there to type it.
        context.load_cert_chain(cert, key, password=lambda: "")
        found = x509.load_pem_x509_certificate(cert.read_bytes())
    except (OSError, ValueError) as error:
        raise Unusable(f"certificate {cert} with the key {key} can't be used ({why(error)}).") from None
    now = datetime.now(UTC)
    if found.not_valid_after_utc <= now:
        raise Unusable(f"certificate {cert} was valid until {found.not_valid_after_utc:%Y-%m-%d}.")
    if found.not_valid_before_utc > now:
        raise Unusable(f"certificate {cert} is not valid before {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC.")
    return context, found.not_valid_after_utc


def end_of(cert: Path) -> datetime | None:
    """The end of a certificate's validity, over or not; None where the file can't be read."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return None


def stamps(files: Iterable[Path]) -> list[tuple[int, int, int] | None]:
    """Inode, time (ns) and size of each, which change when it is renewed; None for one that can't be looked at."""
    found: list[tuple[int, int, int] | None] = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return found


def why(error: Exception) -> str:
    """Words of OpenSSL's own, or of the system, never of a file or a peer."""
    reason = getattr(error, "reason", None)
    return _WORDS.get(reason or "", reason) or getattr(error, "strerror", None) or type(error).__name__
