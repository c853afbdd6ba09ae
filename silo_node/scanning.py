"""The DICOM folder and its index; used by `silo scan` and the control worker. The imaging code is imported when needed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from silo_node import opt_out_registry
from silo_node.config import Config
from silo_node.errors import Refused, SiloError
from silo_node.files import read_json, write_json

if TYPE_CHECKING:
    from silo_node.imaging.index import ScanReport


def scan(config: Config) -> ScanReport:
    """Read the headers of new and changed files. Files of patients who opted out are not opened.

    Raises: DataError (folder, index, disk), Refused (the opt-out list can't be read, or nothing says whose the files are
    while it names patients: then nothing is opened).
    """
    from silo_node.imaging import index, labels
    from silo_node.imaging.errors import TableError
    from silo_node.pacs import watch
    from silo_node.pacs.inbox import Patients

    registry = opt_out_registry.load(config, datetime.now(UTC))
    try:
        known = labels.load(config.labels)
    except TableError as error:
        if registry is not None and len(registry):
            raise Refused(
                "LABELS_NEEDED",
                f"Nothing was opened: patients have opted out, and only {config.labels.name} says whose a file is "
                f"without opening it. {error.sentence} Then scan again.",
            ) from None
        # A scan helps to find out what is wrong with the labels; the gate refuses rounds until they are right.
        known = None
    seen = watch.look(config)
    inbox = Patients(config.inbox, config.pacs_db)
    report = index.scan(config.data, config.index_db, labels=known, opt_out=registry, inbox=inbox)
    watch.scanned(config, seen)
    return report


def labels_problem(config: Config) -> SiloError | None:
    """What is wrong with labels.csv, None where it can be used."""
    from silo_node.imaging import labels
    from silo_node.imaging.errors import TableError

    try:
        labels.load(config.labels)
    except TableError as error:
        return error
    return None


def is_due(config: Config) -> bool:
    """Whether the folder, or the inbox, is there and its index is missing or older than the setting."""
    if not any(folder.is_dir() and any(folder.iterdir()) for folder in (config.data, config.inbox)):
        return False
    if not config.index_db.exists():
        return True
    return time.time() - config.index_db.stat().st_mtime > config.settings.limits.scan_minutes * 60


def erase_wanted(config: Config) -> bool:
    """Whether the opt-out list, or what is known of consents, has changed since pictures were last deleted for it."""
    if not (config.cache.is_dir() or config.inbox.is_dir()) or not any(path.exists() for path in _registries(config)):
        return False
    erased = read_json(_erased(config))
    return erased is None or erased["list"] != _digest(config)


def erase_opted_out(config: Config) -> int:
    """Delete the pictures, cached or come from the PACS, of everybody who opted out or whose consent does not hold; how many."""
    from silo_node.consent import changes
    from silo_node.imaging import cache
    from silo_node.pacs import inbox

    listed = opt_out_registry.load(config, datetime.now(UTC))
    before = _digest(config)
    gone = changes.without_consent(config) | (listed.patients if listed else frozenset())
    count = cache.forget(config.cache, gone) + inbox.forget(config.inbox, config.pacs_db, gone)
    write_json(_erased(config), {"list": before})
    return count


def _erased(config: Config) -> Path:
    return config.folder / "consent" / "erased.json"


def _registries(config: Config) -> tuple[Path, ...]:
    return config.folder / "consent" / "opt_out.csv", config.consent_known


def _digest(config: Config) -> str:
    from protocol.canonical import digest

    return digest(b"\n".join(path.read_bytes() for path in _registries(config) if path.exists()))
