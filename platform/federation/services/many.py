"""May a round with many silos go on? The steps in which such a round differs; the others are those of advance.py.

| stage   | waits for          | goes on with                                 | can't go on when                              |
|---------|--------------------|----------------------------------------------|-----------------------------------------------|
| keys    | the announced      | the roster                                   | fewer than `least_roster` are willing         |
| row     | the roster         | the graph: who opened its nonce              | fewer than `least_set`                        |
| bundles | the graph          | who sent bundles                             | fewer than `least_set`                        |
| ready   | who sent bundles   | R: without neighbours who can't open a box   | fewer than `least_set`                        |
| update  | R                  | the list: of whose row t are in it           | fewer than `least_set`                        |
| list    | the list           | who signed, and t of whose row did           | their shares would not rebuild every secret   |
| unmask  | who may reveal     | t shares of every secret                     | the same                                      |
| nonce ..| as in advance.py, counted over all participants of the plan                                                   |

`least_set` is max(floor(2n/3) + 1, min_participants) of all n participants. `list` waits for all who can still answer: who
signed no list reveals nothing, and asks t of its own row for the same list before it does.
"""

from __future__ import annotations

from collections.abc import Collection

from federation.models import Round, Stage
from federation.services import books
from federation.services.facts import Facts
from federation.services.mail import Mail
from federation.services.outcomes import Go, Outcome, Step, Stop, Tally, enough, tally, unmasked
from federation.services.reasons import absent, too_few

TOO_FEW_NEIGHBOURS = "Too few of its neighbours could still answer, so it was left out."


def _row(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("row", item.roster or (), mail, lost, over)
    if not count.waiting and len(count.answered) >= facts.least_set:
        return Go(Stage.BUNDLES, count.answered, {})
    return enough(count, count.answered, facts.least_set, "open their rows", mail, facts)


def _bundles(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("bundles", mail.silos("row"), mail, lost, over)
    if not count.waiting and len(count.answered) >= facts.least_set:
        return Go(Stage.READY, count.answered, {})
    return enough(count, count.answered, facts.least_set, "send sealed bundles", mail, facts)


def _ready(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("ready", mail.silos("bundles"), mail, lost, over)
    ready = count.answered - mail.refused()
    if count.waiting or len(ready) < facts.least_set:
        return enough(count, ready, facts.least_set, "get ready", mail, facts)
    with books.book_of(item) as book:
        members, left_out = book.coordinator.choose_ready(ready)
    if len(members) < facts.least_set:
        if count.gone and not over:
            return None
        return Stop("TOO_FEW_SILOS", too_few(facts.least_set, "get ready with enough of their neighbours", mail, facts))
    faults = [_unopened(silo, partners) for silo, partners in sorted(left_out.items())]
    return Go(Stage.UPDATE, members, {"ready_set": sorted(members), "faults": [*item.faults, *faults]})


def _unopened(silo: str, partners: tuple[str, ...]) -> dict[str, str]:
    if not partners:
        return {"silo": silo, "code": "TOO_FEW_NEIGHBOURS", "sentence": TOO_FEW_NEIGHBOURS}
    sentence = f"It has no shared secret with {', '.join(partners)}: a sealed bundle could not be opened."
    return {"silo": silo, "code": "BUNDLES_NOT_OPENED", "sentence": sentence}


def _update(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("update", item.ready_set or (), mail, lost, over)
    if count.waiting or len(count.answered) < facts.least_set:
        return enough(count, count.answered, facts.least_set, "send an update", mail, facts)
    with books.book_of(item) as book:
        members = sorted(book.coordinator.choose_list(count.answered))
    if len(members) < facts.least_set:
        if count.gone and not over:
            return None
        sentence = too_few(facts.least_set, "be summed with enough of their neighbours", mail, facts, silent=count.gone)
        return Stop("TOO_FEW_SILOS", sentence)
    alone = sorted(count.answered - set(members))
    faults = [{"silo": silo, "code": "TOO_FEW_NEIGHBOURS", "sentence": TOO_FEW_NEIGHBOURS} for silo in alone]
    fields = {
        "first_list": members,
        "members": members,
        "total_weight": sum(facts.weights[silo] for silo in members),
        "faults": [*item.faults, *faults],
    }
    return Go(Stage.LIST, members, fields)


def _list(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("list", item.members or (), mail, lost, over)
    with books.book_of(item) as book:
        possible = count.answered | count.waiting | (set() if over else count.gone)
        if not book.coordinator.can_unmask(book.coordinator.able(possible)):
            return Stop("TOO_FEW_SILOS", _too_few_holders("sign the list", mail, facts, count))
        able = book.coordinator.able(count.answered)
        if count.waiting or not book.coordinator.can_unmask(able):
            return None
    return Go(Stage.UNMASK, able, {})


def _unmask(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    with books.book_of(item) as book:
        count = tally("unmask", book.coordinator.able(), mail, lost, over)
        possible = count.answered | count.waiting | (set() if over else count.gone)
        if book.coordinator.enough():
            return unmasked(item, mail, count)
        if not book.coordinator.can_unmask(possible):
            return Stop("TOO_FEW_SILOS", _too_few_holders("help to unmask", mail, facts, count))
    return None


def _too_few_holders(what: str, mail: Mail, facts: Facts, count: Tally) -> str:
    first = f"Of some hospital too few neighbours could {what}, so its masks can't be taken off the sum."
    return " ".join([first, *absent(mail, facts, count.gone)])


STEPS: dict[Stage, Step] = {
    Stage.ROW: _row,
    Stage.BUNDLES: _bundles,
    Stage.READY: _ready,
    Stage.UPDATE: _update,
    Stage.LIST: _list,
    Stage.UNMASK: _unmask,
}
