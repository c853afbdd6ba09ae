"""FOLDER/inbox: images from the PACS. A file has its name only when it is whole and was checked.

inbox/ab/abcd...dcm   named by the SHA-256 of its SOP instance UID: no header value becomes a path
inbox/.incoming/      what is being written; emptied at the start of a fetch or of the receiver, each in its own part
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from silo_node.errors import DiskFull, is_disk_full
from silo_node.files import sync_folder
from silo_node.pacs.book import Book
from silo_node.pacs.errors import InstanceRefused

if TYPE_CHECKING:
    from silo_node.imaging.header import Header

MB: Final = 2**20


def name_of(sop: str) -> str:
    """Path from the inbox of an instance's file."""
    digest = hashlib.sha256(sop.encode()).hexdigest()
    return f"{digest[:2]}/{digest}.dcm"


class Inbox:
    """The files.

    part: who writes ("fetch", "receive"): what an earlier one left half-written is removed at the start.
    free_mb: space that is left on the disk.
    """

    def __init__(self, folder: Path, book: Book, *, part: str, free_mb: int) -> None:
        self.folder = folder
        self._book = book
        self._free = free_mb * MB
        self.incoming = folder / ".incoming" / part
        for each in (folder, folder / ".incoming", self.incoming):
            each.mkdir(mode=0o700, exist_ok=True, parents=True)
        for left in self.incoming.iterdir():
            left.unlink()

    def room_for(self, size: int) -> None:
        """Raises: DiskFull where `size` bytes would take the space that must stay free."""
        if shutil.disk_usage(self.folder).free < size + self._free:
            raise DiskFull(
                f"no room for images from the PACS: {self._free // MB} MB of the inbox's disk must stay free; make room"
            )

    def path(self, sop: str) -> Path:
        """Where an instance's file is or will be."""
        return self.folder / name_of(sop)

    @contextmanager
    def writing(self) -> Iterator[tuple[IO[bytes], Path]]:
        """A file to write into, for `take`; it is gone after the block unless it was taken. Raises: DiskFull."""
        beside = self.incoming / f"{secrets.token_hex(8)}.tmp"
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                yield file, beside
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull("no room for images from the PACS: make room; nothing was half-written") from error
            raise
        finally:
            beside.unlink(missing_ok=True)

    def take(
        self,
        file: Path,
        *,
        sop: str,
        study: str | None = None,
        patient: str | None = None,
        against: Callable[[str], str | None],
    ) -> Header:
        """Check a whole file, give it its name and note it.

        sop, patient: what it must be (patient None: whoever it says). against: why nothing of a patient may come.
        Raises: InstanceRefused.
        """
        from silo_node.imaging import header

        found = header.read(file)
        if found.problem is not None:
            raise InstanceRefused(found.problem)
        assert found.patient is not None  # a header without one has a problem
        if found.sop != sop or patient not in (None, found.patient):
            raise InstanceRefused("PACS_OTHER")
        if (code := against(found.patient)) is not None:
            raise InstanceRefused(code)
        place = self.path(sop)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with file.open("rb+") as whole:
            os.fsync(whole.fileno())
        file.replace(place)
        sync_folder(place.parent)
        self._book.there(sop, study, found.patient)
        return found


def forget(folder: Path, pacs_db: Path, patients: Collection[str]) -> int:
    """Delete the images of these patients; how many there were. They stay in the PACS."""
    if not pacs_db.exists():
        return 0
    book = Book(pacs_db)
    try:
        sops = [sop for patient in patients for sop in book.of_patient(patient)]
        for sop in sops:
            (folder / name_of(sop)).unlink(missing_ok=True)
        book.forget(sops)
        return len(sops)
    finally:
        book.close()


def patients(pacs_db: Path) -> frozenset[str]:
    """Everybody of whom an image is here."""
    if not pacs_db.exists():
        return frozenset()
    book = Book(pacs_db)
    try:
        return frozenset(book.patients().values())
    finally:
        book.close()


class Patients:
    """Whose a file of the inbox is, without opening it; for the scan, which opens nothing of who opted out."""

    def __init__(self, folder: Path, pacs_db: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, str] = {}
        if pacs_db.exists():
            book = Book(pacs_db)
            try:
                self._by_name = {name_of(sop): patient for sop, patient in book.patients().items()}
            finally:
                book.close()

    def patient_of(self, path: Path) -> str | None:
        """None where nothing says whose it is."""
        return self._by_name.get(path.relative_to(self.folder).as_posix())
