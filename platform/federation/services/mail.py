"""The messages of one round: who sent which, read at once; what they say, read from the database where somebody looks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db import connection

from federation.models import Round, RoundMessage
from federation.storage import Damaged
from organisations.models import Silo
from protocol.signing import Envelope

# Written out, because every message and every poll of a round reads it, and building the query takes longer than running it.
_FROM = f"""
    FROM {RoundMessage._meta.db_table} m JOIN {Silo._meta.db_table} s ON s.id = m.silo_id WHERE m.round_id = %s AND m.kind IN
"""
_HEADERS = f"SELECT m.kind, s.name, m.digest, m.late {_FROM}"
_CONTENT = f"SELECT s.name, m.envelope {_FROM} (%s) AND s.name IN"
_AT_ONCE = 64
"""Messages that are read together where all of a kind would be too much for the memory."""


class Letter(NamedTuple):
    """That a message is stored. `digest`: of its payload."""

    silo: str
    digest: str
    late: bool


class Mail:
    """The stored messages of some kinds of one round. Late ones are kept apart: nothing is derived from them."""

    def __init__(self, item: Round, letters: Iterable[tuple[str, Letter]]) -> None:
        self._item = item
        self._letters: dict[str, dict[str, Letter]] = {}
        for kind, letter in letters:
            self.add(kind, letter)

    def add(self, kind: str, letter: Letter) -> None:
        """A message that was stored just now."""
        self._letters.setdefault(kind, {})[letter.silo] = letter

    def letter(self, kind: str, silo: str) -> Letter | None:
        """The message of this kind from this silo, late or not."""
        return self._letters.get(kind, {}).get(silo)

    def silos(self, kind: str) -> set[str]:
        """Who sent this kind in time."""
        return {silo for silo, letter in self._letters.get(kind, {}).items() if not letter.late}

    def refused(self) -> set[str]:
        """Who refused or dropped out by its own word."""
        return self.silos("refusal")

    def each(self, kind: str, silos: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(silo, message as JSON) in the order of `silos`; a query for some of them, never all of them in memory."""
        names = list(silos)
        for low in range(0, len(names), _AT_ONCE):
            block = names[low : low + _AT_ONCE]
            places = ", ".join(["%s"] * len(block))
            with connection.cursor() as cursor:
                cursor.execute(f"{_CONTENT} ({places})", [self._item.pk, kind, *block])
                # JSON comes as text or as its value, as the database has it.
                rows = dict(cursor.fetchall())
            for name in block:
                value = rows[name]
                yield name, json.loads(value) if isinstance(value, str) else value

    def values(self, kind: str, silos: Iterable[str]) -> list[dict[str, Any]]:
        """The messages of these silos as JSON, in this order."""
        return [value for _, value in self.each(kind, silos)]

    def envelope(self, kind: str, silo: str) -> Envelope:
        """One message, late or not. Raises Damaged."""
        return next(iter(Pile(self, kind, (silo,))))

    def envelopes(self, kind: str, silos: Iterable[str] | None = None) -> Pile:
        """The messages of this kind that came in time, by silo; only of `silos` where they are given."""
        names = self.silos(kind)
        if silos is not None:
            names &= set(silos)
        return Pile(self, kind, tuple(sorted(names)))


@dataclass(frozen=True)
class Pile:
    """Some messages of one kind. Who takes them by `key` from what it made of them before reads none of them again."""

    mail: Mail
    kind: str
    silos: tuple[str, ...]

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """Names the messages: each silo with the digest that was stored when its message was verified."""
        return tuple((silo, self._digest(silo)) for silo in self.silos)

    def __iter__(self) -> Iterator[Envelope]:
        """Raises Damaged where a message is not the one that was stored."""
        for silo, value in self.mail.each(self.kind, self.silos):
            envelope = Envelope.from_dict(value)
            if envelope.digest != self._digest(silo):
                raise Damaged(f"the stored '{self.kind}' of {silo} is not the message that was received")
            yield envelope

    def _digest(self, silo: str) -> str:
        letter = self.mail.letter(self.kind, silo)
        if letter is None:
            raise KeyError(f"there is no '{self.kind}' of {silo}")
        return letter.digest


def read_mail(item: Round, kinds: Iterable[str]) -> Mail:
    """Who sent these kinds, and their digests; one query."""
    wanted = sorted(set(kinds))
    places = ", ".join(["%s"] * len(wanted))
    with connection.cursor() as cursor:
        cursor.execute(f"{_HEADERS} ({places})", [item.pk, *wanted])
        rows = cursor.fetchall()
    return Mail(item, ((kind, Letter(silo, digest, bool(late))) for kind, silo, digest, late in rows))
