"""What changed between two manifests, field by field, for the people who approved the earlier one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
