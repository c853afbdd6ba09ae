"""The modifiers of a data-use policy: conditions on top of its permission, one function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from protocol.data_use.findings import Finding, Question, calendar_day, texts
from protocol.data_use.permissions import PERMISSION_RULES, no_purpose, stated_purpose
from protocol.duo import TERMS
from protocol.manifest_words import day, listed


def judge_modifier(
    modifier: object, policy: Mapping[str, Any], study: Mapping[str, Any], ancestors: Mapping[str, Sequence[str]]
) -> Finding:
    """One modifier of the policy. One that is unknown needs a person; one that names no term is a DENY."""
    term = modifier.get("code") if isinstance(modifier, Mapping) else None
    if not isinstance(modifier, Mapping) or not isinstance(term, str) or not term:
        return Finding(
            "DENY",
            None,
            "The hospital's policy holds a condition that names no term, so it cannot be judged.",
            "The hospital's steward would have to correct its data-use policy.",
        )
    if term not in TERMS:
        return Finding(
            "REVIEW",
            term,
            f"The hospital's policy has the condition {term}, which this system cannot judge.",
            "The hospital's steward decides whether the study meets it.",
        )
    return _RULES[term](Question(study, ancestors, modifier, term))


def _no_ancestry(question: Question) -> Finding:
    kind = stated_purpose(question)
    if kind is None:
        return no_purpose(question)
    if kind != "poa":
        return question.permit()
    return question.deny(
        "This dataset may not be used to study population origins or ancestry, which is the study's purpose.",
        "A study with another purpose would be allowed.",
    )


def _no_methods(question: Question) -> Finding:
    methods = question.study.get("methods")
    if methods is False:
        return question.review(
            "This dataset may not be used to develop methods. The study says that it does not set out to, but it "
            "trains a model.",
            "The hospital's steward decides whether training this model counts as developing a method.",
        )
    if methods is True:
        return question.deny(
            "This dataset may not be used to develop methods, which the study does.",
            "A study that does not set out to develop methods would go to the hospital's steward for review.",
        )
    return question.deny(
        "This dataset may not be used to develop methods, and the study does not say whether it does.",
        "The study would have to answer whether it develops methods.",
    )


def _flag(question: Question, name: str, wanted: bool, rule: str, wrong: str, change: str) -> Finding:
    answer = question.study.get(name)
    if answer is wanted:
        return question.permit()
    if isinstance(answer, bool):
        return question.deny(f"{rule} {wrong}", change)
    return question.deny(f"{rule} The study does not answer this.", f"The study would have to answer it. {change}")


def _genetic(question: Question) -> Finding:
    rule = TERMS[question.term].meaning.replace("The data", "This dataset")
    return _flag(question, "genetic", True, rule, "This study is not one.", "A genetic study would be allowed.")


def _non_profit(question: Question) -> Finding:
    rule = "Only not-for-profit organisations may use this dataset."
    change = "The study would be allowed if all its partners were not-for-profit organisations."
    return _flag(question, "all_non_profit", True, rule, "At least one partner of the study works for profit.", change)


def _non_commercial(question: Question) -> Finding:
    rule = "This dataset may not be used commercially."
    change = "A study whose result is not used commercially would be allowed."
    return _flag(question, "commercial", False, rule, "The study's result may be used commercially.", change)


def _non_profit_non_commercial(question: Question) -> Finding:
    findings = [finding for finding in (_non_profit(question), _non_commercial(question)) if finding.decision == "DENY"]
    if not findings:
        return question.permit()
    return question.deny(" ".join(f.sentence for f in findings), " ".join(f.change for f in findings))


def _ethics(question: Question) -> Finding:
    rule = "This dataset may be used only with the approval of an ethics committee, valid to the study's end."
    ethics = question.study.get("ethics")
    reference = ethics.get("ref") if isinstance(ethics, Mapping) else None
    if not isinstance(ethics, Mapping) or not isinstance(reference, str) or not reference.strip():
        return question.deny(
            f"{rule} None is attached to the study.", "The study would have to attach one, with its reference."
        )
    expires, end = calendar_day(ethics.get("expires")), calendar_day(question.study.get("end"))
    if expires is None or end is None:
        missing = "until when the approval is valid" if expires is None else "when it ends"
        return question.deny(f"{rule} The study does not say {missing}.", "The study would have to state the date.")
    if expires < end:
        return question.deny(
            f"{rule} The attached one ends on {day(expires)}, the study on {day(end)}.",
            "The study would have to end by then, or to have the approval extended.",
        )
    return question.permit()


def _subset(question: Question, name: str, noun: str, answer: object) -> Finding:
    rule = f"This dataset may be used only {noun}"
    allowed = texts(question.parameters.get(name))
    if allowed is None:
        return question.deny(
            f"{rule} that the hospital's policy names, but it names none.",
            "The hospital's steward would have to name them.",
        )
    asked = texts(answer)
    rule = f"{rule} {listed(sorted(allowed))}."
    if asked is None:
        return question.deny(f"{rule} The study does not name its {name}.", f"The study would have to name its {name}.")
    outside = sorted(asked - allowed)
    if outside:
        return question.deny(
            f"{rule} The study also names {listed(outside)}.",
            f"A study without {listed(outside)} would be allowed, or the hospital would have to add it to its policy.",
        )
    return question.permit()


def _countries(question: Question) -> Finding:
    return _subset(question, "countries", "in the countries", question.study.get("countries"))


def _institutions(question: Question) -> Finding:
    return _subset(question, "institutions", "by the institutions", question.study.get("institutions"))


def _users(question: Question) -> Finding:
    return _subset(question, "users", "by the users", question.study.get("users"))


def _projects(question: Question) -> Finding:
    study = question.study.get("study_id")
    return _subset(question, "projects", "in the projects", [study] if isinstance(study, str) else None)


def _time_limit(question: Question) -> Finding:
    until = calendar_day(question.parameters.get("until"))
    if until is None:
        return question.deny(
            "This dataset may be used for a limited time, but the hospital's policy does not say until when.",
            "The hospital's steward would have to state the date in its data-use policy.",
        )
    end = calendar_day(question.study.get("end"))
    rule = f"This dataset may be used until {day(until)}."
    if end is None:
        return question.deny(f"{rule} The study does not say when it ends.", "The study would have to state its end.")
    if end > until:
        return question.deny(
            f"{rule} The study ends on {day(end)}.", f"A study that ends on {day(until)} or earlier would be allowed."
        )
    return question.permit()


def _accepted(question: Question, obligation: str) -> Finding:
    term = TERMS[question.term]
    accepted = texts(question.study.get("accepts")) or frozenset()
    if accepted & {term.id, term.code}:
        return question.permit(obligation)
    return question.deny(
        f"{obligation} The study does not accept this.",
        f"The study would have to accept the obligation {term.label} ({term.id}) in its manifest.",
    )


def _obligation(question: Question) -> Finding:
    return _accepted(question, TERMS[question.term].meaning)


def _moratorium(question: Question) -> Finding:
    until = calendar_day(question.parameters.get("until"))
    if until is None:
        return question.deny(
            "Nothing may be published for a time, but the hospital's policy does not say until when.",
            "The hospital's steward would have to state the date in its data-use policy.",
        )
    return _accepted(question, f"Nothing may be published before {day(until)}.")


def _clinical(question: Question) -> Finding:
    return question.permit()


def _person(question: Question) -> Finding:
    return question.review(
        "The hospital has further restrictions on this dataset that only a person can judge.",
        "The hospital's steward decides whether the study meets them.",
    )


_RULES: Final[Mapping[str, Callable[[Question], Finding]]] = {
    **PERMISSION_RULES,  # one that stands among the modifiers narrows like any other
    "DUO:0000012": _person,
    "DUO:0000015": _no_methods,
    "DUO:0000016": _genetic,
    "DUO:0000018": _non_profit_non_commercial,
    "DUO:0000019": _obligation,
    "DUO:0000020": _obligation,
    "DUO:0000021": _ethics,
    "DUO:0000022": _countries,
    "DUO:0000024": _moratorium,
    "DUO:0000025": _time_limit,
    "DUO:0000026": _users,
    "DUO:0000027": _projects,
    "DUO:0000028": _institutions,
    "DUO:0000029": _obligation,
    "DUO:0000043": _clinical,
    "DUO:0000044": _no_ancestry,
    "DUO:0000045": _non_profit,
    "DUO:0000046": _non_commercial,
}
