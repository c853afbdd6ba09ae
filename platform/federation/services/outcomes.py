"""What a step of a round may come to, and how answers are counted: shared by advance.py and many.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from federation.models import Round, Stage
from federation.services import work
from federation.services.facts import Facts
from federation.services.mail import Mail
from federation.services.reasons import too_few
from protocol.secure_aggregation.errors import NotEnoughShares, ProtocolViolation


class Go(NamedTuple):
    """The round goes on: the next stage, the columns that this fixes, and who has something new to do."""

    to: Stage
    wake: Collection[str]
    fields: Mapping[str, Any]


class Stop(NamedTuple):
    """The round has failed; `fields`: columns that say more about it."""

    code: str
    sentence: str
    fields: Mapping[str, Any] = MappingProxyType({})


class Verify(NamedTuple):
    """All check words are there: the sum is held against them, outside this transaction."""


class Tally(NamedTuple):
    """Who of the expected silos answered, who is lost or too late, and who is still waited for.

    `over`: the stage's deadline has passed, so nobody is waited for; else a lost silo may come back.
    """

    answered: set[str]
    gone: set[str]
    waiting: set[str]
    over: bool


def tally(kind: str, expected: Iterable[str], mail: Mail, lost: Collection[str], over: bool) -> Tally:
    """Count the answers of `kind`. Who refused after answering still counts where the answer is all that is needed."""
    names = set(expected)
    answered = mail.silos(kind) & names
    rest = names - answered - mail.refused()
    gone = rest if over else rest & set(lost)
    return Tally(answered, gone, rest - gone, over)


Outcome = Go | Stop | Verify | None
Step = Callable[[Round, Mail, Facts, Collection[str], bool], Outcome]
"""(round, messages, facts, lost silos, whether the deadline has passed) -> what comes of it."""


def enough(count: Tally, usable: Collection[str], least: int, what: str, mail: Mail, facts: Facts) -> Stop | None:
    """Stop where `least` can't be reached any more: too many refused, or the deadline has passed."""
    still = len(usable) + len(count.waiting) + (0 if count.over else len(count.gone))
    if still < least:
        return Stop("TOO_FEW_SILOS", too_few(least, what, mail, facts, silent=count.gone))
    return None


def unmasked(item: Round, mail: Mail, count: Tally) -> Outcome:
    """Where as many answered as are needed: on to the sum, unless too many of their shares are wrong."""
    try:
        work.removal_of(item, mail)
    except NotEnoughShares as error:
        # Suspects are not named: with few shares a liar can make an honest silo look wrong.
        known = {fault["silo"] for fault in item.faults if fault["code"] == "SHARES_DIFFER"}
        for silo in set(error.bad) - known:
            item.faults.append({"silo": silo, "code": "SHARES_DIFFER", "sentence": error.sentence})
        Round.objects.filter(pk=item.pk).update(faults=item.faults)
        if (not count.waiting and not count.gone) or count.over:
            return Stop("NOT_ENOUGH_SHARES", error.sentence)
        return None
    except ProtocolViolation as error:
        # A silo that fell out had signed a list of pair seeds that can't be read: its masks can't be removed.
        return Stop(error.code, error.sentence)
    return Go(Stage.SUM, (), {})
