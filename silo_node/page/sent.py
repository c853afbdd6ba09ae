"""What left this hospital: every message of egress.db, filtered, in pages and as CSV. Newest first."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from silo_node.config import Config
from silo_node.evidence.egress_log import NOT_SENT
from silo_node.page.reading import PAGE_ROWS, database

COLUMNS: Final = ("time", "kind", "study", "round", "bytes", "digest", "status")
_UNDER: Final = "/api/v1/studies/"
_STUDY: Final = (
    "CASE WHEN round NOT NULL THEN substr(round, 1, instr(round, '.') - 1)"
    f" WHEN substr(path, 1, {len(_UNDER)}) = '{_UNDER}' THEN"
    f" substr(path, {len(_UNDER) + 1}, instr(substr(path, {len(_UNDER) + 1}) || '/', '/') - 1) ELSE '' END"
)
"""The study of a message: of its round, or of the address that it was sent to."""
_LEFT: Final = f"status IS NOT {NOT_SENT}"
MEANINGS: Final = {
    "announce": "the portal's question whether we take part",
    "approval": "a steward's signed decision",
    "bundles": "encrypted shares of the masks' secrets, for the partners",
    "check": "the check word: what makes a false sum visible",
    "enrol": "this silo's public keys, once",
    "evidence": "the silo's log: signed entries without identities",
    "heartbeat": "still here",
    "keys": "public keys for one round",
    "manifest": "the question for a study's text",
    "metrics": "test results, where the policy lets them be shown",
    "nonce": "a random number for the check of the sum",
    "policy": "the hospital's signed policy",
    "ready": "the masks' secrets have arrived",
    "refusal": "a signed no, with its reason",
    "row": "which partners this silo is paired with",
    "second": "which sketches look apart",
    "sketch": "256 numbers about the update, where the study has the sketch check",
    "state": "the digest of the model that was made",
    "unmask": "shares that take the masks off the sum, never off one hospital's update",
    "update": "the masked update: random numbers to everybody but the sum",
}
"""What each kind of message is."""


@dataclass(frozen=True)
class Filter:
    """kind, study: exact, or "". since, until: days, or ""."""

    kind: str = ""
    study: str = ""
    round: str = ""
    since: str = ""
    until: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """From an address; what is no filter of ours is left out."""
        return cls(**{name: query.get(name, "").strip()[:100] for name in cls.__dataclass_fields__})

    @property
    def any(self) -> bool:
        """Whether it leaves anything out."""
        return any(getattr(self, name) for name in self.__dataclass_fields__)

    def link(self, **more: Any) -> str:
        """The query of an address with this filter."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__} | more
        return urlencode({name: value for name, value in values.items() if value})

    def where(self) -> tuple[str, list[str]]:
        """The SQL condition and its values."""
        parts, values = ["1"], []
        for name, sql, value in (
            ("kind", "kind = ?", self.kind),
            ("round", "round = ?", self.round),
            ("study", f"{_STUDY} = ?", self.study),
            ("since", "time >= ?", self.since),
            ("until", "time < ? || 'T99'", self.until),
        ):
            if getattr(self, name):
                parts.append(sql)
                values.append(value)
        return " AND ".join(parts), values


@dataclass(frozen=True)
class Listing:
    """One page of the log. total: messages that fit the filter; left: those that had a connection; bytes: of these."""

    rows: list[dict[str, Any]]
    total: int
    left: int
    bytes: int
    kinds: list[str]
    studies: list[str]
    since: str | None


def listing(config: Config, chosen: Filter, page: int) -> Listing | None:
    """None before anything was ever sent. Raises: Refused."""
    path = config.folder / "egress.db"
    if not path.is_file():
        return None
    where, values = chosen.where()
    with database(path) as db:
        total, left, size = db.execute(
            f"SELECT count(*), count(*) FILTER (WHERE {_LEFT}), coalesce(sum(bytes) FILTER (WHERE {_LEFT}), 0)"
            f" FROM sent WHERE {where}",
            values,
        ).fetchone()
        rows = list(_rows(db, where, values, PAGE_ROWS, (page - 1) * PAGE_ROWS))
        kinds = [row[0] for row in db.execute("SELECT DISTINCT kind FROM sent ORDER BY kind")]
        studies = [
            row[0] for row in db.execute(f"SELECT DISTINCT {_STUDY} AS study FROM sent ORDER BY study") if row[0]
        ]
        first = db.execute("SELECT min(time) FROM sent").fetchone()[0]
    return Listing(rows, total, left, size, kinds, studies, first)


def as_csv(config: Config, chosen: Filter) -> Iterator[bytes]:
    """The filtered log as CSV, read as it is written out."""
    path = config.folder / "egress.db"
    yield _line([*COLUMNS])
    if not path.is_file():
        return
    where, values = chosen.where()
    with database(path) as db:
        for row in _rows(db, where, values, -1, 0):
            yield _line([row[name] for name in COLUMNS])


def _rows(db: sqlite3.Connection, where: str, values: list[str], most: int, start: int) -> Iterator[dict[str, Any]]:
    for row in db.execute(
        f"SELECT time, kind, {_STUDY} AS study, round, bytes, digest, status FROM sent WHERE {where}"
        " ORDER BY id DESC LIMIT ? OFFSET ?",
        [*values, most, start],
    ):
        yield {**dict(row), "means": MEANINGS.get(row["kind"], "")}


def _line(values: list[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerow(["" if value is None else _plain(str(value)) for value in values])
    return out.getvalue().encode()


def _plain(text: str) -> str:
    """No cell that a spreadsheet would take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
