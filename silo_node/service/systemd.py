"""What systemd is told, where it started this silo (Type=notify): that it is ready, that it lives, that it ends.

One datagram to the socket that systemd names in NOTIFY_SOCKET (sd_notify(3)). Without that variable nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send `READY=1`, `WATCHDOG=1`, `RELOADING=1` or `STOPPING=1`; never fails."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def watchdog_seconds(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often `WATCHDOG=1` is due: a third of the time after which systemd starts the silo again. None: never."""
    text = environment.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 3_000_000 or None
