"""May a silo change its key now? Not while it takes part in an open round: the round's messages name the old key.

A round that was announced to it and that it did not join, refused or fell out of goes on without it, as the next ones do.
"""

from __future__ import annotations

from federation.models import CLOSED, Purpose, Round
from federation.services.mail import read_mail
from organisations.models import Silo
from portal.problems import Refused


def key_change_check(silo: Silo) -> None:
    """Raises Refused (ROUND_OPEN), which says when to try again, where the silo takes part in a round."""
    for item in Round.objects.filter(seats__silo=silo).exclude(stage__in=CLOSED).order_by("pk"):
        if takes_part(item, silo.name):
            raise Refused(
                "ROUND_OPEN",
                f"This silo takes part in round {item.key}, whose messages its present key signs. Try again when the round "
                f"is over; its present stage ends at {item.deadline_at:%Y-%m-%d %H:%M} UTC at the latest.",
            )


def takes_part(item: Round, silo: str) -> bool:
    """Whether a silo has joined an open round and is in it still."""
    if item.purpose == Purpose.INITIAL:
        return False  # what it signs once, at the beginning, stands
    mail = read_mail(item, ("keys", "refusal"))
    if silo in mail.refused() or not mail.letter("keys", silo):
        return False
    chosen = (item.members, item.first_list, item.ready_set, item.roster)
    newest = next((names for names in chosen if names is not None), None)
    return newest is None or silo in newest
