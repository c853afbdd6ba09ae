"""May the round go on? One function a stage, each from the stored messages alone.

A stage ends when everybody who can still answer has answered and enough did. Somebody can't answer any more who
refused, or who is lost (no signed heartbeat) or late (the stage's deadline has passed): the sweep says so, a message
never does.
`list`, `unmask` and `state` end as soon as t have answered.

| stage   | waits for            | goes on with                    | can't go on when fewer than          |
|---------|----------------------|---------------------------------|--------------------------------------|
| keys    | the announced        | the roster                      | min_roster are willing               |
| bundles | the roster           | who sent bundles                | max(t, min_participants)             |
| ready   | who sent bundles     | R: all who could open each other| max(t, min_participants)             |
| update  | R                    | L1: whose update is complete    | max(t, min_participants)             |
| list    | L1                   | t signatures on L1              | t                                    |
| unmask  | L1                   | t answers whose shares fit      | t                                    |
| state   | L1 (or the announced)| t signatures on one state       | t                                    |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from federation.models import Purpose, Round, Stage
from federation.services import rounds, stages, work
from federation.services.facts import Facts, coordinator_of
from federation.services.mail import Mail
from federation.services.reasons import too_few
from protocol import messages
from protocol.secure_aggregation.errors import NotEnoughShares, ProtocolViolation
from protocol.secure_aggregation.parameters import threshold


class Go(NamedTuple):
    """The round goes on: the next stage, the columns that this fixes, and who has something new to do."""

    to: Stage
    wake: Collection[str]
    fields: Mapping[str, Any]


class Stop(NamedTuple):
    """The round has failed."""

    code: str
    sentence: str


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


Outcome = Go | Stop | None


def round_advance(
    item: Round, *, mail: Mail, facts: Facts, now: datetime, lost: Collection[str] = (), over: bool = False
) -> bool:
    """Move the round on if it may; True where it moved (or failed). Must run inside a transaction.

    `mail` must hold the kinds that the present stage needs. `lost`: silos without a heartbeat. `over`: the deadline has
    passed.
    """
    step = STEPS.get(Stage(item.stage))
    if step is None:
        return False
    outcome = step(item, mail, facts, lost, over)
    if outcome is None:
        return False
    if isinstance(outcome, Stop):
        return rounds.round_fail(item, code=outcome.code, sentence=outcome.sentence, facts=facts, now=now)
    if outcome.to == Stage.FINISHED:
        return rounds.round_finish(item, mail=mail, facts=facts, now=now, **outcome.fields)
    moved = stages.round_move(item, to=outcome.to, facts=facts, wake=outcome.wake, now=now, **outcome.fields)
    if moved and outcome.to == Stage.SUM:
        work.work_send(item)
    return moved


def _keys(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("keys", item.announced, mail, lost, over)
    willing = count.answered - mail.refused()
    if len(set(item.announced) - mail.refused()) < facts.min_roster:
        return Stop("ROSTER_TOO_SMALL", too_few(facts.min_roster, "take part", mail, facts))
    if not count.waiting and len(willing) >= facts.min_roster:
        return Go(Stage.BUNDLES, willing, {"roster": sorted(willing)})
    if over:
        return Stop("ROSTER_TOO_SMALL", too_few(facts.min_roster, "take part", mail, facts, silent=count.gone))
    return None


def _smallest(item: Round, facts: Facts) -> int:
    return max(threshold(len(item.roster or ())), facts.min_participants)


def _bundles(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("bundles", item.roster or (), mail, lost, over)
    if not count.waiting and len(count.answered) >= _smallest(item, facts):
        return Go(Stage.READY, count.answered, {})
    return _enough(count, count.answered, _smallest(item, facts), "send sealed bundles", mail, facts)


def _ready(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    senders = mail.silos("bundles") & set(item.roster or ())
    count = tally("ready", senders, mail, lost, over)
    if count.waiting:
        return _enough(count, count.answered, _smallest(item, facts), "get ready", mail, facts)
    ready = count.answered - mail.refused()
    if len(ready) < _smallest(item, facts):
        return _enough(count, ready, _smallest(item, facts), "get ready", mail, facts)
    coordinator = coordinator_of(item)
    roster = coordinator.roster(mail.envelopes("keys", item.roster))
    try:
        choice = coordinator.choose_ready(roster, mail.envelopes("ready", ready))
    except ProtocolViolation as error:
        return Stop("TOO_FEW_SILOS", error.sentence) if over or not count.gone else None
    faults = [
        {
            "silo": silo,
            "code": "BUNDLES_NOT_OPENED",
            "sentence": f"It has no shared secret with {', '.join(partners)}: a sealed bundle could not be opened.",
        }
        for silo, partners in sorted(choice.left_out.items())
    ]
    fields = {"ready_set": list(choice.members), "faults": [*item.faults, *faults]}
    return Go(Stage.UPDATE, choice.members, fields)


def _update(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("update", item.ready_set or (), mail, lost, over)
    if count.waiting or len(count.answered) < _smallest(item, facts):
        return _enough(count, count.answered, _smallest(item, facts), "send an update", mail, facts)
    members = sorted(count.answered)
    weight = sum(facts.weights[silo] for silo in members)
    return Go(Stage.LIST, members, {"members": members, "total_weight": weight})


def _list(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("list", item.members or (), mail, lost, over)
    least = threshold(len(item.roster or ()))
    if len(count.answered) >= least:
        return Go(Stage.UNMASK, item.members or (), {})
    return _enough(count, count.answered, least, "sign the list", mail, facts)


def _unmask(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("unmask", item.members or (), mail, lost, over)
    least = threshold(len(item.roster or ()))
    if len(count.answered) >= least:
        try:
            work.removal_of(item, mail)
        except NotEnoughShares as error:
            # Suspects are not named: with few shares a liar can make an honest silo look wrong.
            known = {fault["silo"] for fault in item.faults if fault["code"] == "SHARES_DIFFER"}
            for silo in set(error.bad) - known:
                item.faults.append({"silo": silo, "code": "SHARES_DIFFER", "sentence": error.sentence})
            Round.objects.filter(pk=item.pk).update(faults=item.faults)
            if (not count.waiting and not count.gone) or over:
                return Stop("NOT_ENOUGH_SHARES", error.sentence)
            return None
        except ProtocolViolation as error:
            # A silo that fell out had signed a list of pair seeds that can't be read: its masks can't be removed.
            return Stop(error.code, error.sentence)
        return Go(Stage.SUM, (), {})
    return _enough(count, count.answered, least, "help to unmask", mail, facts)


def _state(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    first = item.purpose == Purpose.INITIAL
    count = tally("state", item.announced if first else item.members or (), mail, lost, over)
    least = threshold(len(item.announced if first else item.roster or ()))
    votes: dict[tuple[str, Any], list[str]] = {}
    for silo in sorted(count.answered):
        said = messages.State.parse(mail.envelope("state", silo).payload)
        if first or said.state == item.next_model_digest:
            votes.setdefault((said.state, said.table if first else None), []).append(silo)
    agreed = max(votes.values(), key=len, default=[])
    if len(agreed) >= least:
        if first:
            return Go(Stage.SUM, (), {"members": agreed})
        return Go(Stage.FINISHED, item.announced, {"signers": agreed})
    open_votes = len(count.waiting) + len(count.gone)
    if len(agreed) + open_votes < least or over:
        what = "sign the same first model" if first else "sign the state that the portal computed"
        return Stop("STATE_NOT_SIGNED", too_few(least, what, mail, facts, silent=count.gone))
    return None


def _enough(count: Tally, usable: Collection[str], least: int, what: str, mail: Mail, facts: Facts) -> Stop | None:
    """Stop where `least` can't be reached any more: too many refused, or the deadline has passed."""
    still = len(usable) + len(count.waiting) + (0 if count.over else len(count.gone))
    if still < least:
        return Stop("TOO_FEW_SILOS", too_few(least, what, mail, facts, silent=count.gone))
    return None


STEPS: Mapping[Stage, Callable[[Round, Mail, Facts, Collection[str], bool], Outcome]] = {
    Stage.KEYS: _keys,
    Stage.BUNDLES: _bundles,
    Stage.READY: _ready,
    Stage.UPDATE: _update,
    Stage.LIST: _list,
    Stage.UNMASK: _unmask,
    Stage.STATE: _state,
}
