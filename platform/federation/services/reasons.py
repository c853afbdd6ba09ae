"""Why a round failed, in words: each hospital's own reasons stand in the sentence, so that nobody has to ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from federation.services.facts import Facts
from federation.services.mail import Mail
from protocol import messages
from protocol.secure_aggregation import sketch

SKETCH_REASONS: Mapping[str, str] = {
    sketch.OVER_BOUND: (
        "Its update is longer than the study allows: its node did not shorten it. It was left out before the unmasking, so "
        "nothing of it is in the sum."
    ),
    sketch.ABOVE_OTHERS: (
        f"Its update is more than {float(sketch.ABOVE):g} times as long as the middle one of all hospitals. It was left out "
        "before the unmasking, so nothing of it is in the sum."
    ),
    sketch.BELOW_OTHERS: (
        f"Its update is less than {float(sketch.BELOW):g} times as long as the middle one of all hospitals: empty, or "
        "nearly. It was left out before the unmasking, so nothing of it is in the sum."
    ),
    "SKETCH_MISSING": "It showed no sketch of its update in time, so it was left out and nothing of it is in the sum.",
}
"""Why a hospital fell out at the sketch check, by code."""
MOST_NAMED = 20
CHECK_MISSING = "Its check word is missing, so the sum stands unverified, as the study's plan allows."


def too_few(least: int, what: str, mail: Mail, facts: Facts, *, silent: Iterable[str] = ()) -> str:
    """ "Fewer than 3 silos could send an update. Name (site-1) refused: ... Name (site-2) did not answer." """
    return " ".join([f"Fewer than {least} silos could {what}.", *absent(mail, facts, silent)])


def absent(mail: Mail, facts: Facts, silent: Iterable[str]) -> list[str]:
    """Who refused, and why; who of the `silent` did not answer. Of many hospitals the first are named, the rest counted."""
    refused = [f"{hospital(silo, facts)} refused: {refusal_words(mail, silo)}" for silo in sorted(mail.refused())]
    late = [f"{hospital(silo, facts)} did not answer in time." for silo in sorted(set(silent) - mail.refused())]
    found = [*refused, *late]
    more = len(found) - MOST_NAMED
    return found if more <= 0 else [*found[:MOST_NAMED], f"And {more} more."]


def check_missing(missing: Iterable[str], mail: Mail, facts: Facts) -> str:
    """Whose check words are missing, and why that ends the round."""
    sentences = [f"The check words of {', '.join(sorted(missing))} are missing; without them the sum is not believed."]
    for silo in sorted(set(missing) & mail.refused()):
        sentences.append(f"{hospital(silo, facts)} refused: {refusal_words(mail, silo)}")
    for silo in sorted(set(missing) - mail.refused()):
        sentences.append(f"{hospital(silo, facts)} did not answer in time.")
    return " ".join(sentences)


def hospital(silo: str, facts: Facts) -> str:
    """The hospital's name and its silo's."""
    return f"{facts.hospitals.get(silo, silo)} ({silo})"


def refusal_words(mail: Mail, silo: str) -> str:
    """A silo's reasons, as it wrote and signed them."""
    refusal = messages.Refusal.parse(mail.envelope("refusal", silo).payload)
    return " ".join(reason.sentence.strip() for reason in refusal.reasons)
