"""The study that the demo submits: what a researcher would fill in, as JSON."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any


def draft(
    *,
    silos: Sequence[str],
    plan: Mapping[str, Any],
    modalities: Sequence[str],
    countries: Sequence[str],
    title: str,
    summary: str,
    min_patients: int = 10,
    clip_norm: float = 2.0,
    round_seconds: int = 600,
) -> dict[str, Any]:
    """A study's draft for `silos`; three hospitals at least must be in every sum. Purpose: health research, not commercial."""
    today = dt.datetime.now(dt.UTC).date()
    return {
        "title": title,
        "summary": summary,
        "purpose": {
            "kind": "hmb",
            "diseases": [],
            "methods": False,
            "commercial": False,
            "all_non_profit": True,
            "genetic": False,
            "ethics": {"ref": "DEMO-2026-01", "expires": (today + dt.timedelta(days=400)).isoformat()},
            "countries": sorted(set(countries)),
            "accepts": ["DUO:0000019"],
        },
        "cohort": {"modalities": list(modalities), "min_patients": min_patients},
        "plan": dict(plan),
        "aggregation": {
            "protocol": "consilium-secagg/1",
            "min_roster": 3,
            "min_participants": 3,
            "word_bits": 32,
            "fraction_bits": 20,
            "clip_norm": clip_norm,
            "sketch": True,
            "error_feedback": False,
            "check_words": "required",
            "sparse_from": 64,
            "drawn": None,
        },
        "privacy": {"mode": "none"},
        "participants": list(silos),
        "limits": {"round_seconds": round_seconds, "unmask_seconds": 86400},
        "dates": {"start": today.isoformat(), "end": (today + dt.timedelta(days=180)).isoformat()},
    }


def policy(*, silo: str, organisation: str, min_cohort: int, networks: Sequence[str]) -> dict[str, Any]:
    """A hospital's data-use policy for the demo: health research, not commercial, to be published; own AUC may be shown."""
    return {
        "schema": "consilium/policy/1",
        "silo": silo,
        "organisation": organisation,
        "version": 1,
        "permission": "DUO:0000006",
        "modifiers": [{"code": "DUO:0000046"}, {"code": "DUO:0000019"}],
        "diseases": [],
        "limits": {
            "min_cohort": min_cohort,
            "min_participants": 3,
            "max_rounds": 200,
            "model_families": list(networks),
        },
        "legal_basis": "Art. 9(2)(j) GDPR",
        "consent_default": "opt-out",
        "share_metrics": True,
        "partners": {"keys": {}, "min_known": 0},
        "log_max_age_seconds": 86400,
        "issued": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
