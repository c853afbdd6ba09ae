"""The way to the portal, one link after the other, so that the first broken one is named: for `silo doctor`.

name resolution -> proxy -> TCP -> TLS -> HTTP. Only the portal named in silo.toml, and the proxy of the environment, are
asked, and nothing but `GET /` is sent; what is signed goes through egress.py as everything else.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from silo_node import proxy as proxies
from silo_node.config import Config
from silo_node.errors import UsageError

SECONDS: Final = 5.0
"""Each step at most."""


class Broken(Exception):
    """A link of the way. said: what was found; do: what to do about it."""

    def __init__(self, said: str, do: str) -> None:
        super().__init__(said)
        self.said, self.do = said, do


@dataclass(frozen=True)
class Target:
    """The portal, and the proxy before it (proxy.py). proxy: (host, port), None without one."""

    scheme: str
    host: str
    port: int
    proxy: tuple[str, int] | None
    login: str

    @classmethod
    def of(cls, config: Config) -> Target:
        """Raises: Broken, for a proxy whose address can't be read."""
        parts = urlsplit(config.portal)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname or ""
        try:
            found = proxies.of(config)
        except UsageError as error:
            raise Broken(error.sentence, proxies.WRITE) from None
        if found is None:
            return cls(parts.scheme, host, port, None, "")
        proxy = urlsplit(found)
        login = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}" if proxy.username else ""
        return cls(parts.scheme, host, port, (proxy.hostname or "", proxy.port or 80), login)

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


def resolve(host: str) -> list[str]:
    """The addresses of a name. Raises: Broken."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Broken(
            f"The name {host} is not found: {error.strerror or error}.",
            "Check the spelling in silo.toml, and this machine's name server (/etc/resolv.conf). Behind a proxy that looks "
            "names up itself, set `proxy` there.",
        ) from None
    return sorted({str(each[4][0]) for each in found})


def connect(host: str, port: int, what: str) -> socket.socket:
    """TCP. Raises: Broken."""
    resolve(host)
    try:
        return socket.create_connection((host, port), SECONDS)
    except ConnectionRefusedError:
        raise Broken(
            f"{what} {host}:{port} refuses the connection: nothing listens there.",
            f"Check host and port of {what}, or ask who runs it whether it is down.",
        ) from None
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
        raise Broken(
            f"{what} {host}:{port} can't be reached ({why}).",
            f"Ask who runs the firewall to let this machine out to {host}:{port} by TCP, or set `proxy` in silo.toml "
            "where a proxy is the way out.",
        ) from None


def through_proxy(target: Target) -> socket.socket:
    """A connection to the portal by CONNECT. Raises: Broken."""
    host, port = target.proxy or ("", 0)
    connection = connect(host, port, "the proxy")
    head = f"CONNECT {target.name} HTTP/1.1\r\nHost: {target.name}\r\n"
    if target.login:
        from base64 import b64encode

        head += f"Proxy-Authorization: Basic {b64encode(target.login.encode()).decode()}\r\n"
    try:
        connection.settimeout(SECONDS)
        connection.sendall((head + "\r\n").encode())
        answer = http.client.HTTPResponse(connection, method="CONNECT")
        answer.begin()
        status = answer.status
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise Broken(
            f"The proxy {host}:{port} takes the connection and does not answer CONNECT ({type(error).__name__}).",
            "Check that `proxy` in silo.toml, or HTTPS_PROXY, names an HTTP proxy and its right port.",
        ) from None
    if status == 200:
        return connection
    connection.close()
    if status == 407:
        raise Broken(
            f"The proxy {host}:{port} wants a name and a password (407).",
            "Put them into `proxy` in silo.toml, or HTTPS_PROXY, as http://NAME:PASSWORD@HOST:PORT, in a file that only the "
            "silo's user reads.",
        )
    if status >= 500:
        raise Broken(
            f"The proxy {host}:{port} works, but can't reach {target.name} itself ({status}).",
            "Ask who runs the proxy whether it may reach that host; if so, the portal is down: tell the network's admin.",
        )
    raise Broken(
        f"The proxy {host}:{port} refuses to let this machine through to {target.name} ({status}).",
        f"Ask who runs the proxy to allow CONNECT to {target.name} for this machine.",
    )


def trusted(config: Config) -> ssl.SSLContext:
    """The authorities that count. Raises: Broken, naming the file."""
    bundle: Path | None = config.ca_bundle
    if bundle is None:
        named = os.environ.get("SSL_CERT_FILE")
        return ssl.create_default_context(cafile=named if named and Path(named).is_file() else _default_file())
    try:
        text = bundle.read_bytes()
    except OSError as error:
        raise Broken(
            f"The CA bundle {bundle} can't be read: {error.strerror}.",
            "Correct `ca_bundle` in silo.toml, or the file's owner and mode.",
        ) from None
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise Broken(
            f"The CA bundle {bundle} holds no certificate in PEM form.",
            "Export the authority as PEM (Base64); `openssl x509 -inform der -in FILE -out FILE.pem` turns a DER file into "
            "one.",
        )
    try:
        return ssl.create_default_context(cafile=str(bundle))
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise Broken(
            f"The CA bundle {bundle} can't be used: {reason}.",
            "Export the authority as PEM again; the file is damaged.",
        ) from None


def _default_file() -> str | None:
    """As httpx takes them, so that this sees what the silo sees."""
    try:
        import certifi
    except ImportError:
        return None
    return certifi.where()


def tls(target: Target, connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Raises: Broken, with what the verification said."""
    try:
        connection.settimeout(SECONDS)
        return context.wrap_socket(connection, server_hostname=target.host)
    except ssl.SSLCertVerificationError as error:
        raise Broken(
            f"The certificate that {target.name} shows is not accepted: {error.verify_message}.",
            "If your proxy opens TLS, or the portal has an authority of its own, put that authority's PEM file into "
            "silo.toml as `ca_bundle`. Otherwise somebody may be in between: ask the network's admin before you go on.",
        ) from None
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise Broken(
            f"{target.name} does not speak TLS as expected: {reason}.",
            "Check the port in `portal` of silo.toml, and whether it is https:// at all.",
        ) from None


@contextlib.contextmanager
def way(config: Config) -> Iterator[socket.socket]:
    """An open connection, by the proxy where there is one, with TLS where the portal has it. Raises: Broken."""
    target = Target.of(config)
    if target.proxy is None or target.scheme == "http":
        connection = connect(
            *(target.proxy or (target.host, target.port)), "the proxy" if target.proxy else "the portal"
        )
    else:
        connection = through_proxy(target)
    try:
        yield tls(target, connection, trusted(config)) if target.scheme == "https" else connection
    finally:
        connection.close()


def ask(config: Config) -> tuple[int, float | None]:
    """HTTP. (status of `GET /`, seconds by which the answer's Date is ahead of this clock; None without one).

    Raises: Broken.
    """
    target = Target.of(config)
    path = "/" if target.proxy is None or target.scheme == "https" else f"{config.portal}/"
    with way(config) as connection:
        try:
            connection.settimeout(SECONDS)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {target.name}\r\nConnection: close\r\n\r\n".encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
        except (OSError, http.client.HTTPException) as error:
            raise Broken(
                f"{target.name} takes the connection and does not answer HTTP ({type(error).__name__}).",
                "Check the port in `portal` of silo.toml; if it is right, tell the network's admin.",
            ) from None
        return answer.status, _ahead(answer.headers.get("Date"))


def _ahead(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - time.time()


def both_times(ahead: float) -> str:
    """A clock that is `ahead` seconds before this one, and this one, in words."""
    here = datetime.now(UTC)
    there = datetime.fromtimestamp(here.timestamp() + ahead, UTC)
    return f"The portal's clock says {there:%Y-%m-%d %H:%M:%S} UTC, this machine's {here:%Y-%m-%d %H:%M:%S} UTC"
