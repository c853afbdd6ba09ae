"""The process that serves the page: `silo page`, and a child of `silo run`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.page import entries, start
from silo_node.service import logs


def serve(config: Config) -> None:
    """Until SIGTERM or SIGINT, then the process ends.

    Raises: UsageError where the address is taken or the certificate can't be used (start.py).
    """
    start.check(config)
    # HTTP only; no other protocol, no access log: addresses name studies, and a log of readers is nobody's wish.
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    from silo_node.page.app import make_app

    page = config.settings.page
    cert, key = ((config.folder / name) if name else None for name in (page.tls_cert, page.tls_key))
    accounts = entries.opened(config)
    server = Server(
        make_app(config, accounts),
        address=page.host,
        port=page.port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
        ssl_cert=cert,
        ssl_key=key,
    )

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        await server.serve()

    logs.get().info("page.started", address=page.origin)
    try:
        asyncio.run(run())
    finally:
        accounts.close()
    # The server's own threads may still be ending, and one that meets Python's clean-up aborts the process.
    sys.stdout.flush()
    os._exit(0)


def main(folder: str) -> None:
    """As a child of `silo run`."""
    config = Config.load(Path(folder))
    logs.configure(config.folder, config.name)
    try:
        serve(config)
    except UsageError as error:
        # Into page.log, and silo.log: the silo works without its page, and tries to start it again.
        logs.get().error("page.not_served", code=error.code, why=error.sentence)
        sys.exit(f"{error.code} {error.sentence}")


if __name__ == "__main__":
    main(sys.argv[1])
