"""What a silo has to do now, derived from the database alone: a silo that restarts gets all that is still open.

`version` names the situation, not the list: it changes when a round goes on, not when the silo itself has answered, so
a silo that answered and asks again waits until there is something new. What it has answered is left out of the list.

| stage of the round | assignment | for |
|---|---|---|
| state, first model | announce | the announced |
| keys ... update | announce, until it is answered; again after a restart | who still takes part |
| bundles | roster: all signed keys | the roster |
| ready | bundles: the boxes for this silo | who sent bundles |
| update | ready: the signed set R | R |
| list | list: the signed updates | L1 |
| sketch | sketch: the signed lists | L1 |
| second | second: all sketches | the members, L2 |
| unmask | unmask: the signed lists | the members |
| nonce | sum: what is published, and the signed lists | the members |
| check | check: the opened nonces | who opened its own |
| state | state: the check words | who sent its own |
| finished, failed | closed, until the next round is announced | the announced |

Nothing of an open round is for a silo that has another key than the manifest names: it is told of the study (`other_key`).

With many silos what stands between `keys` and the end is in many.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import connection
from django.utils import timezone

from federation.models import CLOSED, GlobalModel, Purpose, Round, Seat, Stage, utc
from federation.selectors import many
from federation.selectors.approvals import approval_proof
from federation.services.facts import Facts, facts_of
from federation.services.mail import Mail, read_mail
from federation.services.stages import announced_deadline
from governance.models import Approval, Manifest, MatchPrediction, Study, StudyState
from organisations.models import Silo
from protocol.canonical import digest

KINDS: dict[str, tuple[str, ...]] = {
    Stage.KEYS: ("keys", "refusal"),
    Stage.BUNDLES: ("keys", "bundles", "refusal"),
    Stage.READY: ("bundles", "ready", "refusal"),
    Stage.UPDATE: ("ready", "update", "refusal"),
    Stage.LIST: ("update", "list", "refusal"),
    Stage.SKETCH: ("list", "sketch", "refusal"),
    Stage.SECOND: ("sketch", "second", "refusal"),
    Stage.UNMASK: ("list", "second", "unmask", "refusal"),
    Stage.NONCE: ("list", "second", "nonce", "refusal"),
    Stage.CHECK: ("nonce", "check", "refusal"),
    Stage.STATE: ("check", "state", "refusal"),
}
"""Stage -> the kinds of messages that say what is to be done."""
SETUP = (Stage.KEYS, Stage.ROW, Stage.BUNDLES, Stage.READY, Stage.UPDATE)
ENDED = timedelta(days=30)
"""How long a completed or paused study is still named."""
DECIDE_IN = (StudyState.APPROVED, StudyState.ACTIVE, StudyState.RUNNING, StudyState.PAUSED)
SHOWN = (StudyState.ACTIVE, StudyState.RUNNING, StudyState.PAUSED, StudyState.COMPLETED, StudyState.STOPPED)

ORIGIN = {"manifest_digest": "manifest", "number": "number", "attempt": "attempt", "model_digest": "model"}
"""Field of the round that made a model -> what the announcement calls it: a silo needs it to check the signatures."""

# Written out, because every waiting silo reads them at every step of a round, and building such a query with the ORM
# takes ten times as long as running it.
_ROUNDS = f"""
    SELECT r.*, s.state AS study_state FROM {Round._meta.db_table} r
    JOIN {Seat._meta.db_table} t ON t.round_id = r.id JOIN {Study._meta.db_table} s ON s.id = r.study_id
    WHERE t.silo_id = %s AND r.newest AND s.state IN ({", ".join(["%s"] * len(SHOWN))}) ORDER BY r.id
"""
_STUDIES = f"""
    SELECT m.digest, m.study_id, s.title, s.state,
        EXISTS (SELECT 1 FROM {Approval._meta.db_table} a
                WHERE a.manifest_id = m.id AND a.complete = %s AND a.silo_id = %s)
    FROM {MatchPrediction._meta.db_table} p
    JOIN {Manifest._meta.db_table} m ON m.id = p.manifest_id JOIN {Study._meta.db_table} s ON s.id = m.study_id
    WHERE p.silo_id = %s AND s.state IN ({", ".join(["%s"] * len(DECIDE_IN))})
    AND NOT EXISTS (SELECT 1 FROM {Manifest._meta.db_table} n WHERE n.study_id = m.study_id AND n.number > m.number)
    ORDER BY m.study_id
"""

Assignment = dict[str, Any]


def assignments_for(silo: Silo, *, fresh: bool = True) -> tuple[str, list[Assignment]]:
    """(version, assignments) of one silo; three to five queries, whatever happened before.

    `fresh`: False for a silo that has seen the present announcement since it started (it names a version); an announcement
    that it has answered already is then not sent to it again with every stage.
    """
    facts: list[str] = []
    found: list[Assignment] = []
    for each in _studies(silo):
        found.append(each)
        facts.append(f"{each['kind']} {each['manifest']} {each['state']}")
    rows = Round.objects.raw(_ROUNDS, [_key(silo), *SHOWN])
    long_ago = timezone.now() - ENDED
    rounds = [item for item in rows if item.finished_at is None or item.finished_at > long_ago]
    for item in rounds:
        place, tasks = _of_round(item, silo, fresh)
        found.extend(tasks)
        facts.append(f"round {item.key} {item.stage} {item.study_state} {place}")
    return digest("\n".join(facts).encode())[7:39], found


def _studies(silo: Silo) -> list[Assignment]:
    """Studies that the network's admin approved, in their newest version: those that this hospital has not decided on yet,
    and those that name another key for it than it has now."""
    key = _key(silo)
    with connection.cursor() as cursor:
        cursor.execute(_STUDIES, [True, key, key, *DECIDE_IN])
        rows = cursor.fetchall()
    found = []
    for text, study, title, state, decided in rows:
        kind = "study" if _has_key(silo, facts_of(text)) else "other_key"
        if kind == "other_key" or not decided:
            found.append({"kind": kind, "study": study, "manifest": text, "title": title, "state": state})
    return found


def _has_key(silo: Silo, facts: Facts) -> bool:
    """Whether the silo's key is the one that the manifest names: no other can sign anything in its rounds."""
    return facts.participants.get(silo.name) == silo.public


def _key(silo: Silo) -> Any:
    return Silo._meta.pk.get_db_prep_value(silo.pk, connection)


def _of_round(item: Round, asking: Silo, fresh: bool) -> tuple[str, list[Assignment]]:
    """(this silo's place in the round, its assignments)."""
    silo = asking.name
    if item.stage in CLOSED:
        return "announced", _closed(item)
    if item.stage == Stage.SUM:
        return "waits", []
    facts = facts_of(item.manifest_digest)
    if not _has_key(asking, facts):
        return "other key", []
    mail = read_mail(item, (many.KINDS if facts.sparse else KINDS)[item.stage])
    if silo in mail.refused():
        return "refused", []
    everybody = item.stage == Stage.KEYS or item.purpose == Purpose.INITIAL
    if silo not in (item.announced if everybody else (many.asked if facts.sparse else _asked)(item, mail)):
        return "left out", []
    found: list[Assignment] = []
    last = "state" if item.purpose == Purpose.INITIAL else "update"
    first = item.purpose == Purpose.INITIAL or (item.stage == Stage.KEYS and not mail.letter("keys", silo))
    if (first or (fresh and item.stage in SETUP)) and not mail.letter(last, silo):
        announce = _announce(item, silo, facts)
        if announce is not None:
            found.append(announce)
        elif first:
            return "not published", []
    if not everybody and not mail.letter(item.stage, silo):
        found.append((many.task if facts.sparse else _task)(item, silo, mail))
    return "asked", found


def _asked(item: Round, mail: Mail) -> Iterable[str]:
    """Who has something to do in this stage, after `keys`."""
    if item.stage == Stage.BUNDLES:
        return item.roster or ()
    if item.stage == Stage.READY:
        return mail.silos("bundles")
    if item.stage == Stage.UPDATE:
        return item.ready_set or ()
    if item.stage in (Stage.LIST, Stage.SKETCH):
        return item.first_list or ()
    members = item.members or ()
    # Without its own nonce a silo can send no check word, and without that it can't verify the sum.
    before = {Stage.CHECK: "nonce", Stage.STATE: "check"}.get(Stage(item.stage))
    return members if before is None else mail.silos(before) & set(members)


def _task(item: Round, silo: str, mail: Mail) -> Assignment:
    """The assignment of the stage itself."""
    if item.stage == Stage.BUNDLES:
        return {"kind": "roster", "round": item.key, "keys": _dicts(mail, "keys", item.roster)}
    if item.stage == Stage.READY:
        boxes = {sender: parcel["box"] for sender, parcel in many.parcels_for(item, silo).items()}
        return {"kind": "bundles", "round": item.key, "boxes": boxes}
    if item.stage == Stage.UPDATE:
        return {"kind": "ready", "round": item.key, "ready": _dicts(mail, "ready", item.ready_set)}
    if item.stage == Stage.LIST:
        return {"kind": "list", "round": item.key, "updates": _dicts(mail, "update", item.first_list)}
    lists = _dicts(mail, "list", item.first_list)
    if item.stage == Stage.SKETCH:
        return {"kind": "sketch", "round": item.key, "lists": lists}
    if item.stage == Stage.SECOND:
        return {"kind": "second", "round": item.key, "sketches": _dicts(mail, "sketch", item.first_list)}
    signed = {"lists": lists, "seconds": _dicts(mail, "second", item.members)}
    if item.stage == Stage.UNMASK:
        return {"kind": "unmask", "round": item.key, **signed}
    if item.stage == Stage.NONCE:
        published = {"sum": item.sum, "portal_signature": item.sum_envelope}
        return {"kind": "sum", "round": item.key, **published, **signed}
    if item.stage == Stage.CHECK:
        return {"kind": "check", "round": item.key, "nonces": _dicts(mail, "nonce", item.members)}
    return {"kind": "state", "round": item.key, "checks": _dicts(mail, "check", item.members)}


def _dicts(mail: Mail, kind: str, silos: Iterable[str] | None) -> list[dict[str, Any]]:
    names = mail.silos(kind) & set(silos or ())
    return mail.values(kind, sorted(names))


def _announce(item: Round, silo: str, facts: Facts) -> Assignment | None:
    """The announcement; None until the silo's approval stands in the published log, which a silo checks first."""
    published = approval_proof(item.manifest_id, silo)
    if published is None:
        return None
    record, proof = published
    model = None
    if item.model_digest:
        model = (
            GlobalModel.objects.filter(study=item.study_id, digest=item.model_digest)
            .order_by("-number")
            .values("states", "length", *(f"round__{name}" for name in ORIGIN))
            .first()
        )
    return {
        "kind": "announce",
        "round": item.key,
        "study": item.study_id,
        "manifest": item.manifest_digest,
        "number": item.number,
        "attempt": item.attempt,
        "model": item.model_digest,
        "purpose": item.purpose,
        "deadline": utc(announced_deadline(item, facts)),
        "record": record,
        "proof": proof,
        "states": model["states"] if model else [],
        "origin": {said: model[f"round__{name}"] for name, said in ORIGIN.items()} if model else None,
        "model_length": model["length"] if model else 0,
        "participants_approved": item.announced,
    }


def _closed(item: Round) -> list[Assignment]:
    """The newest round is over; what follows it is not announced yet, or never will be."""
    reason = {name: item.failure[name] for name in ("code", "sentence")} if item.failure else None
    found: list[Assignment] = [{"kind": "closed", "round": item.key, "outcome": item.stage, "reason": reason}]
    if item.study_state == StudyState.PAUSED:
        found.append({"kind": "paused", "study": item.study_id, "reason": item.study.paused_reason})
    elif item.study_state in (StudyState.COMPLETED, StudyState.STOPPED):
        found.append(
            {"kind": "completed", "study": item.study_id, "model": item.next_model_digest or item.model_digest}
        )
    return found


def assignments_answer(silo: Silo, *, fresh: bool) -> tuple[str, bytes]:
    """(version, body) of the answer to `GET silo/assignments`."""
    version, found = assignments_for(silo, fresh=fresh)
    return version, json.dumps({"version": version, "now": utc(timezone.now()), "assignments": found}).encode()
