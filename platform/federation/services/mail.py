"""The messages of one round as they lie in the database, sorted by kind and silo: what the state machine works from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from django.db import connection

from federation.models import Round, RoundMessage
from organisations.models import Silo
from protocol.signing import Envelope

# Written out, because every message and every poll of a round reads it, and building the query takes longer than running it.
_FROM = f"""
    FROM {RoundMessage._meta.db_table} m JOIN {Silo._meta.db_table} s ON s.id = m.silo_id WHERE m.round_id = %s AND m.kind IN
"""
_MAIL = f"SELECT m.kind, s.name, m.envelope, m.digest, m.late {_FROM}"
_HEADERS = f"SELECT m.kind, s.name, m.digest, m.late {_FROM}"
_AT_ONCE = 64
"""Messages that are read together where all of a kind would be too much for the memory."""


class Letter(NamedTuple):
    """One stored message. `envelope`: as the database gives it, JSON text or its value; `digest`: of its payload."""

    silo: str
    envelope: Any
    digest: str
    late: bool


class Mail:
    """The stored messages of some kinds of one round. Late ones are kept apart: nothing is derived from them."""

    def __init__(self, letters: Iterable[tuple[str, Letter]]) -> None:
        self._letters: dict[str, dict[str, Letter]] = {}
        self._envelopes: dict[tuple[str, str], Envelope] = {}
        for kind, letter in letters:
            self._letters.setdefault(kind, {})[letter.silo] = letter

    def add(self, kind: str, letter: Letter, envelope: Envelope) -> None:
        """A message that was stored just now."""
        self._letters.setdefault(kind, {})[letter.silo] = letter
        self._envelopes[kind, letter.silo] = envelope

    def letter(self, kind: str, silo: str) -> Letter | None:
        """The message of this kind from this silo, late or not."""
        return self._letters.get(kind, {}).get(silo)

    def silos(self, kind: str) -> set[str]:
        """Who sent this kind in time."""
        return {silo for silo, letter in self._letters.get(kind, {}).items() if not letter.late}

    def value(self, kind: str, silo: str) -> dict[str, Any]:
        """One message as the JSON value of its envelope."""
        envelope = self._letters[kind][silo].envelope
        return json.loads(envelope) if isinstance(envelope, str) else envelope

    def envelope(self, kind: str, silo: str) -> Envelope:
        """One message, parsed once."""
        found = self._envelopes.get((kind, silo))
        if found is None:
            found = self._envelopes[kind, silo] = Envelope.from_dict(self.value(kind, silo))
        return found

    def envelopes(self, kind: str, silos: Iterable[str] | None = None) -> list[Envelope]:
        """The messages of this kind that came in time, by silo; only of `silos` where they are given."""
        names = self.silos(kind)
        if silos is not None:
            names &= set(silos)
        return [self.envelope(kind, silo) for silo in sorted(names)]

    def refused(self) -> set[str]:
        """Who refused or dropped out by its own word."""
        return self.silos("refusal")


def read_mail(item: Round, kinds: Iterable[str]) -> Mail:
    """The stored messages of these kinds, one query."""
    wanted = sorted(set(kinds))
    places = ", ".join(["%s"] * len(wanted))
    with connection.cursor() as cursor:
        cursor.execute(f"{_MAIL} ({places})", [item.pk, *wanted])
        return Mail(
            (kind, Letter(silo, envelope, digest, bool(late)))
            for kind, silo, envelope, digest, late in cursor.fetchall()
        )


class Headers(Mail):
    """As `Mail`, without the messages' content, which is read where it is asked for: with many silos that is little."""

    def __init__(self, item: Round, letters: Iterable[tuple[str, Letter]]) -> None:
        super().__init__(letters)
        self._item = item

    def value(self, kind: str, silo: str) -> dict[str, Any]:
        """As the parent's; one query."""
        return self.values(kind, [silo])[0]

    def envelope(self, kind: str, silo: str) -> Envelope:
        """As the parent's; one query the first time."""
        found = self._envelopes.get((kind, silo))
        if found is None:
            found = self._envelopes[kind, silo] = Envelope.from_dict(self.value(kind, silo))
        return found

    def values(self, kind: str, silos: Iterable[str]) -> list[dict[str, Any]]:
        """The messages of these silos as JSON, in this order; a few queries."""
        return [value for _, value in self.each(kind, silos)]

    def each(self, kind: str, silos: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(silo, message as JSON) in the order of `silos`; not all of them are in memory at once."""
        names = list(silos)
        for low in range(0, len(names), _AT_ONCE):
            block = names[low : low + _AT_ONCE]
            rows = dict(
                RoundMessage.objects.filter(round=self._item, kind=kind, silo__name__in=block).values_list(
                    "silo__name", "envelope"
                )
            )
            for name in block:
                yield name, rows[name]


def read_headers(item: Round, kinds: Iterable[str]) -> Headers:
    """Who sent these kinds, and their digests; one query."""
    wanted = sorted(set(kinds))
    places = ", ".join(["%s"] * len(wanted))
    with connection.cursor() as cursor:
        cursor.execute(f"{_HEADERS} ({places})", [item.pk, *wanted])
        rows = cursor.fetchall()
    return Headers(item, ((kind, Letter(silo, None, digest, bool(late))) for kind, silo, digest, late in rows))
