"""JSON from elsewhere, read strictly: UTF-8, no key twice, no NaN, bounded in size and depth."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of one file or one page."""
MAX_DEPTH: Final = 64
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonFault(ValueError):
    """Not what is read here. The message quotes nothing of the content, which may name a patient."""


def decode(data: bytes, *, limit: bool = True) -> Any:
    """The value in `data`. limit: whether it may be too large. Raises: JsonFault."""
    if limit and len(data) > MAX_BYTES:
        raise JsonFault(f"is larger than {MAX_BYTES // 2**20} MiB: split it")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_no_constant)
    except JsonFault:
        raise
    except UnicodeDecodeError:
        raise JsonFault("is not UTF-8 text") from None
    except RecursionError:
        raise JsonFault(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise JsonFault(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except ValueError:
        raise JsonFault("holds a number that is too long") from None
    check_depth(value)
    if _SURROGATE.search(data) is not None:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise JsonFault("holds half of a character (a lone surrogate)") from None
    return value


def check_depth(value: Any) -> None:
    """Raises: JsonFault where `value` is nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise JsonFault(f"is nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonFault("has an object in which one key stands twice")
    return found


def _no_constant(_: str) -> NoReturn:
    raise JsonFault("holds NaN or Infinity, which JSON does not have")
