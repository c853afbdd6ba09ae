"""A hospital's data-use policy in words, for the steward who signs it and for the partners who read it."""

from __future__ import annotations

from protocol.data_use.document import MICRO, KnownPartners, LocalLimits, Modifier, PolicyDocument
from protocol.duo import PERMISSIONS, TERMS, load_closure
from protocol.manifest_words import count, day, duration, listed


def describe_policy(document: PolicyDocument) -> list[str]:
    """The policy in words, one sentence or two an item, in the order in which a steward should read them."""
    return [
        f"Data-use policy of {document.organisation} (silo {document.silo}), version {document.version}.",
        _permission(document),
        *(_modifier(modifier) for modifier in document.modifiers),
        *_limits(document.limits),
        _consent(document),
        "This hospital's own test results may be shown to the partners."
        if document.share_metrics
        else "This hospital's own test results stay here; only sums over hospitals show them.",
        _known(document.partners),
        f"A round runs only while the log was confirmed within the last {duration(document.log_max_age_seconds)}.",
    ]


def _permission(document: PolicyDocument) -> str:
    if document.permission is None:
        return "No permission is stated, so every study is denied."
    if document.permission not in PERMISSIONS:
        return f"{document.permission} is not a known permission, so every study is denied."
    meaning = TERMS[document.permission].meaning
    if document.diseases:
        names = listed(load_closure().label(disease) for disease in document.diseases)
        return f"{meaning[:-1]}: {names}, and whatever is a kind of {'it' if len(document.diseases) == 1 else 'them'}."
    return meaning


def _modifier(modifier: Modifier) -> str:
    term = TERMS.get(modifier.code)
    if term is None:
        return f"Condition {modifier.code}: unknown here, so a steward decides about every study."
    named: list[str] = [load_closure().label(disease) for disease in modifier.diseases or ()]
    for items in (modifier.countries, modifier.projects, modifier.institutions, modifier.users):
        named.extend(items or ())
    if modifier.until is not None:
        named.append(day(modifier.until))
    return f"{term.meaning[:-1]}: {listed(named)}." if named else term.meaning


def _limits(limits: LocalLimits) -> list[str]:
    sentences = []
    if limits.epsilon_max_micro is not None:
        sentences.append(
            f"A study may lose at most epsilon {limits.epsilon_max_micro / MICRO:g} of privacy; one without noise is "
            "denied."
        )
    if limits.min_cohort is not None:
        sentences.append(f"Each hospital takes part with at least {count(limits.min_cohort, 'patient')}.")
    if limits.min_participants is not None:
        sentences.append(f"A sum covers at least {count(limits.min_participants, 'hospital')}.")
    if limits.max_rounds is not None:
        sentences.append(f"A study runs at most {count(limits.max_rounds, 'round')}.")
    if limits.model_families is not None:
        sentences.append(f"Only these networks are trained: {listed(limits.model_families)}.")
    if limits.partners is not None:
        sentences.append(f"Only these partners take part: {listed(limits.partners)}.")
    if limits.countries is not None:
        sentences.append(f"Only partners in these countries take part: {listed(limits.countries)}.")
    if limits.expires is not None:
        sentences.append(f"The policy holds until {day(limits.expires)}; a study must end by then.")
    return sentences


def _consent(document: PolicyDocument) -> str:
    if document.consent_default == "opt-in":
        return "A patient's images are used only where the patient has agreed."
    if document.legal_basis is None:
        return "Patients may object, but no legal basis is named: images are used only with a recorded consent."
    return f"A patient's images are used unless the patient has objected. Legal basis: {document.legal_basis}."


def _known(partners: KnownPartners) -> str:
    if partners.min_known == 0:
        return "No partner has to be known to this hospital by key."
    return (
        f"At least {partners.min_known} of the partners whose keys this hospital has compared must be in every sum: "
        f"{listed(sorted(partners.keys))}."
    )
