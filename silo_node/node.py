"""One silo, opened: its settings, keys, pinned portal, journal, logs and connection. What `silo run` works with."""

from __future__ import annotations

import fcntl
import os
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from silo_node.config import Config
from silo_node.egress import Egress
from silo_node.errors import AlreadyRunning
from silo_node.evidence.egress_log import EgressLog
from silo_node.evidence.evidence_log import EvidenceLog
from silo_node.journal import SqliteJournal
from silo_node.keys import Keys
from silo_node.pin import Pin


@dataclass
class Node:
    """Parts are opened when first used; `close` closes those that were.

    pin: None before enrolment; then no answer is verified, and only `enrol` may be called.
    """

    config: Config
    pin: Pin | None
    stop: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def keys(self) -> Keys:
        """The silo's keys."""
        return Keys(self.config)

    @cached_property
    def egress_log(self) -> EgressLog:
        """What left."""
        return EgressLog(self.config.folder / "egress.db")

    @cached_property
    def egress(self) -> Egress:
        """The connection for the work."""
        return self.connection()

    @cached_property
    def journal(self) -> SqliteJournal:
        """What survives kill -9. Only the holder of the lock may open it."""
        return SqliteJournal(self.config.folder / "journal.db")

    @cached_property
    def evidence(self) -> EvidenceLog:
        """The silo's own audit log."""
        organisation = self.pin.organisation if self.pin is not None else ""
        return EvidenceLog(self.config.folder, self.keys, silo=self.config.name, organisation=organisation)

    def connection(self, *, probed: bool = False) -> Egress:
        """Another connection to the portal (the poll has its own, which is probed)."""
        return Egress(self.config, self.keys.silo, self.pin, self.egress_log, stop=self.stop, probed=probed)

    def close(self) -> None:
        """Close what was opened."""
        for name in ("egress", "journal", "evidence", "egress_log"):
            if name in self.__dict__:
                getattr(self, name).close()


class FolderLock:
    """FOLDER/silo.lock, held as long as `silo run` lives, with its process id; the kernel gives it back when that dies."""

    def __init__(self, folder: Path) -> None:
        path = folder / "silo.lock"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 32, 0).decode("ascii", "replace").strip()
            os.close(self._handle)
            raise AlreadyRunning(
                f"another `silo run` (process {holder or 'unknown'}) works in {folder}; "
                "two would answer for one silo: stop that one first"
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it back."""
        os.close(self._handle)


def runs(folder: Path) -> bool:
    """Whether a `silo run` holds this silo's folder."""
    try:
        handle = os.open(folder / "silo.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared and only read: who looks needs no drive that can be written.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
