"""What must hold before the page can be served: its certificate and its address. For the page's process, and for
`silo run`, which says why a page that ended at its start did so."""

from __future__ import annotations

import socket
from datetime import datetime
from pathlib import Path

from silo_node import certificates
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.keys import check_mode

SHORTEST_TOKEN = 20


def check(config: Config) -> None:
    """1. The certificate can be used, is not over, and not everybody here can read its key; 2. so can the token for metrics;
    3. the address is free.

    Raises: UsageError (PAGE_CERTIFICATE, PAGE_TOKEN, PAGE_PORT_TAKEN).
    """
    page = config.settings.page
    # 1
    if page.tls_cert:
        certificate(config)
    # 2
    metrics_token(config)
    # 3
    _free(page.host, page.port)


def certificate(config: Config) -> datetime:
    """The end of its validity, where the settings name one. Raises: UsageError PAGE_CERTIFICATE."""
    page = config.settings.page
    key = config.folder / page.tls_key
    try:
        _, ends = certificates.server_context(config.folder / page.tls_cert, key)
    except certificates.Unusable as error:
        raise UsageError(f"The page's {error}", "PAGE_CERTIFICATE") from None
    # A web server's key often belongs to root and a group of its own.
    check_mode(key, "PAGE_CERTIFICATE", group=True)
    return ends


def metrics_token(config: Config) -> bytes | None:
    """What a scraper must send; None where none is set. Raises: UsageError PAGE_TOKEN."""
    name = config.settings.page.metrics_token_file
    if not name:
        return None
    path = config.folder / Path(name).expanduser()
    try:
        token = path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"[page] metrics_token_file: {path} can't be read ({type(error).__name__}).", "PAGE_TOKEN"
        ) from None
    if len(token) < SHORTEST_TOKEN:
        raise UsageError(
            f"[page] metrics_token_file: the first line of {path} must be a token of {SHORTEST_TOKEN} characters or more.",
            "PAGE_TOKEN",
        )
    return token.encode()


def _free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"The page can't use {host} port {port} ({error.strerror}): another program has it, perhaps a second "
                "silo's page; set [page] port in silo.toml.",
                "PAGE_PORT_TAKEN",
            ) from None
