"""What changed between two manifests, field by field and in words, for the people who approved the earlier one.

The fields are complete: whatever differs is among them. The words say what it means, as far as `describe` speaks of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.manifest_schema import Manifest
from protocol.manifest_words import describe, listed

_LABELS = {
    "title": "Title",
    "summary": "Summary",
    "purpose": "Purpose",
    "cohort": "Images",
    "plan": "Training",
    "aggregation": "Secure sum",
    "privacy": "Privacy",
    "participants": "Hospital",
    "limits": "Limits",
    "dates": "Dates",
    "log": "Log",
    "witnesses": "Witnesses",
}


@dataclass(frozen=True)
class Difference:
    """One field. `before` or `after` is None where the field was added or removed; values are shown as JSON text."""

    label: str
    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Rewording:
    """Under one label of `describe`: the sentences that are gone, and those that are new."""

    label: str
    gone: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """summary: one sentence. words: what reads otherwise now. fields: every field that differs."""

    summary: str
    words: tuple[Rewording, ...]
    fields: tuple[Difference, ...]


def changes(old: Manifest, new: Manifest, before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """From one version of a study to another. Parameters: before, after: the same two as plain JSON."""
    words = tuple(
        Rewording(label, _without(was, said), _without(said, was))
        for (label, said), was in zip(describe(new), (text for _, text in describe(old)), strict=True)
        if said != was
    )
    fields = tuple(differences(before, after))
    labels = listed(dict.fromkeys(each.label.split(":")[0] for each in fields)) if fields else ""
    return Changes(f"Nothing changed but: {labels}." if fields else "Nothing changed.", words, fields)


def _without(text: str, other: str) -> tuple[str, ...]:
    there = set(_sentences(other))
    return tuple(sentence for sentence in _sentences(text) if sentence not in there)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """All fields that differ, in the order of their paths."""
    before, after = _flat(old), _flat(new)
    found = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            head, _, rest = path.partition(".")
            label = _LABELS.get(head, head)
            found.append(Difference(f"{label}: {rest}" if rest else label, path, before.get(path), after.get(path)))
    return found


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{path}.{key}" if path else str(key))
        return found
    if path == "participants" and isinstance(value, Sequence):
        # By silo, not by place in the list: one hospital more must not look like a change of all others.
        return _flat({each["silo"]: {key: item for key, item in each.items() if key != "silo"} for each in value}, path)
    return {path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
