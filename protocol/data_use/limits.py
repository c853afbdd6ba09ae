"""A hospital's own limits on top of the Data Use Ontology: size, length, privacy loss, partners, dates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from protocol.data_use.findings import Finding, calendar_day, number, texts
from protocol.manifest_words import day, listed


def judge_limits(limits: object, study: Mapping[str, Any]) -> list[Finding]:
    """The hospital's own limits, in the order of the table. A limit of None is none; one that is unknown is a DENY."""
    if limits is None:
        return []
    if not isinstance(limits, Mapping):
        return [
            Finding(
                "DENY",
                "LOCAL",
                "The limits in the hospital's policy cannot be read.",
                "The hospital's steward would have to correct its data-use policy.",
            )
        ]
    findings = [rule(limits[name], study) for name, rule in _LIMITS.items() if limits.get(name) is not None]
    for name in limits:
        if name not in _LIMITS and limits[name] is not None:
            findings.append(
                _limit(
                    name,
                    False,
                    f"The hospital has a limit {name} that this system does not know.",
                    "The steward can remove it.",
                )
            )
    return findings


def _limit(name: str, holds: bool, sentence: str, change: str) -> Finding:
    return Finding("PERMIT", f"LOCAL.{name}") if holds else Finding("DENY", f"LOCAL.{name}", sentence, change)


def _epsilon(limit: object, study: Mapping[str, Any]) -> Finding:
    cap, spent = number(limit), number(study.get("epsilon"))
    if spent is None:
        said = "The study states none: without noise on the updates there is no bound."
    else:
        said = f"The study may spend {_said(spent)}."
    return _limit(
        "epsilon",
        cap is not None and spent is not None and spent <= cap,
        f"This hospital allows a privacy loss of at most epsilon {_said(cap)}. {said}",
        "A study with differential privacy within this cap would be allowed.",
    )


def _least(name: str, what: str) -> Callable[[object, Mapping[str, Any]], Finding]:
    """The study's number must be at least the limit."""

    def rule(limit: object, study: Mapping[str, Any]) -> Finding:
        least, stated = number(limit), number(study.get(name))
        return _limit(
            name,
            least is not None and stated is not None and stated >= least,
            f"This hospital asks for at least {_said(least)} {what}. The study asks for {_said(stated)}.",
            f"A study that asks for at least {_said(least)} {what} would be allowed.",
        )

    return rule


def _max_rounds(limit: object, study: Mapping[str, Any]) -> Finding:
    most, stated = number(limit), number(study.get("max_rounds"))
    return _limit(
        "max_rounds",
        most is not None and stated is not None and stated <= most,
        f"This hospital allows at most {_said(most)} rounds. The study may run {_said(stated)}.",
        f"A study of at most {_said(most)} rounds would be allowed.",
    )


def _said(value: float | None) -> str:
    return "(no readable number)" if value is None else f"{value:,.12g}"


def _model_families(limit: object, study: Mapping[str, Any]) -> Finding:
    allowed, family = texts(limit) or frozenset(), study.get("model_family")
    stated = family if isinstance(family, str) and family else "no stated network"
    return _limit(
        "model_families",
        stated in allowed,
        f"This hospital allows only the networks {listed(sorted(allowed)) if allowed else '(none)'}. The study trains "
        f"{stated}.",
        "A study with one of these networks would be allowed.",
    )


def _within(name: str, noun: str) -> Callable[[object, Mapping[str, Any]], Finding]:
    """The study's list must be within the limit's."""

    def rule(limit: object, study: Mapping[str, Any]) -> Finding:
        allowed, asked = texts(limit) or frozenset(), texts(study.get(name))
        outside = sorted((asked or frozenset()) - allowed)
        said = (
            "The study names none."
            if asked is None
            else f"The study also has {listed(outside) if outside else 'none'}."
        )
        return _limit(
            name,
            asked is not None and not outside,
            f"This hospital works only with the {noun} {listed(sorted(allowed)) if allowed else '(none)'}. {said}",
            f"A study within these {noun} would be allowed.",
        )

    return rule


def _expires(limit: object, study: Mapping[str, Any]) -> Finding:
    last, end = calendar_day(limit), calendar_day(study.get("end"))
    return _limit(
        "expires",
        last is not None and end is not None and end <= last,
        f"This hospital's policy holds until {day(last) if last else '(no readable date)'}. "
        f"The study ends on {day(end) if end else '(no stated day)'}.",
        "A study that ends earlier would be allowed, or the hospital would have to extend its policy.",
    )


_LIMITS: Final[Mapping[str, Callable[[object, Mapping[str, Any]], Finding]]] = {
    "epsilon_max": _epsilon,
    "min_cohort": _least("min_cohort", "patients at each hospital"),
    "min_participants": _least("min_participants", "hospitals in a sum"),
    "max_rounds": _max_rounds,
    "model_families": _model_families,
    "partners": _within("partners", "partners"),
    "countries": _within("countries", "countries"),
    "expires": _expires,
}
"""The local limits that a policy can set, with how each is judged."""
