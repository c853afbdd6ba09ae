"""Canonical JSON (RFC 8785) with our limits, digests, and strict base64.

What is signed or hashed anywhere in Consilium is the output of `encode`. The limits are narrower than the RFC, so that
two implementations can never read one document differently: text is NFC, integers stay within 2^53 - 1, and floating
point numbers are refused unless the caller asks for them (manifests do; records, policies and approvals do not).

Everything here raises `CanonicalError`, a ValueError; its message names the path (`$.plan.batch`), never the value.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import unicodedata
from typing import Any, Final, NoReturn

import rfc8785

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON reader holds exactly."""
MAX_DEPTH: Final = 64
"""Levels of nesting; deeper documents are refused before they can exhaust the stack."""

_WRITER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


class CanonicalError(ValueError):
    """A value that has no canonical form here, or bytes that are not canonical. The message says where."""


def encode(value: object, *, floats: bool = False) -> bytes:
    """The RFC 8785 bytes of `value`.

    Parameters: value: None, bool, int, str, list, tuple or dict with str keys; float only where `floats` is true.
    Returns: UTF-8 bytes, keys sorted by their UTF-16 code units, no white space.
    Raises: CanonicalError for another type, text that is not NFC, an integer beyond 2^53 - 1, a float that is not
    finite or would be written as such an integer, a key that is not text, or nesting deeper than MAX_DEPTH.
    """
    _check(value, "$", floats, 0)
    if not floats:
        # The standard library's writer, ten times as fast, gives the same bytes where there are no floats and all is
        # ASCII; beyond ASCII, RFC 8785 sorts keys by UTF-16 code units and Python by code points.
        text = _WRITER.encode(value)
        if text.isascii():
            return text.encode("ascii")
    return rfc8785.dumps(value)  # type: ignore[arg-type]  # _check has just proved the type


def decode(data: bytes, *, floats: bool = False) -> Any:
    """The value of canonical bytes; nothing that `encode` would have written otherwise is accepted.

    Raises: CanonicalError for bytes that are not UTF-8 JSON, a duplicate key, anything that `encode` refuses, or bytes
    that are valid JSON but not their own canonical form (white space, key order, escapes, `1.0`).
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=float if floats else _no_float,
            parse_constant=_no_constant,
        )
    except CanonicalError:
        raise
    except UnicodeDecodeError as error:
        raise CanonicalError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise CanonicalError(f"not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError):
        # Python's own guards: an integer of thousands of digits, or brackets nested beyond the interpreter's stack.
        raise CanonicalError("a number or a nesting beyond every limit") from None
    again = encode(value, floats=floats)
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b), min(len(again), len(data)))
        raise CanonicalError(f"not in canonical form (RFC 8785): first difference at byte {at}")
    return value


def digest(data: bytes) -> str:
    """`sha256:` and 64 lower hex digits of SHA-256 over `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(text: object) -> bool:
    """Whether `text` has exactly the form that `digest` writes."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def b64(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(data).decode("ascii")


def unb64(text: object) -> bytes:
    """The bytes of strict standard base64: padded, no white space, unused bits zero, so each value has one spelling.

    Raises: CanonicalError.
    """
    if not isinstance(text, str):
        raise CanonicalError(f"base64 must be text, not {type(text).__name__}")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise CanonicalError("not standard base64") from None
    if b64(data) != text:
        raise CanonicalError("not the one standard base64 spelling of its bytes")
    return data


def _check(value: object, path: str, floats: bool, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise CanonicalError(f"{path}: nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise CanonicalError(f"{path}: integer beyond 2^53 - 1")
    elif isinstance(value, float):
        _check_float(value, path, floats)
    elif isinstance(value, dict):
        for key, member in value.items():
            if not isinstance(key, str):
                raise CanonicalError(f"{path}: key is {type(key).__name__}, must be text")
            _check_text(key, f"{path} (a key)")
            _check(member, f"{path}.{key if _PLAIN_NAME.fullmatch(key) else '?'}", floats, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(value):
            _check(member, f"{path}[{index}]", floats, depth + 1)
    else:
        raise CanonicalError(f"{path}: {type(value).__name__} has no canonical form")


def _check_text(text: str, path: str) -> None:
    if text.isascii():
        return
    if not unicodedata.is_normalized("NFC", text):
        raise CanonicalError(f"{path}: text is not in Unicode normal form C")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise CanonicalError(f"{path}: text holds a lone surrogate")


def _check_float(value: float, path: str, floats: bool) -> None:
    if not floats:
        raise CanonicalError(f"{path}: a floating point number is not allowed here, use an integer (micro-units)")
    if not math.isfinite(value):
        raise CanonicalError(f"{path}: not a finite number")
    # RFC 8785 writes 2^53 .. 1e21 without a point; read again it would be an integer that we refuse.
    if MAX_INTEGER < abs(value) < 1e21:
        raise CanonicalError(f"{path}: the number would be written as an integer beyond 2^53 - 1")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CanonicalError("duplicate key in an object")
    return result


def _no_float(_: str) -> NoReturn:
    raise CanonicalError("a floating point number is not allowed here, use an integer (micro-units)")


def _no_constant(_: str) -> NoReturn:
    raise CanonicalError("NaN and Infinity are not JSON")
