"""One writer at a time for what stewards sign: trust.json, its draft, the policy, decisions about studies, resumes.

Each of these is read, judged and written again; two at once would both find it unwritten, and the last one would win. The
lock is FOLDER/steward.lock; the kernel gives it back when the process dies. Nobody holds it while a person is asked.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from silo_node.config import Config
from silo_node.errors import SiloError

PATIENCE: Final = 30.0
"""Seconds that a second one waits; the longest reason for a first one is a disk that is slow."""
_BETWEEN: Final = 0.05


@contextmanager
def one_at_a_time(config: Config, patience: float = PATIENCE) -> Iterator[None]:
    """Wait until no other process or thread writes what stewards sign. Not to be entered twice by the same one.

    Raises: SiloError STEWARD_BUSY.
    """
    path = config.folder / "steward.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise SiloError(
                        "STEWARD_BUSY",
                        f"another command is writing what the stewards of {config.folder} sign; nothing was changed: wait "
                        "for it to end, then try again",
                    ) from None
                time.sleep(_BETWEEN)
        yield
    finally:
        os.close(handle)
