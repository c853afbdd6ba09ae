"""Kinds of fields that documents are made of: days, silo names, countries, keys, plain arguments. Each refuses what it is not."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from protocol.canonical import CanonicalError, unb64
from protocol.plain_text import first_unsafe

MAX_ARGUMENT_DEPTH: Final = 6
"""Levels of nesting in the arguments of a network or transform."""

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def _day(text: str) -> str:
    if _DAY.fullmatch(text) is None:
        raise ValueError("must be a date written YYYY-MM-DD")
    date.fromisoformat(text)
    return text


def _public_key(text: str) -> str:
    try:
        key = unb64(text)
    except CanonicalError as error:
        raise ValueError(f"must be the base64 of a 32-byte Ed25519 public key ({error})") from None
    if len(key) != 32:
        raise ValueError(f"must be the base64 of a 32-byte Ed25519 public key, not of {len(key)} bytes")
    return text


def _line(text: str) -> str:
    at = first_unsafe(text)
    if at is not None:
        raise ValueError(f"holds a control or direction character (character {at + 1}); take it out")
    return text


def _lines(text: str) -> str:
    at = first_unsafe(text, lines=True)
    if at is not None:
        raise ValueError(f"holds a control or direction character (character {at + 1}); take it out")
    return text


def unique(items: tuple[str, ...]) -> tuple[str, ...]:
    """`items` themselves. Raises ValueError where one stands twice."""
    if len(set(items)) != len(items):
        raise ValueError("names something twice")
    return items


def _plain_arguments(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    _check_plain(arguments, 0)
    return arguments


def _check_plain(value: Any, depth: int) -> None:
    if depth > MAX_ARGUMENT_DEPTH:
        raise ValueError(f"arguments may be nested {MAX_ARGUMENT_DEPTH} levels deep at most")
    if isinstance(value, str):
        if value.startswith(("$", "@", "%")):
            raise ValueError(
                "text that starts with $, @ or % is an expression to MONAI and never allowed: give the plain value"
            )
    elif isinstance(value, dict):
        for key, member in value.items():
            if key.startswith("_"):
                raise ValueError(
                    "an argument's name may not start with an underscore (MONAI would build an object from it)"
                )
            _check_plain(key, depth)
            _check_plain(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            _check_plain(member, depth + 1)


Line = Annotated[str, AfterValidator(_line)]
"""One line that people read: no character that could steer a terminal or turn the line round."""
Lines = Annotated[str, AfterValidator(_lines)]
"""As `Line`, in several lines."""
Day = Annotated[str, AfterValidator(_day)]
"""A calendar day, `YYYY-MM-DD`."""
Slug = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?$")]
"""A silo's name: lower case letters, digits, hyphen, underscore; 63 characters at most."""
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
"""ISO 3166-1 alpha-2, upper case."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
"""A name that an allowlist of the hospital resolves: network or transform."""
Layer = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}$")]
"""A tensor of a network, or what stands before a dot in the names of several."""
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
VerifierKey = Annotated[str, Field(pattern=r"^[^\s+]{1,200}\+[0-9a-f]{8}\+[A-Za-z0-9+/]+={0,2}$")]
"""A signed note's verifier key: `name+hash+base64`."""
Term = Annotated[str, Field(pattern=r"^[A-Za-z]+:[A-Za-z0-9]+$", max_length=40)]
"""An ontology term such as `DOID:552`."""
Arguments = Annotated[dict[str, JsonValue], AfterValidator(_plain_arguments)]
PublicKey = Annotated[str, AfterValidator(_public_key)]
"""Base64 of the 32 bytes of an Ed25519 public key."""


class Part(BaseModel):
    """Base of every part: immutable, no unknown field, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
