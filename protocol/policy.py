"""A hospital's data-use policy against a study: PERMIT, REVIEW or DENY, with reasons.

DENY beats REVIEW beats PERMIT, and a missing answer is a DENY. On DENY only the denying reasons are named, on REVIEW
only those that need a person, on PERMIT none; obligations that come with a PERMIT or REVIEW stand in a field of their
own. The hospital's silo takes the decision; the portal runs the same function to predict it.

    python -m protocol.policy --cases FILE [--json]     one line a case of a file like the shared test cases

The rules, term by term, are in data_use/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.canonical import digest, encode
from protocol.data_use.document import (
    POLICY_TYPE,
    PolicyDocument,
    PolicyError,
    freeze_policy,
    parse_policy,
    policy_facts,
)
from protocol.data_use.findings import Decision, Finding
from protocol.data_use.limits import judge_limits
from protocol.data_use.modifiers import judge_modifier
from protocol.data_use.permissions import judge_permission
from protocol.data_use.words import describe_policy
from protocol.duo import TERMS, Closure, load_closure

__all__ = [
    "POLICY_TYPE",
    "Decision",
    "Match",
    "Obligation",
    "PolicyDocument",
    "PolicyError",
    "Reason",
    "describe_policy",
    "freeze_policy",
    "load_closure",
    "match",
    "match_digest",
    "parse_policy",
    "policy_facts",
]

MATCH_SCHEMA: Final = "consilium/match/1"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the decision is not PERMIT.

    Fields: code: the term's abbreviation, LOCAL.<limit>, an unknown term's id, or None where the policy has no
    permission. sentence: why, for a doctor. change: what would make the decision another one.
    """

    code: str | None
    sentence: str
    change: str


@dataclass(frozen=True, slots=True)
class Obligation:
    """What the study owes the hospital because it accepted it: the term's abbreviation, and what it means."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Match:
    """A policy's decision about a study."""

    decision: Decision
    reasons: tuple[Reason, ...]
    obligations: tuple[Obligation, ...] = ()

    @property
    def reason_codes(self) -> list[str | None]:
        """The codes, each once, in the policy's order: permission, modifiers, limits."""
        return list(dict.fromkeys(reason.code for reason in self.reasons))


def match(
    policy: Mapping[str, Any], study: Mapping[str, Any], ancestors: Mapping[str, Sequence[str]] | Closure
) -> Match:
    """What `policy` (from `policy_facts`) says to `study` (from `manifest.study_facts`).

    Parameters: ancestors: every disease's ancestors, all levels: `load_closure()`, or a mapping.
    Returns: the decision; it never raises for a policy or study that is incomplete or of wrong types, it denies.
    """
    if isinstance(ancestors, Closure):
        ancestors = ancestors.ancestors
    # 1. Every part of the policy is judged; none can hide another.
    findings = [judge_permission(policy, study, ancestors)]
    modifiers = policy.get("modifiers")
    if isinstance(modifiers, (list, tuple)):
        findings += [judge_modifier(modifier, policy, study, ancestors) for modifier in modifiers]
    elif modifiers is not None:
        findings.append(judge_modifier(None, policy, study, ancestors))
    findings += judge_limits(policy.get("limits"), study)
    # 2. The strictest finding decides, and only findings of that kind are reasons.
    decision: Decision = "PERMIT"
    for stricter in ("REVIEW", "DENY"):
        if any(finding.decision == stricter for finding in findings):
            decision = stricter
    if decision == "DENY":
        return Match(decision, _reasons(findings, decision))
    # 3. What is allowed, or may be, comes with its obligations.
    return Match(
        decision,
        () if decision == "PERMIT" else _reasons(findings, decision),
        tuple(
            Obligation(finding.code, finding.obligation)
            for finding in findings
            if finding.obligation is not None and finding.code is not None
        ),
    )


def match_digest(result: Match) -> str:
    """The digest of what was decided: decision, reason codes and obligations, not the wording of sentences, so that a
    steward's approval outlives an improved wording. Policy and manifest stand beside it in the approval by their own
    digests."""
    return digest(
        encode(
            {
                "schema": MATCH_SCHEMA,
                "decision": result.decision,
                "reasons": result.reason_codes,
                "obligations": [obligation.code for obligation in result.obligations],
            }
        )
    )


def _reasons(findings: Sequence[Finding], decision: Decision) -> tuple[Reason, ...]:
    return tuple(Reason(f.code, f.sentence, f.change) for f in findings if f.decision == decision)


def _cases(path: Path) -> tuple[Mapping[str, Sequence[str]], list[Any]]:
    """The hierarchy (the pinned one where the file has none) and the cases of a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cases = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(cases, list):
        raise ValueError("the file has no list of cases")
    ancestors = content.get("ancestors") if isinstance(content, dict) else None
    return (ancestors if isinstance(ancestors, dict) else load_closure().ancestors), cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Decides each case of a file. Returns the exit code: 0, or 2 where the file cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m protocol.policy", description="Data-use policy against study.")
    parser.add_argument("--cases", required=True, type=Path, metavar="FILE", help="JSON with a list `cases`")
    parser.add_argument("--json", action="store_true", help="one JSON object a case: name, decision, reason_codes")
    options = parser.parse_args(arguments)
    try:
        ancestors, cases = _cases(options.cases)
    except (OSError, ValueError) as error:
        print(f"{options.cases}: cannot read cases: {error}", file=sys.stderr)
        return 2
    for index, case in enumerate(cases):
        parts = case if isinstance(case, dict) else {}
        policy, study = parts.get("policy"), parts.get("study")
        result = match(policy if isinstance(policy, dict) else {}, study if isinstance(study, dict) else {}, ancestors)
        name = parts.get("name", f"case {index + 1}")
        if options.json:
            print(json.dumps({"name": name, "decision": result.decision, "reason_codes": result.reason_codes}))
        else:
            print(f"{result.decision:6}  {name}")
            for reason in result.reasons:
                print(f"        {reason.code or 'no permission'}: {reason.sentence} {reason.change}")
            for obligation in result.obligations:
                print(f"        {TERMS_BY_CODE[obligation.code]}: {obligation.sentence}")
    return 0


TERMS_BY_CODE: Final = {term.code: term.label for term in TERMS.values()}
"""Names of terms by their abbreviation."""

if __name__ == "__main__":
    sys.exit(main())
