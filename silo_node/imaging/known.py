"""What the index says of a file, held against the file that was opened: exchanged after the scan, it is refused.

    root              its real path lies in the folder of which it was indexed (links inside that folder are followed)
    size, mtime_ns    of the open file, before and after it was read
    identity          SOP instance and patient in its header: a time can be set by whoever writes the file

A process that decodes gets the identity as a digest and answers with a code: no header value passes either way.
"""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from silo_node.imaging.bounded import Changed


class Indexed(Protocol):
    """A file as the index or the cohort names it. `root`: real path of the folder of which it was indexed."""

    @property
    def path(self) -> Path: ...
    @property
    def root(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def sop(self) -> str | None: ...
    @property
    def patient(self) -> str | None: ...


@dataclass(frozen=True)
class Known:
    """What an opened file must be. size: bytes; identity: SHA-256 in hex over SOP instance UID and patient id."""

    root: str
    size: int
    mtime_ns: int
    identity: str

    @classmethod
    def of(cls, file: Indexed) -> Known:
        """What the index says of `file`."""
        return cls(str(file.root), file.size, file.mtime_ns, _identity(file.sop, file.patient))

    def require(self, sop: str | None, patient: str | None) -> None:
        """Raise Changed where a header names another picture or another patient."""
        if _identity(sop, patient) != self.identity:
            raise Changed(errno.ESTALE, "it is of another picture or patient than at the scan")


def _identity(sop: str | None, patient: str | None) -> str:
    return hashlib.sha256(json.dumps([sop, patient]).encode()).hexdigest()
