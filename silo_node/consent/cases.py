"""Files of cases: consents, opt-outs, a query and a time; what the rules say to each.

    {"query": {"codes": [[system, code]], "purposes": [[system, code]]}, "now": "2026-11-23T00:00:00Z", "default": "DENY",
     "cases": [{"name", "consents": [Consent], "opt_out": ["Patient/1"], "expect": "PERMIT"}]}

A case may have a `query`, `now` or `default` of its own, and a `patient` (a reference): whom is asked about. Where neither
case nor file says, it is the patient of more than half of the file's consents, or else of the case's first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silo_node.consent import fhir, fhir_json, fhir_time
from silo_node.consent.rules import Decision, Query, decide
from silo_node.errors import UsageError


@dataclass(frozen=True)
class Answer:
    """expect: "PERMIT" or "DENY" where the file says what it should be, else None."""

    name: str
    decision: Decision
    expect: str | None

    @property
    def differs(self) -> bool:
        """Whether the file says something else."""
        return self.expect is not None and self.expect != self.decision.word


def answers(path: Path) -> list[Answer]:
    """What the rules say to each case of a file. Raises: UsageError."""
    try:
        content = fhir_json.decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except fhir_json.JsonFault as error:
        raise UsageError(f"{path} {error}") from None
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, list):
        raise UsageError(f"{path} has no list `cases`")
    for number, case in enumerate(cases, 1):
        if not isinstance(case, dict) or not isinstance(case.get("consents"), list):
            raise UsageError(f"{path}, case {number}: needs consents, a list")
    usual = _usual(cases)
    found = []
    for number, case in enumerate(cases, 1):
        try:
            found.append(_answer({**content, **case}, f"case {number}", usual))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path}, case {number}: needs consents, opt_out, query, now and default ({error})"
            ) from None
    return found


def _usual(cases: list[Any]) -> str | None:
    bodies = [body for case in cases for body in case["consents"]]
    named = Counter(
        record.subject.reference
        for record in (fhir.parse(body) for body in bodies if isinstance(body, dict))
        if record.subject is not None and record.subject.reference is not None
    )
    return next((name for name, count in named.most_common(1) if 2 * count > named.total()), None)


def _answer(case: Mapping[str, Any], unnamed: str, usual: str | None) -> Answer:
    pairs = {name: frozenset((system, code) for system, code in case["query"].get(name, [])) for name in _QUERY}
    records = [fhir.parse(body) for body in case["consents"]]
    patient = case.get("patient", usual)
    if patient is None:
        patient = next((record.subject.reference for record in records if record.subject is not None), None)
    # An unreadable patient might be this one.
    own = [record for record in records if record.subject is None or record.subject.reference == patient]
    listed = case.get("opt_out", [])
    decision = decide(
        own,
        patient in listed if patient is not None else bool(listed),
        Query(pairs["codes"], pairs["purposes"]),
        fhir_time.parse(case["now"]).first,
        {"PERMIT": True, "DENY": False}[case.get("default", "DENY")],
    )
    return Answer(str(case.get("name", unnamed)), decision, case.get("expect"))


_QUERY = ("codes", "purposes")
