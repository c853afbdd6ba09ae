"""The permissions of a data-use policy: for which purposes the data may be used at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from protocol.data_use.findings import PURPOSES, Finding, Question, texts
from protocol.duo import PERMISSIONS, load_closure
from protocol.manifest_words import listed


def judge_permission(
    policy: Mapping[str, Any], study: Mapping[str, Any], ancestors: Mapping[str, Sequence[str]]
) -> Finding:
    """The policy's permission. None, or one that is not a DUO permission, is always a DENY."""
    term = policy.get("permission")
    if not isinstance(term, str) or not term:
        return Finding(
            "DENY",
            None,
            "This hospital has stated no permission for its data, so nothing is allowed.",
            "The hospital's steward would have to name a permission in its data-use policy.",
        )
    if term not in PERMISSIONS:
        return Finding(
            "DENY",
            term,
            f"The hospital's policy names the permission {term}, which is not one that this system knows as a "
            "permission.",
            "The hospital's steward would have to name one of the permissions NRES, GRU, HMB, DS or POA.",
        )
    return PERMISSION_RULES[term](Question(study, ancestors, policy, term))


def stated_purpose(question: Question) -> str | None:
    kind = question.study.get("purpose")
    return kind if isinstance(kind, str) and kind in PURPOSES else None


def _any_purpose(question: Question) -> Finding:
    if stated_purpose(question) is None:
        return no_purpose(question)
    return question.permit()


def no_purpose(question: Question) -> Finding:
    return question.deny(
        "The study does not say what it is for.",
        "The study would have to state its purpose: general, hmb, disease or poa.",
    )


def _health(question: Question) -> Finding:
    kind = stated_purpose(question)
    if kind is None:
        return no_purpose(question)
    if kind in ("hmb", "disease"):
        return question.permit()
    return question.deny(
        f"This dataset may be used only for health, medical or biomedical research. The study is {PURPOSES[kind]}.",
        "A study for health research, or on a disease, would be allowed.",
    )


def _diseases(question: Question) -> Finding:
    allowed = texts(question.parameters.get("diseases"))
    if allowed is None:
        return question.deny(
            "This dataset may be used only for research on certain diseases, but the hospital's policy names none.",
            "The hospital's steward would have to name the diseases in its data-use policy.",
        )
    label = load_closure().label
    only = f"This dataset may be used only for research on {listed(label(disease) for disease in sorted(allowed))}."
    kind = stated_purpose(question)
    if kind is None:
        return no_purpose(question)
    if kind != "disease":
        if question.study.get("methods") is True:
            stated = "The study develops methods and names no disease that it studies."
        else:
            stated = f"The study is {PURPOSES[kind]}."
        return question.deny(
            f"{only} {stated}", "A study of the kind disease, on these diseases alone, would be allowed."
        )
    studied = texts(question.study.get("diseases"))
    if studied is None:
        return question.deny(
            f"{only} The study does not name the diseases that it studies.", "The study would have to name them."
        )
    known = set(question.ancestors).union(*question.ancestors.values())
    outside: list[str] = []
    unclear: list[str] = []
    for disease in sorted(studied):
        within = allowed & {disease, *question.ancestors.get(disease, ())}
        if disease in known and within:
            continue
        apart = all(_apart(disease, term, question.ancestors, known) for term in allowed)
        (outside if apart else unclear).append(disease)
    if outside:
        names = listed(label(disease) for disease in outside)
        one = len(outside) == 1
        whole = "it" if len(allowed) == 1 else "any of them"
        return question.deny(
            f"{only} {names[0].upper()}{names[1:]} {'is not a kind' if one else 'are not kinds'} of {whole}.",
            f"A study without {names} would be allowed, or the hospital would have to add {'it' if one else 'them'} to its "
            "policy.",
        )
    if unclear:
        return question.review(
            f"{only} The pinned disease hierarchy does not say whether {listed(label(d) for d in unclear)} belongs to "
            "it.",
            "The hospital's steward decides; a term of the pinned hierarchy would be judged by itself.",
        )
    return question.permit()


def _apart(disease: str, term: str, ancestors: Mapping[str, Sequence[str]], known: set[str]) -> bool:
    """Whether the hierarchy says for sure that `disease`, which is not listed under `term`, is no kind of it: it lists all
    that is above the disease and knows the term, or it lists the disease itself above the term."""
    return (disease in ancestors and term in known) or disease in ancestors.get(term, ())


def _ancestry_only(question: Question) -> Finding:
    kind = stated_purpose(question)
    if kind is None:
        return no_purpose(question)
    if kind == "poa":
        return question.permit()
    return question.deny(
        f"This dataset may be used only for research on population origins or ancestry. The study is {PURPOSES[kind]}.",
        "Only a study of ancestry would be allowed, or the hospital would have to widen its policy.",
    )


PERMISSION_RULES: Final[Mapping[str, Callable[[Question], Finding]]] = {
    "DUO:0000004": _any_purpose,
    "DUO:0000042": _any_purpose,
    "DUO:0000006": _health,
    "DUO:0000007": _diseases,
    "DUO:0000011": _ancestry_only,
}
"""How each permission is judged."""
