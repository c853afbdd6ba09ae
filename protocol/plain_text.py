"""Text that one party wrote and another reads before it signs: nothing in it may steer a terminal or hide a line.

A control character can move a terminal's cursor over what stands above, a direction character can turn a sentence round.
A steward decides by what is shown, so such characters are refused in manifests and never printed.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Controls, lone surrogates, line and paragraph separators."""
_DIRECTIONS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks, embeddings, overrides and isolates of the bidirectional algorithm (Unicode UAX 9)."""


def first_unsafe(text: str, *, lines: bool = False) -> int | None:
    """Position of the first character that steers instead of being read; None where there is none.

    Parameters: lines: whether tab, line feed and carriage return are allowed.
    """
    return next((at for at, character in enumerate(text) if _steers(character, lines)), None)


def visible(text: str) -> str:
    """`text` with "?" in the place of each character that steers; tabs and line feeds stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("?" if _steers(each, True) or each == "\r" else each for each in text)


def _steers(character: str, lines: bool) -> bool:
    if lines and character in "\t\n\r":
        return False
    return unicodedata.category(character) in _CATEGORIES or character in _DIRECTIONS
