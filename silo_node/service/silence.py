"""Hearing that a network has gone silent, without asking anything: the kernel probes a connection on which nothing moves.

A probe is one packet without content, which the other side's kernel answers; no program there hears of it. What a proxy
takes is answered by the proxy: silence beyond it is not heard here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

EVERY: Final = 1
LOST: Final = 3
"""Seconds between two probes; so many lost ones in a row end the connection, less than five seconds after the fault."""


def heard(event: str, info: Mapping[str, Any]) -> None:
    """A `trace` of httpx: each TCP connection that it makes is probed from then on."""
    if event.endswith(".connect_tcp.complete"):
        connection: socket.socket = info["return_value"].get_extra_info("socket")
        for level, name, value in _options():
            connection.setsockopt(level, name, value)


def _options() -> Iterator[tuple[int, int, int]]:
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    values = {
        "TCP_KEEPIDLE": EVERY,
        "TCP_KEEPINTVL": EVERY,
        "TCP_KEEPCNT": LOST,
        # The same for a request that is on its way; half a second less, so that the last probe's turn ends it.
        "TCP_USER_TIMEOUT": int((LOST + 0.5) * EVERY * 1000),
    }
    for name, value in values.items():
        # Not every system has all of them.
        if (number := getattr(socket, name, None)) is not None:
            yield socket.IPPROTO_TCP, number, value
