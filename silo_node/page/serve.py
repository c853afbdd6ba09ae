"""The process that serves the page: `silo page`, and a child of `silo run`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from silo_node import certificates
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.page import entries, start
from silo_node.service import logs

if TYPE_CHECKING:
    from granian.server.embed import Server

RENEWAL_SECONDS: Final = 2.0
"""How often the certificate's files are looked at; a look opens neither."""


def serve(config: Config) -> None:
    """Until SIGTERM or SIGINT, then the process ends. A renewed certificate is taken up without a restart.

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
    app = make_app(config, accounts)

    async def run() -> None:
        loop, ended = asyncio.get_running_loop(), False

        def end() -> None:
            nonlocal ended
            ended = True
            server.stop()

        while not ended:
            # Each reads the certificate once. The next one takes the port over within milliseconds.
            server = Server(
                app,
                address=page.host,
                port=page.port,
                interface=Interfaces.ASGINL,
                http=HTTPModes.http1,
                websockets=False,
                log_enabled=False,
                ssl_cert=cert,
                ssl_key=key,
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, end)
            renewed = asyncio.create_task(_stop_at_renewal(config, server)) if cert else None
            await server.serve()
            if renewed is None or not renewed.done():
                break  # stopped, or failed by itself

    logs.get().info("page.started", address=page.origin)
    try:
        asyncio.run(run())
    finally:
        accounts.close()
    # The server's own threads may still be ending, and one that meets Python's clean-up aborts the process.
    sys.stdout.flush()
    os._exit(0)


async def _stop_at_renewal(config: Config, server: Server) -> None:
    """Returns once certificate or key were replaced by ones that can be used. While they can't be (only one of the two is
    new yet), what is in use stays; `silo doctor` says what is wrong with them."""
    files = [config.folder / name for name in (config.settings.page.tls_cert, config.settings.page.tls_key)]
    seen = certificates.stamps(files)
    while True:
        await asyncio.sleep(RENEWAL_SECONDS)
        if certificates.stamps(files) != seen:
            with contextlib.suppress(UsageError):
                await asyncio.to_thread(start.certificate, config)
                logs.get().info("page.certificate_renewed")
                server.stop()
                return


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
