"""Why a round failed, in words: each hospital's own reasons stand in the sentence, so that nobody has to ask."""

from __future__ import annotations

from collections.abc import Iterable

from federation.services.facts import Facts
from federation.services.mail import Mail
from protocol import messages


def too_few(least: int, what: str, mail: Mail, facts: Facts, *, silent: Iterable[str] = ()) -> str:
    """ "Fewer than 3 silos could send an update. Name (site-1) refused: ... Name (site-2) did not answer." """
    sentences = [f"Fewer than {least} silos could {what}."]
    for silo in sorted(mail.refused()):
        sentences.append(f"{hospital(silo, facts)} refused: {refusal_words(mail, silo)}")
    for silo in sorted(set(silent) - mail.refused()):
        sentences.append(f"{hospital(silo, facts)} did not answer in time.")
    return " ".join(sentences)


def hospital(silo: str, facts: Facts) -> str:
    """The hospital's name and its silo's."""
    return f"{facts.hospitals.get(silo, silo)} ({silo})"


def refusal_words(mail: Mail, silo: str) -> str:
    """A silo's reasons, as it wrote and signed them."""
    refusal = messages.Refusal.parse(mail.envelope("refusal", silo).payload)
    return " ".join(reason.sentence.strip() for reason in refusal.reasons)
