"""The DICOM folder and its index; used by `silo scan` and the control worker. The imaging code is imported when needed."""

from __future__ import annotations

import os
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
from silo_node.service import logs

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
    from silo_node.pacs import watch
    from silo_node.pacs.inbox import Patients

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
    seen = watch.look(config)
    inbox = Patients(config.inbox, config.pacs_db)
    report = index.scan(
        config.data,
        config.index_db,
        labels=known,
        opt_out=registry,
        inbox=inbox,
        modalities=config.settings.modalities,
        progress=progress,
    )
    watch.scanned(config, seen)
    return report


def try_folder(
    data: Path, index_db: Path, config: Config | None, progress: Progress | None = None
) -> tuple[ScanReport, SiloError | None]:
    """The same for any folder, before anything is set up; and what is wrong with its labels.csv, None where nothing is or
    there is none. With `config` that silo's opt-out list and its modalities hold here too.

    Raises: DataError (folder, disk), Refused (the opt-out list can't be read).
    """
    from silo_node.imaging import index, labels
    from silo_node.imaging.errors import TableError

    registry = opt_out_registry.load(config, datetime.now(UTC)) if config else None
    table, known, wrong = data / "labels.csv", None, None
    try:
        known = labels.load(table) if os.path.lexists(table) else None
    except TableError as error:
        wrong = error  # whose the files are is not known then: while anybody has opted out, they stay closed
    kept = config.settings.modalities if config else ()
    return index.scan(data, index_db, labels=known, opt_out=registry, modalities=kept, progress=progress), wrong


def check_pixels(index_db: Path, config: Config | None, progress: Progress | None = None) -> dict[str, int]:
    """Decode every file that is usable by its header, and mark those that can't be: code -> how many.

    Files that a decoder failed at before, for a reason that may have been the machine's, get another chance.
    """
    from silo_node.imaging import index
    from silo_node.imaging.decoder_pool import DecoderPool

    closed: frozenset[str] = frozenset()
    if config is not None:
        from silo_node.consent import changes

        listed = opt_out_registry.load(config, datetime.now(UTC))
        closed = changes.without_consent(config) | (listed.patients if listed else frozenset())
    wanted = [
        file
        for file in index.files(index_db)
        if (file.problem is None or file.problem in index.WORTH_ANOTHER_TRY) and file.patient not in closed
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
        label_sources.of(config, opt_out_registry.load(config, datetime.now(UTC), keep=False))
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
    """Whether the opt-out list, the policy, or what is known of consents has changed since pictures were last deleted for it,
    or whose consent is known not to hold has pictures in the inbox all the same."""
    if not (config.cache.is_dir() or config.inbox.is_dir()) or not any(path.exists() for path in _registries(config)):
        return False
    from silo_node.consent import changes
    from silo_node.pacs import inbox

    erased = read_json(_erased(config))
    if erased is None or erased["list"] != _digest(config):
        return True
    try:
        return not changes.without_consent(config).isdisjoint(inbox.patients(config.pacs_db))
    except SiloError:
        return False  # a damaged pacs.db is told by the next fetch, and costs no round


def erase_opted_out(config: Config) -> int:
    """Delete the pictures, cached or come from the PACS, of everybody who opted out or whose consent does not hold; how many.

    From the inbox nothing goes for a consent while its source can't be read; it is tried again after the next round.
    """
    from silo_node.consent import changes
    from silo_node.imaging import cache
    from silo_node.pacs import admission, inbox

    now = datetime.now(UTC)
    listed = opt_out_registry.load(config, now)
    before = _digest(config)
    out = listed.patients if listed else frozenset()
    count = cache.forget(config.cache, changes.without_consent(config) | out)
    count += inbox.forget(config.inbox, config.pacs_db, out)
    if came := inbox.patients(config.pacs_db):
        try:
            found = admission.load(config, now)
        except SiloError as error:
            logs.get().warning("erase.waits", code=error.code, sentence=error.sentence)
            return count
        count += inbox.forget(config.inbox, config.pacs_db, found.gone(came))
        if found.codes is not None and not found.sure:
            return count
    write_json(_erased(config), {"list": before})
    return count


def _erased(config: Config) -> Path:
    return config.folder / "consent" / "erased.json"


def _registries(config: Config) -> tuple[Path, ...]:
    return config.folder / "consent" / "opt_out.csv", config.consent_known, config.policy


def _digest(config: Config) -> str:
    from protocol.canonical import digest

    return digest(b"\n".join(path.read_bytes() for path in _registries(config) if path.exists()))
