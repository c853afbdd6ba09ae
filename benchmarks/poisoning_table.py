"""docs/poisoning.md from the JSON lines of `benchmarks.poisoning`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text(lines: Sequence[dict[str, Any]]) -> str:
    """The page."""
    return ""
