"""What one entry of a log holds: the record of one act, as canonical JSON.

    {"v":1,"id":"<uuid7>","time":"2026-11-23T10:00:00.000Z","type":"study.approved","actor":{"id","role","org","auth"},
     "subject":{"kind","id","version"},"outcome":"success|denied|failure","reasons":[],"refs":{"manifest":"sha256:.."},
     "data":{},"private":"sha256:.."|null}

No floats, no names of people, no free text: those are kept outside, and `private` binds them by a salted digest, so
that they can be erased while every proof still verifies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from protocol.canonical import CanonicalError, decode, encode, is_digest
from protocol.transparency.tiles import MAX_ENTRY

FIELDS: Final = ("v", "id", "time", "type", "actor", "subject", "outcome", "reasons", "refs", "data", "private")
OUTCOMES: Final = ("success", "denied", "failure")
SALT_BYTES: Final = 32

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_TYPE = re.compile(r"[a-z][a-z0-9_-]*(?:\.[a-z][a-z0-9_-]*)*")


class RecordError(Exception):
    """Bytes that are not a record. The message names the field, never its value."""


def private_digest(salt: bytes, payload: object) -> str:
    """The digest that binds a private payload: SHA256("audit/private/v1\\n" || salt32 || JCS(payload)).

    Raises: RecordError for a salt of another length, CanonicalError for a payload without canonical form.
    """
    if len(salt) != SALT_BYTES:
        raise RecordError(f"private: the salt must have {SALT_BYTES} bytes")
    return "sha256:" + hashlib.sha256(b"audit/private/v1\n" + salt + encode(payload)).hexdigest()


def check_record(data: bytes) -> dict[str, Any]:
    """The record in an entry's leaf data.

    Verification:
      1. At most MAX_ENTRY bytes of canonical JSON without floats.
      2. Exactly the fields above, each of its form.

    Raises: RecordError naming the field.
    """
    # 1
    if len(data) > MAX_ENTRY:
        raise RecordError(f"the record has {len(data)} bytes, at most {MAX_ENTRY} are allowed")
    try:
        record = decode(data)
    except CanonicalError as error:
        raise RecordError(str(error)) from None
    # 2
    _keys(record, FIELDS, "the record")
    for field, form in _FORMS.items():
        if not form(record[field]):
            raise RecordError(f"{field}: not in its form")
    _keys(record["actor"], ("id", "role", "org", "auth"), "actor")
    _keys(record["subject"], ("kind", "id", "version"), "subject")
    for field in ("actor", "subject"):
        for name, value in record[field].items():
            if not _is_label(value):
                raise RecordError(f"{field}.{name}: must be text, an integer or null")
    return record  # type: ignore[no-any-return]  # _keys has just proved that it is an object


def _keys(value: object, names: tuple[str, ...], where: str) -> None:
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise RecordError(f"{where}: must be an object with exactly {', '.join(names)}")


def _is_label(value: object) -> bool:
    return value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))


def _matches(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_time(value: object) -> bool:
    if not isinstance(value, str) or _TIME.fullmatch(value) is None:
        return False
    try:
        datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True


_FORMS: Final[dict[str, Callable[[Any], bool]]] = {
    "v": lambda value: value == 1 and not isinstance(value, bool),
    "id": _matches(_UUID7),
    "time": _is_time,
    "type": _matches(_TYPE),
    "outcome": lambda value: value in OUTCOMES,
    "reasons": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "refs": lambda value: isinstance(value, dict) and all(map(_is_label, value.values())),
    "data": lambda value: isinstance(value, dict),
    "private": lambda value: value is None or is_digest(value),
}
