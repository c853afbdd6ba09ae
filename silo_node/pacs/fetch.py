"""`silo fetch`: asks the PACS what it has, and gets what is missing here, one by one.

    1. studies by the query; whoever opted out, or has consented to no use, is left out before anything of them is listed
       or fetched (admission.py)
    2. a study whose number of instances has not changed is not listed again
    3. what is neither in the data folder nor in the inbox is fetched, into the inbox

A run that ends early (the PACS is away, the disk is full, kill -9) leaves what it got; the next one goes on.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from silo_node import opt_out_registry
from silo_node.config import Config, DicomWeb
from silo_node.errors import AlreadyRunning, DiskFull, SiloError, UsageError
from silo_node.pacs import admission
from silo_node.pacs.book import Book, noted
from silo_node.pacs.errors import InstanceRefused, PacsError
from silo_node.pacs.inbox import Inbox, forget

WRONG_IN_A_ROW: Final = 10
"""Refused instances in a row after which the PACS itself, not an instance, is taken to be wrong."""
FIRST_MINUTES: Final = 1.0
"""Until the next try after a run that ended early; doubles, up to `every_minutes`."""


@dataclass
class Report:
    """What one run did. state: "done", "partly" (ended early; `code` and `sentence` say why). Counts of instances."""

    state: str = "done"
    code: str | None = None
    sentence: str | None = None
    studies: int = 0
    got: int = 0
    missing: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Code -> studies that were left out."""
    refused: dict[str, int] = field(default_factory=dict)
    """Code -> instances that were not taken, from this run and earlier ones."""
    ended: str = ""
    next_try: str = ""
    """When `silo run` asks again."""
    failures: int = 0


def fetch(
    config: Config, *, again: bool = False, say: Callable[[int, int], None] = lambda done, of: None
) -> tuple[Report, SiloError | None]:
    """One run. again: also ask for what was refused for good. say: called with (done, of) after each instance.

    Returns: the report, kept in pacs.db too, and the error that ended the run early.
    Raises: UsageError (no or wrong settings), AlreadyRunning.
    """
    settings = config.settings.dicomweb
    if settings is None:
        raise UsageError("no PACS is set: add a table [dicomweb] with at least `url` to silo.toml", "NO_PACS")
    with _alone(config):
        book = Book(config.pacs_db)
        try:
            if again:
                book.want_again()
            report, error = Report(), None
            try:
                _Run(config, settings, book, report, say).run()
            except UsageError:
                raise
            except (PacsError, DiskFull, SiloError) as found:
                error = found
            _end(settings, book, report, error)
            return report, error
        finally:
            book.close()


def last(config: Config) -> dict[str, Any] | None:
    """The last run's report, None before the first."""
    if not config.pacs_db.exists():
        return None
    return noted(config.pacs_db, "fetch")


def is_due(config: Config, now: datetime) -> bool:
    """Whether `silo run` should fetch now."""
    if config.settings.dicomweb is None:
        return False
    before = last(config)
    return before is None or datetime.fromisoformat(before["next_try"]) <= now


class _Run:
    def __init__(
        self, config: Config, settings: DicomWeb, book: Book, report: Report, say: Callable[[int, int], None]
    ) -> None:
        # Raises Refused where the list or the consents can't be read: then nothing is asked for.
        now = datetime.now(UTC)
        listed = opt_out_registry.load(config, now)
        # Whoever opted out does not wait for a source of consents that is away.
        forget(config.inbox, config.pacs_db, listed.patients if listed is not None else ())
        self._admission = admission.load(config, now)
        self._config, self._settings, self._book, self._report, self._say = config, settings, book, report, say
        self._inbox = Inbox(config.inbox, book, part="fetch", free_mb=settings.free_mb)

    def run(self) -> None:
        from silo_node.pacs.dicomweb import Pacs

        forget(self._config.inbox, self._config.pacs_db, self._admission.gone(set(self._book.patients().values())))
        # A file that somebody deleted is wanted again.
        self._book.forget(sop for sop in self._book.patients() if not self._inbox.path(sop).exists())
        pacs = Pacs(self._config, self._settings)
        try:
            self._list(pacs)
            self._get(pacs)
        finally:
            pacs.close()

    def _list(self, pacs: Any) -> None:
        """Want what the PACS has and this silo has not."""
        here = _in_data_folder(self._config)
        listed = self._book.listed()
        skipped: Counter[str] = Counter()
        wanted = set()
        for study in pacs.studies():
            self._report.studies += 1
            # Without a patient id nobody can say whether the patient said yes or no.
            code = "NO_PATIENT" if study.patient is None else self._admission.against(study.patient)
            if code is not None:
                skipped[code] += 1
                continue
            wanted.add(study.uid)
            if study.instances is not None and listed.get(study.uid) == study.instances:
                continue
            found = [(series, sop) for series, sop in pacs.images_of(study.uid) if sop not in here]
            self._book.list_study(study.uid, study.patient, found, study.instances)
        self._book.keep_only(wanted)
        self._report.skipped = dict(skipped)

    def _get(self, pacs: Any) -> None:
        """Get what is wanted, each once; `max_instances` at most."""
        wanted = self._book.wanted()[: self._settings.max_instances]
        wrong = 0
        for number, (study, series, sop, patient) in enumerate(wanted, start=1):
            try:
                self._inbox.room_for(self._settings.max_mb * 2**20)
                with self._inbox.writing() as (file, path):
                    pacs.get(study, series, sop, file)
                    file.flush()
                    self._inbox.take(path, study=study, sop=sop, patient=patient, against=self._admission.against)
            except InstanceRefused as error:
                self._book.refuse(sop, error.code)
                wrong += 1
                if wrong >= WRONG_IN_A_ROW:
                    raise PacsError(
                        "PACS_ANSWER", f"{wrong} instances in a row could not be taken ({error.code}): see the PACS."
                    ) from None
            else:
                self._report.got += 1
                wrong = 0
            self._say(number, len(wanted))


def _end(settings: DicomWeb, book: Book, report: Report, error: SiloError | None) -> None:
    now = datetime.now(UTC)
    report.missing = book.counts().get("wanted", 0)
    report.refused = book.refusals()
    before = book.noted("fetch") or {}
    minutes: float = settings.every_minutes
    if error is not None:
        report.state, report.failures = "partly", int(before.get("failures", 0)) + 1
        # Full jitter, so that the silos of a hospital don't all come back in the second in which its PACS does.
        most = min(FIRST_MINUTES * 2 ** min(report.failures - 1, 20), settings.every_minutes)
        minutes = random.uniform(most / 2, most)
        again = (now + timedelta(minutes=minutes)).strftime("%H:%M:%S UTC")
        known = f"{report.missing} known images are missing" if report.missing else "what is missing is not known yet"
        report.code = error.code
        report.sentence = (
            f"{error.sentence} Got {report.got}; {known}. `silo run` tries again at {again}; `silo fetch` goes on now."
        )
    report.ended = now.isoformat(timespec="seconds")
    report.next_try = (now + timedelta(minutes=minutes)).isoformat(timespec="seconds")
    book.note("fetch", asdict(report))


def _in_data_folder(config: Config) -> frozenset[str]:
    """SOP instances that the data folder holds; those with a problem too: the PACS would give the same."""
    from silo_node.imaging import index
    from silo_node.imaging.errors import ScanError

    try:
        files = index.files(config.index_db)
    except ScanError as error:
        if error.code != "INDEX_MISSING":
            raise
        return frozenset()
    return frozenset(file.sop for file in files if file.sop is not None and not file.path.is_relative_to(config.inbox))


@contextmanager
def _alone(config: Config) -> Iterator[None]:
    """One fetch at a time: by hand, or by `silo run`."""
    handle = os.open(config.folder / "pacs.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning("another fetch from the PACS is running for this silo: wait for it to end") from None
        yield
    finally:
        os.close(handle)
