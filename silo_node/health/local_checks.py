"""What can be wrong in this hospital and is found without the network: for the running silo, `silo status` and `silo doctor`.

Each function looks at one thing and returns what is wrong with it as errors of ours (code, sentence), an empty list where
nothing is. None changes anything, opens an image, or names a patient.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from protocol.approval import ApprovalError, Statement, parse_statement
from protocol.data_use.document import parse_time
from silo_node import key_history
from silo_node.config import Config
from silo_node.errors import Refused, SiloError, UsageError, is_disk_full
from silo_node.evidence import portal_log
from silo_node.pacs import tls
from silo_node.steward import documents

Found = list[SiloError]
TRIED_BYTES: Final = 1 << 16
"""What is written, and removed again, to find a quota or a full disk that the free space does not show."""


def disk(config: Config) -> Found:
    """Whether the silo's disk has room, by its free space and by writing."""
    least = config.settings.limits.free_mb
    if shutil.disk_usage(config.folder).free // 1_000_000 < least:
        return [Refused("SILO_DISK_FULL", f"Less than {least} MB are free on the disk of {config.folder}.")]
    path = config.folder / f".room-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        path.write_bytes(bytes(TRIED_BYTES))
    except OSError as error:
        if is_disk_full(error):
            return [Refused("SILO_DISK_FULL", f"Nothing more can be written in {config.folder}: {error.strerror}.")]
        if error.errno == errno.EROFS:
            return [UsageError(f"The drive of {config.folder} is mounted read-only: mount it for writing.")]
        return [UsageError(f"{config.folder} can't be written by this user: {error.strerror}; correct owner and mode.")]
    finally:
        with suppress(OSError):  # of a drive that can't be written: what failed first is what to say
            path.unlink(missing_ok=True)
    return []


def data_folder(config: Config) -> Found:
    """Whether the DICOM folder is there, can be read, and holds something."""
    folder = config.data
    try:
        empty = not any(folder.iterdir())
        readable = os.access(folder, os.R_OK | os.X_OK)
    except (FileNotFoundError, NotADirectoryError):
        return [UsageError(f"The DICOM folder {folder} is not there.", "DATA_FOLDER_MISSING")]
    except OSError as error:
        return [UsageError(f"The DICOM folder {folder} can't be read: {error.strerror}.", "DATA_FOLDER_UNREADABLE")]
    if not readable:
        return [UsageError(f"The DICOM folder {folder} can't be read by this user.", "DATA_FOLDER_UNREADABLE")]
    if empty:
        return [UsageError(f"The DICOM folder {folder} is empty.", "DATA_FOLDER_EMPTY")]
    return []


def emptied(config: Config) -> Found:
    """As `data_folder`, where a folder that never held anything is no fault yet."""
    found = data_folder(config)
    return [each for each in found if each.code != "DATA_FOLDER_EMPTY" or config.index_db.exists()]


class Labels:
    """labels.csv, read again only when it changed: a long one takes a second."""

    def __init__(self) -> None:
        self._seen: tuple[Path, int, int] | None = None
        self._found: Found = []

    def __call__(self, config: Config) -> Found:
        """What is wrong with it; nothing while the DICOM folder is away, or where there are neither images nor labels."""
        if any(each.code != "DATA_FOLDER_EMPTY" for each in data_folder(config)):
            return []
        path = config.labels
        try:
            status = path.stat()
        except OSError:
            status = None
        now = (path, status.st_mtime_ns, status.st_size) if status is not None else None
        if now is None or now != self._seen:
            self._seen, self._found = now, self._read(config)
        return self._found

    @staticmethod
    def _read(config: Config) -> Found:
        from silo_node import scanning

        if not config.labels.exists() and not config.index_db.exists():
            return []
        wrong = scanning.labels_problem(config)
        return [wrong] if wrong is not None else []


def approvals(config: Config, now: datetime | None = None) -> Found:
    """Studies whose approval is over although the study is not."""
    now = now or datetime.now(UTC)
    found: Found = []
    for study in studies(config):
        ends = approved_until(config, study)
        if ends is not None and ends <= now and not documents.is_over(config, study, now):
            sentence = f"This hospital's approval of {study} was valid until {ends:%Y-%m-%d %H:%M:%S} UTC and is over."
            found.append(Refused("APPROVAL_EXPIRED", sentence))
    return found


def studies(config: Config) -> list[str]:
    """Studies about which stewards here have said something."""
    return sorted(path.name for path in config.approvals.iterdir()) if config.approvals.is_dir() else []


def approved_until(config: Config, study: str) -> datetime | None:
    """The end of the newest approval that no later statement ended; None where there is none. No signature is verified
    here: that is the gate's, before each round."""
    statements: list[Statement] = []
    for envelope in documents.load_approvals(config, study):
        try:
            statements.append(parse_statement(envelope.payload))
        except ApprovalError:
            continue  # the gate says so, and refuses
    newest = max(statements, key=lambda each: parse_time(each.time), default=None)
    if newest is None or newest.decision != "approve":
        return None
    return parse_time(newest.not_after)


def policy(config: Config) -> Found:
    """Whether the policy that was signed here is in force."""
    if not config.policy.exists():
        return []
    documents.load_policy(config, documents.load_trust(config), now=datetime.now(UTC))
    return []


def log_conflict(config: Config) -> Found:
    """Whether the portal was caught with two logs."""
    caught = portal_log.conflict(config)
    return [caught] if caught is not None else []


def new_key(config: Config) -> Found:
    """Whether a new key of this silo waits to come into force."""
    waiting = key_history.waiting(config)
    return [waiting] if waiting is not None else []


def receiver_certificate(config: Config) -> Found:
    """Whether the receiver's certificate can be used, where it has one: also one that ends while the receiver runs."""
    settings = config.settings.receiver
    if settings is not None and settings.tls_cert:
        tls.load(config, settings)
    return []


def rights(config: Config) -> Found:
    """The folder and its keys belong to this user, nobody else can read the keys, nor everybody the passwords of others."""
    found: Found = []
    for path in (config.folder, config.keys, *sorted(config.keys.glob("*"))):
        try:
            status = path.stat()
        except OSError as error:
            found.append(UsageError(f"{path}: {error.strerror}."))
            continue
        if status.st_uid != os.getuid():
            found.append(
                UsageError(f"{path} belongs to another user (id {status.st_uid}): run as that user, or `chown`.")
            )
        mode = stat.S_IMODE(status.st_mode)
        if path == config.folder:
            if mode & 0o022:
                found.append(UsageError(f"{path} can be changed by others (mode {mode:o}): `chmod 700 {path}`."))
        elif mode & 0o077:
            found.append(UsageError(f"{path} is open to others (mode {mode:o}): `chmod go= {path}`."))
    for path in _secrets(config):
        # Another owner and a group of its own are usual for these; everybody on the machine is not.
        if path.is_file() and path.stat().st_mode & 0o007:
            found.append(UsageError(f"{path} is open to everybody on this machine: `chmod o= {path}`."))
    return found


def _secrets(config: Config) -> list[Path]:
    """Files with a password, token or key that silo.toml names."""
    of = config.settings
    named = [of.consent.token_file, of.page.metrics_token_file, of.page.tls_key]
    named += [of.dicomweb.password_file] if of.dicomweb is not None else []
    named += ["silo.toml"] if "@" in of.proxy + of.broker.url else []
    return [config.folder / Path(name).expanduser() for name in named if name]


class Here:
    """All that the running silo and `silo status` look at; an error of one look never hides the others."""

    def __init__(self) -> None:
        self.looks: tuple[Callable[[Config], Found], ...] = (
            *(disk, emptied, Labels(), policy, approvals, log_conflict, new_key, receiver_certificate),
        )

    def __call__(self, config: Config) -> Found:
        """Everything that is wrong here now."""
        return gather(self.looks, config, "A file of the silo")


def gather(looks: Iterable[Callable[[Config], Found]], config: Config, what: str) -> Found:
    """What each look finds or raises. what: names in words what could not be read, since the system's own words may hold a
    path inside the DICOM folder."""
    found: Found = []
    for look in looks:
        try:
            found += look(config)
        except SiloError as error:
            found.append(error)
        except OSError as error:
            found.append(UsageError(f"{what} can't be read: {error.strerror}."))
    return found
