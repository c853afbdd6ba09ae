"""What is wrong with the opt-out list and the consents, before a round needs them: for the running silo and `silo doctor`.

Files are looked at by their times and read again when those change. A FHIR server is not asked here (asked.py): its last
answer counts. Nothing is kept: that is the round's (registry.py).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from silo_node import opt_out_registry
from silo_node.config import OPT_OUT_NAMES, Config
from silo_node.consent import asked, opt_out, places, registry, sources
from silo_node.errors import Refused, SiloError
from silo_node.imaging.errors import DataError
from silo_node.steward import documents

SOON: Final = 0.25
"""The part of the hours allowed in which it is said that the last good reading is soon too old."""
LOOKING: Final = 20.0
READING: Final = 5.0
"""So many times as long as a look (a reading) took, nothing is looked at again: a folder of a million files costs no more."""


@dataclass(frozen=True)
class Fault:
    """Why a source can't be used. kept: its last good reading, None where none stands in for it. hours: how old that may be.
    of: the beginning of its codes. what: in words."""

    error: SiloError
    kept: Path | None
    hours: int
    of: str
    what: str

    @property
    def until(self) -> datetime | None:
        """The time from which no round runs; None where none runs now."""
        try:
            read_at = self.kept.stat().st_mtime if self.kept is not None else 0.0
        except FileNotFoundError:
            return None
        end = read_at + self.hours * 3600
        return datetime.fromtimestamp(end, UTC) if end > time.time() else None

    def said(self) -> list[SiloError]:
        """The fault, and what becomes of the rounds where that is soon, or now."""
        if self.kept is None or not self.kept.exists():
            return [self.error]
        until, at = self.until, datetime.fromtimestamp(self.kept.stat().st_mtime, UTC)
        read = f"{self.what} were last read at {at:%Y-%m-%d %H:%M} UTC"
        if until is None:
            return [
                self.error,
                SiloError(f"{self.of}_STALE", f"{read}, more than {self.hours} hours ago: no round runs."),
            ]
        if (until - datetime.now(UTC)).total_seconds() < SOON * self.hours * 3600:
            return [
                self.error,
                SiloError(f"{self.of}_STALE_SOON", f"{read}: from {until:%Y-%m-%d %H:%M} UTC on no round runs."),
            ]
        return [self.error]


def faults(config: Config, server: Callable[[Config], SiloError | None] = asked.last) -> list[Fault]:
    """Everything that is wrong with the sources that this hospital has, with their places: it is for this hospital only.

    server: what is wrong with the FHIR server.
    """
    found = [*_opt_out(config), *_consents(config, server)]
    for fault in found:
        places.named(config, fault.error)
    return found


class Looking:
    """`faults`, found anew only when a file changed; called every second."""

    def __init__(self) -> None:
        self._seen = b""
        self._found: list[Fault] = []
        self._next = 0.0

    def __call__(self, config: Config) -> list[SiloError]:
        """What is wrong now."""
        began = time.monotonic()
        if began >= self._next:
            # Taken before the reading: what changes during it is read once more.
            seen = hashlib.sha256()
            for each in _signature(config):
                seen.update(repr(each).encode())
            looked = time.monotonic()
            if seen.digest() != self._seen:
                self._seen, self._found = seen.digest(), faults(config)
            self._next = time.monotonic() + LOOKING * (looked - began) + READING * (time.monotonic() - looked)
        return [error for fault in self._found for error in fault.said()]


def _opt_out(config: Config) -> Iterator[Fault]:
    kept, hours = config.consent_kept_list, config.settings.limits.opt_out_hours
    try:
        path = config.opt_out
        if path is not None:
            opt_out.load(path)
            return
        error: SiloError = opt_out_registry.gone()
        if not kept.exists():
            return
    except DataError as fault:
        error = Refused(fault.code, fault.sentence)
    except SiloError as fault:  # several lists: none stands in for the one that counts
        yield Fault(fault, None, hours, "OPT_OUT", "")
        return
    yield Fault(error, kept, hours, "OPT_OUT", "The opted-out patients")


def _consents(config: Config, server: Callable[[Config], SiloError | None]) -> Iterator[Fault]:
    settings = config.settings.consent
    what, kept = ("CONSENT", "The consents"), config.consent_kept
    try:
        if settings.source == "server":
            fault = server(config)
            if fault is not None:
                raise fault
            found = sources.read(kept, ours=True) if kept.exists() else None
        else:
            found = registry.fetch(config)
            if found is None and kept.exists():
                raise registry.no_source_any_more()
        if found is not None:
            sources.whole(found)
    except SiloError as error:
        yield Fault(error, kept, settings.max_age_hours, *what)
        return
    if found is None:
        return
    try:
        unassigned = registry.assign(found, registry.patients_of(config, found))[1]
        if unassigned and _default(config):
            raise registry.unassigned_consents()
    except SiloError as error:
        yield Fault(error, None, settings.max_age_hours, *what)


def _default(config: Config) -> bool:
    try:
        policy = documents.load_policy(config, documents.load_trust(config), now=datetime.now(UTC))[1]
    except SiloError:
        return False  # no round runs without a policy, and its own look says so
    return registry.default_of(policy)


def _signature(config: Config) -> Iterator[tuple[str, int, int, int]]:
    """What changes when any of the files does. A right that is taken away changes a file's ctime."""
    names = [config.folder / name for name in OPT_OUT_NAMES] + [config.data / name for name in OPT_OUT_NAMES]
    if config.settings.opt_out:
        names = [config.folder / Path(config.settings.opt_out).expanduser()]
    files = (*names, config.consent_path, config.consent_map, config.policy, config.consent_kept_list)
    server = (config.consent_asked, config.consent_kept) if config.settings.consent.source == "server" else ()
    for path in (*files, *server):
        if path is None:
            continue
        yield _of(path)
        for folder, folders, inside in os.walk(path) if path.is_dir() else ():
            for name in (*folders, *inside):
                yield _of(Path(folder, name))


def _of(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.lstat()
    except OSError as error:
        return str(path), -(error.errno or 1), 0, 0
    return str(path), found.st_mtime_ns, found.st_ctime_ns, found.st_size
