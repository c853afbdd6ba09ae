"""How each field of a round message is read from JSON and written to it: one `Codec` a kind of field.

A reader takes anything that canonical JSON can hold and gives the one value that it spells, or raises `MessageError`
without naming the field; the message adds its name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from protocol import canonical
from protocol.canonical import CanonicalError
from protocol.model_state import KINDS

MAX_PAYLOAD: Final = 16 << 20
"""Bytes of the largest payload that is parsed at all."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class MessageError(ValueError):
    """Bytes that are not this message, or a message that must not be sent. The text names the field."""


class TableRow(NamedTuple):
    """One tensor of a model, as in `State.table`."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["shared", "frozen", "local"]


class Reason(NamedTuple):
    """Why a silo refuses a round: a machine code and a sentence for people."""

    code: str
    sentence: str


@dataclass(frozen=True)
class Codec:
    """read: from JSON, checked. write: to JSON; what it writes is read again before it is signed."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value


def text_field(pattern: re.Pattern[str], what: str) -> Codec:
    """Text that a pattern matches as a whole; `what` says it in words."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise MessageError(f"must be {what}")
        return value

    return Codec(read)


def sentence(value: Any) -> str:
    """Text for people, without control characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 2000 or _CONTROL.search(value):
        raise MessageError("must be text of 1 to 2000 characters without control characters")
    return value


def read_digest(value: Any) -> str:
    """A digest as `canonical.digest` writes it."""
    if not canonical.is_digest(value):
        raise MessageError("must be a digest, sha256:<64 hex digits>")
    return str(value)


def integer_field(low: int, high: int) -> Codec:
    """A whole number; true and false are none."""

    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise MessageError(f"must be a whole number from {low} to {high}")
        return value

    return Codec(read)


def bytes_field(length: int | None = None, most: int = MAX_PAYLOAD) -> Codec:
    """Bytes in base64: exactly `length` of them, or 1 to `most`."""

    def read(value: Any) -> bytes:
        try:
            data = canonical.unb64(value)
        except CanonicalError as error:
            raise MessageError(str(error)) from None
        if length is not None and len(data) != length:
            raise MessageError(f"must be {length} bytes, not {len(data)}")
        if not 1 <= len(data) <= most:
            raise MessageError(f"must be 1 to {most} bytes, not {len(data)}")
        return data

    return Codec(read, canonical.b64)


def optional_field(inner: Codec) -> Codec:
    """The inner kind, or null."""
    return Codec(
        lambda value: None if value is None else inner.read(value),
        lambda value: None if value is None else inner.write(value),
    )


def list_field(inner: Codec, low: int, high: int, *, ascending: bool = False) -> Codec:
    """A list of `low` to `high` items; `ascending`: sorted, each item once."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise MessageError(f"must be a list of {low} to {high}")
        items = tuple(inner.read(item) for item in value)
        if ascending and any(a >= b for a, b in itertools.pairwise(items)):
            raise MessageError("must be sorted, each item once")
        return items

    return Codec(read, lambda value: [inner.write(item) for item in value])


def by_silo_field(inner: Codec, most: int = 255) -> Codec:
    """An object of at most `most` silos' names."""

    def read(value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise MessageError(f"must be an object of at most {most} silos")
        return MappingProxyType({SILO.read(silo): inner.read(item) for silo, item in value.items()})

    return Codec(read, lambda value: {silo: inner.write(item) for silo, item in value.items()})


def read_row(value: Any) -> TableRow:
    """One tensor of a table."""
    if not isinstance(value, dict) or value.keys() != {"name", "shape", "kind"}:
        raise MessageError("must be an object with exactly kind, name, shape")
    if value["kind"] not in KINDS:
        raise MessageError("kind must be shared, frozen or local")
    return TableRow(sentence(value["name"]), SHAPE.read(value["shape"]), value["kind"])


def read_reason(value: Any) -> Reason:
    """One reason of a refusal."""
    if not isinstance(value, dict) or value.keys() != {"code", "sentence"}:
        raise MessageError("must be an object with exactly code, sentence")
    return Reason(CODE.read(value["code"]), sentence(value["sentence"]))


SILO: Final = text_field(re.compile(r"[a-z0-9][a-z0-9._-]{0,63}"), "a silo's name: a-z, 0-9, '.', '_' and '-'")
SILOS: Final = list_field(SILO, 1, 255, ascending=True)
DIGEST: Final = Codec(read_digest)
CTX: Final = text_field(re.compile(r"[0-9a-f]{64}"), "64 lower hex digits")
WORD: Final = text_field(re.compile(r"[a-z][a-z_-]{0,31}"), "a word in lower case")
CODE: Final = text_field(re.compile(r"[A-Z][A-Z0-9_]{0,63}"), "a code in upper case")
TIME: Final = text_field(
    re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII), "an RFC 3339 time in UTC that ends in Z"
)
SHAPE: Final = list_field(integer_field(0, 2**40), 0, 16)
TABLE: Final = Codec(
    list_field(Codec(read_row), 1, 100_000).read,
    lambda table: [{"name": row.name, "shape": list(row.shape), "kind": row.kind} for row in table],
)
REASONS: Final = Codec(
    list_field(Codec(read_reason), 1, 64).read,
    lambda reasons: [{"code": reason.code, "sentence": reason.sentence} for reason in reasons],
)
