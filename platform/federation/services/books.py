"""With many silos: the coordinator of an attempt, kept in this process and fed with what was stored since it was asked last.

A dense round is judged anew from its messages; with many silos that would be far too much. So a book keeps the
coordinator, takes each stored message once, and fixes each set once, when the round's row says that its stage is over.
The rows decide: a book that was fed something that is not stored (its transaction came to nothing), or that is ahead of
the row, is thrown away and made again from the stored messages, as in a process that has just started.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from federation.models import ORDER, Round, Stage
from federation.services.errors import Refused, out_of_stage
from federation.services.facts import parameters_of
from federation.services.mail import Mail, read_mail
from protocol.secure_aggregation.sparse import Parcel, SparseCoordinator
from protocol.secure_aggregation.sparse.messages import SPARSE
from protocol.signing import Envelope

FED = tuple(kind for kind in SPARSE if kind != "state")
"""The kinds of messages that the coordinator takes."""
CLOSES: Mapping[str, str] = {
    "keys": "close_roster",
    "row": "close_graph",
    "ready": "close_ready",
    "update": "close_list",
    "nonce": "close_nonces",
}
"""What is fixed when the stage of this kind is over."""
_MOST = 4


class _OtherWorld(Exception):
    """What was fed is not what is stored."""


class Book:
    """The coordinator of one attempt, with what it was fed: kind -> silo -> digest."""

    def __init__(self, item: Round) -> None:
        self.coordinator = SparseCoordinator(parameters_of(item))
        self._fed: dict[str, dict[str, str]] = {kind: {} for kind in FED}
        self._over: set[str] = set()

    def catch_up(self, item: Round) -> None:
        """Take what was stored since, and fix what the row says is fixed. Raises _OtherWorld."""
        now = ORDER.index(item.stage)
        begun = [kind for kind in FED if ORDER.index(kind) <= now]
        if self._over - {kind for kind in begun if ORDER.index(kind) < now}:
            raise _OtherWorld
        mail = read_mail(item, [kind for kind in begun if kind not in self._over])
        for kind in begun:
            if kind in self._over:
                continue
            over = ORDER.index(kind) < now
            wanted = _wanted(item, kind, mail, over)
            self._feed(item, kind, wanted, mail)
            if over:
                if self._fed[kind] != wanted:
                    raise _OtherWorld
                if kind in CLOSES:
                    getattr(self.coordinator, CLOSES[kind])()
                self._over.add(kind)

    def _feed(self, item: Round, kind: str, wanted: Mapping[str, str], mail: Mail) -> None:
        new = sorted(silo for silo, digest in wanted.items() if self._fed[kind].get(silo) != digest)
        for silo, value in mail.each(kind, new):
            self.take(item, kind, silo, Envelope.from_dict(value))

    def take(self, item: Round, kind: str, silo: str, signed: Envelope) -> tuple[str, dict[str, Parcel]]:
        """Verify a message and let it count. Returns: who signed it; the parcels of a `bundles`."""
        parcels: dict[str, Parcel] = {}
        if kind == "bundles":
            sender, parcels = self.coordinator.take_bundles(signed)
        else:
            sender = getattr(self.coordinator, f"take_{kind}")(*_published(item, kind), signed)
        self._fed[kind][silo] = signed.digest
        return sender, parcels

    def look(self, item: Round, kind: str, signed: Envelope) -> str:
        """Verify a message that comes too late to count. Returns: who signed it."""
        return getattr(self.coordinator, f"check_{kind}")(*_published(item, kind), signed)


def _published(item: Round, kind: str) -> tuple[str, ...]:
    return (item.sum_digest or "",) if kind in ("nonce", "check") else ()


def _wanted(item: Round, kind: str, mail: Mail, over: bool) -> dict[str, str]:
    """silo -> digest of what counts: all that came in time, and of sets that the row fixes only their members'."""
    fixed = {"keys": item.roster, "ready": item.ready_set, "update": item.first_list}.get(kind) if over else None
    names = mail.silos(kind) if fixed is None else mail.silos(kind) & set(fixed)
    letters = ((silo, mail.letter(kind, silo)) for silo in names)
    return {silo: letter.digest for silo, letter in letters if letter is not None}


_books: dict[str, Book] = {}
_lock = threading.RLock()


@contextmanager
def book_of(item: Round) -> Iterator[Book]:
    """The book of an attempt, up to date with the rows; one thread at a time uses it."""
    with _lock:
        book = _books.get(item.key)
        try:
            if book is None:
                raise _OtherWorld
            book.catch_up(item)
        except _OtherWorld:
            book = Book(item)
            book.catch_up(item)
        _books.pop(item.key, None)
        while len(_books) >= _MOST:
            _books.pop(next(iter(_books)))
        _books[item.key] = book
        yield book


def book_forget(key: str) -> None:
    """The round is over: nothing of it is kept."""
    with _lock:
        _books.pop(key, None)


def message_check(item: Round, kind: str, silo: str, signed: Envelope, *, late: bool) -> tuple[str, dict[str, Parcel]]:
    """Verify a message that is about to be stored; one that is not late counts from here on.

    Returns: who signed it; the parcels of a `bundles`.
    Raises ProtocolViolation; Refused for a kind that such a round does not have, and for another silo's message.
    """
    if kind not in FED:
        raise Refused("BAD_MESSAGE", f"A round with many silos has no '{kind}'.")
    if item.stage == Stage.FINISHED:
        raise out_of_stage(item.key, kind, item.stage)  # its book is closed: nothing would be made of it
    # Before it is taken: what another silo signed must not come into the book under this one's name.
    if parameters_of(item).signers.get(signed.signatures[0][0]) != silo:
        raise Refused("BAD_MESSAGE", f"The message was sent by {silo} and is not signed by it.")
    with book_of(item) as book:
        if late:
            return book.look(item, kind, signed), {}
        return book.take(item, kind, silo, signed)
