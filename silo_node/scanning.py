"""The DICOM folder and its index; used by `silo scan` and the control worker. The imaging code is imported when needed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from silo_node import opt_out_registry
from silo_node.config import Config
from silo_node.errors import Refused, SiloError
from silo_node.files import read_json, write_json

if TYPE_CHECKING:
    from silo_node.imaging.index import ScanReport

Progress = Callable[[int, int], None]
"""Told how many files were opened so far, and how many were known already."""


def scan(config: Config, progress: Progress | None = None) -> ScanReport:
    """Read the headers of new and changed files. Files of patients who opted out are not opened.

    Raises: DataError (folder, index, disk), Refused (the opt-out list can't be read, or nothing says whose the files are
    while it names patients: then nothing is opened).
    """
    from silo_node.imaging import index, labels
    from silo_node.imaging.errors import TableError

    registry = opt_out_registry.load(config, datetime.now(UTC))
    try:
        known = labels.load(config.labels)
    except TableError as error:
        if registry is not None and len(registry) and config.settings.label_source.source == "csv":
            raise Refused(
                "LABELS_NEEDED",
                f"Nothing was opened: patients have opted out, and only {config.labels.name} says whose a file is "
                f"without opening it. {error.sentence} Then scan again.",
            ) from None
        # A scan helps to find out what is wrong with the labels; the gate refuses rounds until they are right.
        known = None
    return index.scan(config.data, config.index_db, labels=known, opt_out=registry, progress=progress)


def try_folder(data: Path, index_db: Path, config: Config | None, progress: Progress | None = None) -> ScanReport:
    """The same for any folder, before anything is set up. With `config` that silo's opt-out list holds here too.

    Raises: as `scan`.
    """
    from silo_node.imaging import index, labels

    registry = opt_out_registry.load(config, datetime.now(UTC)) if config else None
    table = data / "labels.csv"
    known = labels.load(table) if table.exists() else None
    return index.scan(data, index_db, labels=known, opt_out=registry, progress=progress)


def check_pixels(index_db: Path, config: Config | None, progress: Progress | None = None) -> dict[str, int]:
    """Decode every file that is usable by its header, and mark those that can't be: code -> how many.

    Files that a decoder failed at before, for a reason that may have been the machine's, get another chance.
    """
    from silo_node.imaging import index
    from silo_node.imaging.decoder_pool import DecoderPool

    registry = opt_out_registry.load(config, datetime.now(UTC)) if config else None
    wanted = [
        file.path
        for file in index.files(index_db)
        if (file.problem is None or file.problem in index.WORTH_ANOTHER_TRY)
        and not (registry and file.patient in registry)
    ]
    problems: dict[Path, str | None] = {}
    with DecoderPool(size=(64, 64)) as pool:
        for number, (path, found) in enumerate(pool.decode(wanted), 1):
            problems[path] = found if isinstance(found, str) else None
            if progress is not None:
                progress(number, 0)
    index.mark(index_db, problems)
    return dict(Counter(code for code in problems.values() if code))


def labels_problem(config: Config) -> SiloError | None:
    """What is wrong with the labels, None where they can be used."""
    from silo_node.imaging import label_sources
    from silo_node.imaging.errors import TableError

    try:
        label_sources.of(config, opt_out_registry.load(config, datetime.now(UTC)))
    except TableError as error:
        return error
    return None


def is_due(config: Config) -> bool:
    """Whether the folder is there and its index is missing or older than the setting."""
    if not config.data.is_dir() or not any(config.data.iterdir()):
        return False
    if not config.index_db.exists():
        return True
    return time.time() - config.index_db.stat().st_mtime > config.settings.limits.scan_minutes * 60


def erase_wanted(config: Config) -> bool:
    """Whether the opt-out list has changed since cached pictures were last deleted for it."""
    kept = config.folder / "consent" / "opt_out.csv"
    if not kept.exists() or not config.cache.is_dir():
        return False
    erased = read_json(_erased(config))
    return erased is None or erased["list"] != _digest(config)


def erase_opted_out(config: Config) -> int:
    """Delete the cached pictures of everybody on the opt-out list; how many there were."""
    from silo_node.imaging import cache

    registry = opt_out_registry.load(config, datetime.now(UTC))
    if registry is None:
        return 0
    count = cache.forget(config.cache, registry.patients)
    write_json(_erased(config), {"list": registry.digest})
    return count


def _erased(config: Config) -> Path:
    return config.folder / "consent" / "erased.json"


def _digest(config: Config) -> str:
    from protocol.canonical import digest

    return digest((config.folder / "consent" / "opt_out.csv").read_bytes())
