"""Everything that a silo refuses or fails at, sorted by what the reader can do about it.

    SiloError                 a code for machines, a sentence for people
    ├── UsageError            a setting, a file or an argument is wrong: correct it             exit code 2
    ├── Refused               a rule of this hospital or of the network says no                 exit code 3
    ├── PortalError           the portal can't be used now                                      exit code 4
    │   ├── PortalUnreachable     no answer: network, proxy, portal down; trying again may help
    │   ├── AnswerNotGenuine      an answer that the pinned portal key did not sign; nothing of it is believed
    │   └── ClockWrong            the clocks differ too much; names both times
    ├── PortalRefused         the portal answered, signed, and says no and why                  exit code 3
    ├── AlreadyRunning        another `silo run` holds this folder                              exit code 5
    └── DiskFull              nothing was half-written; make room                               exit code 1

No sentence ever holds a value from a DICOM header or a patient's identifier.
"""

from __future__ import annotations

import errno
from typing import Final

_SQLITE_FULL: Final = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMSIZE"})
"""SQLite tells a quota, and no room for a file beside the database, as a failed write."""


class SiloError(Exception):
    """An error with a machine `code` and a `sentence` for the person who reads it."""

    exit_code = 1

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
        self.sentence = sentence


class UsageError(SiloError):
    """A setting, a file or an argument that its owner must correct."""

    exit_code = 2

    def __init__(self, sentence: str, code: str = "USAGE") -> None:
        super().__init__(code, sentence)


class Refused(SiloError):
    """A rule says no. The gate sends code and sentence to the portal, so both must be free of identities."""

    exit_code = 3


class PortalError(SiloError):
    """The portal can't be used now."""

    exit_code = 4


class PortalUnreachable(PortalError):
    """No answer from the portal itself. code: PROXY_REFUSES and PORTAL_CERTIFICATE where that is known to be why."""

    def __init__(self, sentence: str, code: str = "PORTAL_UNREACHABLE") -> None:
        super().__init__(code, sentence)


class AnswerNotGenuine(PortalError):
    """Somebody answered, but not the portal whose key was pinned at enrolment."""

    def __init__(self, sentence: str) -> None:
        super().__init__("ANSWER_NOT_GENUINE", sentence)


class ClockWrong(PortalError):
    """Portal and silo disagree about the time. The sentence names both."""

    def __init__(self, sentence: str) -> None:
        super().__init__("CLOCK_SKEW", sentence)


class PortalRefused(SiloError):
    """A signed refusal. status: the HTTP status; code and sentence: the portal's own."""

    exit_code = 3

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.status = status


class AlreadyRunning(SiloError):
    """The folder's lock is held."""

    exit_code = 5

    def __init__(self, sentence: str) -> None:
        super().__init__("ALREADY_RUNNING", sentence)


class DiskFull(SiloError):
    """A write did not fit. Raised instead of leaving half a file where a whole one is expected."""

    def __init__(self, sentence: str) -> None:
        super().__init__("SILO_DISK_FULL", sentence)


class Stopping(SiloError):
    """The silo was told to stop while something waited."""

    def __init__(self) -> None:
        super().__init__("STOPPING", "the silo is stopping")


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what it came from, says that a disk, a quota or a limit on the size of files is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if getattr(seen, "sqlite_errorname", "") in _SQLITE_FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
