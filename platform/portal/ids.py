"""Identifiers that can't be guessed: UUIDv7 for rows, short random names for studies (RFC 9562)."""

from __future__ import annotations

import base64
import secrets
import time
import uuid


def uuid7() -> uuid.UUID:
    """A UUID of version 7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, 12 bits of their fraction, 62 random bits.

    The fraction (method 3 of section 6.2) keeps the order of ids that are made within one millisecond.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | fraction << 64 | 0x2 << 62 | secrets.randbits(62)
    return uuid.UUID(int=value)


def study_id() -> str:
    """`st-` and 16 letters of lower-case base32: 80 random bits."""
    return "st-" + base64.b32encode(secrets.token_bytes(10)).decode("ascii").lower()
