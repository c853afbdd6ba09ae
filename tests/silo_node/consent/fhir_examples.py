"""Consents in the three dialects, with what a test changes."""

from __future__ import annotations

from typing import Any

MII = "urn:oid:2.16.840.1.113883.3.1937.777.24.5.3"
USE = "2.16.840.1.113883.3.1937.777.24.5.3.8"
REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
LONG = {"start": "2023-04-27", "end": "2053-04-27"}


def concept(code: str = USE, system: str = MII) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": "words"}]}


def purpose(code: str = "HRESCH") -> dict[str, Any]:
    return {"system": REASON, "code": code}


def consent(said: dict[str, Any] | None, who: str = "1", date: str = "2023-04-27", **changes: Any) -> dict[str, Any]:
    """An active Consent whose provision is `said`; a change to None leaves the field out."""
    found = {
        "resourceType": "Consent",
        "id": f"c-{who}-{date[:10]}",
        "status": "active",
        "patient": {"reference": f"Patient/{who}"},
        "dateTime": date,
        "provision": said,
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def gics(kind: str = "permit", **changes: Any) -> dict[str, Any]:
    """Flat: a root with its codes."""
    return {"type": kind, "period": LONG, "code": [concept()], **changes}


def mii(*nested: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A root that denies, and exceptions."""
    return {"type": "deny", "period": LONG, "provision": list(nested or (gics(),)), **changes}


def pcf(kind: str = "permit", **changes: Any) -> dict[str, Any]:
    """A root with a purpose."""
    return {"type": kind, "purpose": [purpose()], **changes}
