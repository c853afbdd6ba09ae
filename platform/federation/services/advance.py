"""May the round go on? One function a stage, each from the stored messages alone.

A stage ends when everybody who can still answer has answered and enough did. Somebody can't answer any more who
refused, or who is lost (no signed heartbeat) or late (the stage's deadline has passed): the sweep says so, a message
never does.
`list`, `second`, `unmask` and `state` end as soon as t have answered; before a sketch check `list` waits for all, as
who signed no list can show no sketch.

| stage   | waits for            | goes on with                    | can't go on when fewer than          |
|---------|----------------------|---------------------------------|--------------------------------------|
| keys    | the announced        | the roster                      | min_roster are willing               |
| bundles | the roster           | who sent bundles                | max(t, min_participants)             |
| ready   | who sent bundles     | R: all who could open each other| max(t, min_participants)             |
| update  | R                    | L1: whose update is complete    | max(t, min_participants)             |
| list    | L1                   | t signatures on L1              | t                                    |
| sketch  | who signed L1        | L2: whom the rule leaves        | max(t, min_participants)             |
| second  | L2                   | t signatures on L2              | t                                    |
| unmask  | L2 (or L1)           | t answers whose shares fit      | t                                    |
| nonce   | L2 (or L1)           | their nonces                    | all (t, where the plan says so)      |
| check   | who opened its nonce | a sum that was held against all | all (t, where the plan says so)      |
| state   | who sent a check word| t signatures on one state       | t                                    |

`sketch` and `second` are there where the plan has the sketch check and weights are summed. Who opened no nonce can send
no check word. Where the plan wants every check word, a lost silo is waited for in `nonce` and `check` until the deadline:
it may come back. Where a sum may stand without, a lost silo is not waited for and the sum is unverified. A round that only
evaluates ends with `check`; the first model has only `state`. With many silos the steps from `row` to `unmask` are those of
many.py.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from federation.models import Purpose, Round, Stage
from federation.services import many, rounds, stages, work
from federation.services.facts import Facts, coordinator_of, parameters_of
from federation.services.mail import Mail
from federation.services.outcomes import Go, Outcome, Step, Stop, Tally, Verify, enough, tally, unmasked
from federation.services.reasons import CHECK_MISSING, check_missing, hospital, too_few
from federation.services.sketches import sketch_faults, sketches_judge
from protocol import messages
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.parameters import threshold


def round_advance(
    item: Round, *, mail: Mail, facts: Facts, now: datetime, lost: Collection[str] = (), over: bool = False
) -> bool:
    """Move the round on if it may; True where it moved (or failed). Must run inside a transaction.

    `mail` must hold the kinds that the present stage needs. `lost`: silos without a heartbeat. `over`: the deadline has
    passed.
    """
    step = (MANY_STEPS if facts.sparse else STEPS).get(Stage(item.stage))
    if step is None:
        return False
    outcome = step(item, mail, facts, lost, over)
    if outcome is None:
        return False
    if isinstance(outcome, Verify):
        work.check_send(item, now)
        return False
    if isinstance(outcome, Stop):
        why = {"code": outcome.code, "sentence": outcome.sentence}
        return rounds.round_fail(item, **why, facts=facts, now=now, **outcome.fields)
    if outcome.to == Stage.FINISHED:
        return rounds.round_finish(item, mail=mail, facts=facts, now=now, **outcome.fields)
    moved = stages.round_move(item, to=outcome.to, facts=facts, wake=outcome.wake, now=now, **outcome.fields)
    if moved and outcome.to == Stage.SUM:
        work.work_send(item)
    return moved


def keys(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("keys", item.announced, mail, lost, over)
    willing = count.answered - mail.refused()
    least = facts.manifest.least_roster
    if len(set(item.announced) - mail.refused()) < least:
        return Stop("ROSTER_TOO_SMALL", too_few(least, "take part", mail, facts))
    if not count.waiting and len(willing) >= least:
        return Go(Stage.ROW if facts.sparse else Stage.BUNDLES, willing, {"roster": sorted(willing)})
    if over:
        return Stop("ROSTER_TOO_SMALL", too_few(least, "take part", mail, facts, silent=count.gone))
    return None


def _smallest(item: Round, facts: Facts) -> int:
    return max(threshold(len(item.roster or ())), facts.min_participants)


def _bundles(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("bundles", item.roster or (), mail, lost, over)
    if not count.waiting and len(count.answered) >= _smallest(item, facts):
        return Go(Stage.READY, count.answered, {})
    return enough(count, count.answered, _smallest(item, facts), "send sealed bundles", mail, facts)


def _ready(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    senders = mail.silos("bundles") & set(item.roster or ())
    count = tally("ready", senders, mail, lost, over)
    if count.waiting:
        return enough(count, count.answered, _smallest(item, facts), "get ready", mail, facts)
    ready = count.answered - mail.refused()
    if len(ready) < _smallest(item, facts):
        return enough(count, ready, _smallest(item, facts), "get ready", mail, facts)
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
        return enough(count, count.answered, _smallest(item, facts), "send an update", mail, facts)
    members = sorted(count.answered)
    weight = sum(facts.weights[silo] for silo in members)
    return Go(Stage.LIST, members, {"first_list": members, "members": members, "total_weight": weight})


def _list(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("list", item.members or (), mail, lost, over)
    sketched = parameters_of(item).sketch is not None
    least = _smallest(item, facts) if sketched else threshold(len(item.roster or ()))
    if len(count.answered) >= least and not (sketched and count.waiting):
        return Go(Stage.SKETCH if sketched else Stage.UNMASK, item.members or (), {})
    return enough(count, count.answered, least, "sign the list", mail, facts)


def _sketch(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    first = item.first_list or ()
    count, least = tally("sketch", first, mail, lost, over), _smallest(item, facts)
    # Who came back too late to sign the list has nothing to make a sketch with; one that signed too late has.
    able = {silo for silo in count.waiting if mail.letter("list", silo)}
    if able or len(count.answered) < least:
        return enough(count, count.answered, least, "show a sketch", mail, facts)
    judged = sketches_judge(item, mail, facts)
    faults = sketch_faults(judged.report)
    fields = {"sketches": judged.report, "faults": [*item.faults, *faults]}
    if len(judged.members) < least:
        if not over and (count.waiting or count.gone):
            return None
        what = [f"{hospital(fault['silo'], facts)}: {fault['sentence']}" for fault in faults]
        sentence = f"The sketch check leaves {len(judged.members)} hospitals in the sum; {least} are needed."
        return Stop("TOO_FEW_IN_BOUNDS", " ".join([sentence, *what]), fields)
    weight = sum(facts.weights[silo] for silo in judged.members)
    return Go(Stage.SECOND, judged.members, {"members": list(judged.members), "total_weight": weight, **fields})


def _second(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("second", item.members or (), mail, lost, over)
    least = threshold(len(item.roster or ()))
    if len(count.answered) >= least:
        return Go(Stage.UNMASK, item.members or (), {})
    return enough(count, count.answered, least, "sign the second list", mail, facts)


def _unmask(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("unmask", item.members or (), mail, lost, over)
    least = threshold(len(item.roster or ()))
    if len(count.answered) >= least:
        return unmasked(item, mail, count)
    return enough(count, count.answered, least, "help to unmask", mail, facts)


def nonce(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    count = tally("nonce", item.members or (), mail, lost, over)
    if (stop := _missing(item, count, mail, facts)) is not None:
        return stop
    missing = set(item.members or ()) - count.answered
    least = facts.least_signers(len(item.roster or ()))
    if count.waiting or len(count.answered) < least or (missing and not facts.unverified):
        return enough(count, count.answered, least, "open their nonces", mail, facts)
    return Go(Stage.CHECK, count.answered, {"worked_at": None})


def check(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    members = set(item.members or ())
    count = tally("check", mail.silos("nonce") & members, mail, lost, over)
    if count.answered == members:
        return Verify()
    if (stop := _missing(item, count, mail, facts)) is not None:
        return stop
    least = facts.least_signers(len(item.roster or ()))
    if count.waiting or len(count.answered) < least or not facts.unverified:
        return enough(count, count.answered, least, "send a check word", mail, facts)
    missing = [
        {"silo": silo, "code": "CHECK_MISSING", "sentence": CHECK_MISSING} for silo in sorted(members - count.answered)
    ]
    to = Stage.STATE if item.purpose == Purpose.TRAIN else Stage.FINISHED
    return Go(to, count.answered, {"verified": False, "faults": [*item.faults, *missing]})


def _missing(item: Round, count: Tally, mail: Mail, facts: Facts) -> Stop | None:
    """Stop where the plan wants every check word and one can't come any more: refused, or the deadline has passed."""
    never = set(item.members or ()) - count.answered - count.waiting - (set() if count.over else count.gone)
    if facts.unverified or not never:
        return None
    return Stop("CHECK_MISSING", check_missing(never, mail, facts))


def state(item: Round, mail: Mail, facts: Facts, lost: Collection[str], over: bool) -> Outcome:
    first = item.purpose == Purpose.INITIAL
    # Who sent no check word has not verified the sum, so it can't sign what follows from it.
    able = item.announced if first else mail.silos("check") & set(item.members or ())
    count = tally("state", able, mail, lost, over)
    least = facts.least_signers(len(item.announced if first else item.roster or ()))
    open_votes = len(count.waiting) + len(count.gone)
    if count.waiting and len(count.answered) < least <= len(count.answered) + open_votes:
        return None  # too early to agree: what each said is not read anew for every message that comes
    votes: dict[tuple[str, Any], list[str]] = {}
    for envelope in mail.envelopes("state", count.answered):
        said = messages.State.parse(envelope.payload)
        if first or said.state == item.next_model_digest:
            votes.setdefault((said.state, said.table if first else None), []).append(said.silo)
    agreed = max(votes.values(), key=len, default=[])
    if len(agreed) >= least:
        if first:
            return Go(Stage.SUM, (), {"members": agreed})
        return Go(Stage.FINISHED, item.announced, {"signers": agreed})
    if len(agreed) + open_votes < least or over:
        what = "sign the same first model" if first else "sign the state that the portal computed"
        return Stop("STATE_NOT_SIGNED", too_few(least, what, mail, facts, silent=count.gone))
    return None


STEPS: dict[Stage, Step] = {
    Stage.KEYS: keys,
    Stage.BUNDLES: _bundles,
    Stage.READY: _ready,
    Stage.UPDATE: _update,
    Stage.LIST: _list,
    Stage.SKETCH: _sketch,
    Stage.SECOND: _second,
    Stage.UNMASK: _unmask,
    Stage.NONCE: nonce,
    Stage.CHECK: check,
    Stage.STATE: state,
}
MANY_STEPS = STEPS | many.STEPS
"""The same with many silos."""
