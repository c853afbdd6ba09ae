"""What one term of a data-use policy says to a study, and how answers are read: strictly, so that nothing is taken for
granted.

An answer that is missing, or has another type than it should, is never an answer; the rules then say DENY.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal

from protocol.duo import TERMS

Decision = Literal["PERMIT", "REVIEW", "DENY"]

PURPOSES: Final[Mapping[str, str]] = {
    "general": "research of any kind",
    "hmb": "health, medical or biomedical research",
    "disease": "research on named diseases",
    "poa": "research on population origins or ancestry",
}
"""A study's purposes, in words."""

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one term says: the decision, a reason code (None: no permission), a sentence, what would change it, and, on
    PERMIT, the obligation that comes with it."""

    decision: Decision
    code: str | None
    sentence: str = ""
    change: str = ""
    obligation: str | None = None


@dataclass(frozen=True)
class Question:
    """A term to be judged: the study's answers, the disease hierarchy, and the term's own parameters."""

    study: Mapping[str, Any]
    ancestors: Mapping[str, Sequence[str]]
    parameters: Mapping[str, Any]
    term: str

    @property
    def code(self) -> str:
        return TERMS[self.term].code

    def permit(self, obligation: str | None = None) -> Finding:
        return Finding("PERMIT", self.code, obligation=obligation)

    def deny(self, sentence: str, change: str) -> Finding:
        return Finding("DENY", self.code, sentence, change)

    def review(self, sentence: str, change: str) -> Finding:
        return Finding("REVIEW", self.code, sentence, change)


def texts(value: object) -> frozenset[str] | None:
    """The texts in a list of at least one text, nothing else in it; otherwise None."""
    if not isinstance(value, (list, tuple, set, frozenset)) or not value:
        return None
    if not all(isinstance(item, str) and item for item in value):
        return None
    return frozenset(value)


def calendar_day(value: object) -> str | None:
    """`value` where it is a real day written YYYY-MM-DD (such texts sort like days); otherwise None."""
    if not isinstance(value, str) or _DAY.fullmatch(value) is None:
        return None
    try:
        date.fromisoformat(value)
    except ValueError:
        return None
    return value


def number(value: object) -> float | None:
    """`value` where it is a finite number from 0 on; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return value
