"""What a silo has to do in a round with many silos: each gets what concerns itself and its neighbours, never the whole sets.

| stage of the round | assignment | for |
|---|---|---|
| row | roster: root, size, and its own entry | the roster |
| bundles | neighbours: their entries, keys, and the rows of those who drew it | the graph |
| ready | bundles: the boxes for it | who sent bundles |
| update | ready: root and size of R, its neighbours' entries | R |
| list | list: root and size, its neighbours' entries, the updates of those who drew it | the list |
| unmask | unmask: the signatures of its row | who signed, and t of whose row did |
| nonce | sum: what is published; the list for who did not sign it in time | the list |
| check | check: the opened nonces, of all | who opened its own |
| state | state: the check words, of all | who sent its own |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from federation.models import CLOSED, Parcel, Round, Stage
from federation.services.books import Book, book_of
from federation.services.errors import Refused, out_of_stage
from federation.services.facts import facts_of
from federation.services.lookup import round_for
from federation.services.mail import Mail
from organisations.models import Silo
from protocol.canonical import b64
from protocol.secure_aggregation.sparse import Leaf
from protocol.signing import Envelope

KINDS: dict[str, tuple[str, ...]] = {
    Stage.KEYS: ("keys", "refusal"),
    Stage.ROW: ("row", "refusal"),
    Stage.BUNDLES: ("row", "bundles", "refusal"),
    Stage.READY: ("bundles", "ready", "refusal"),
    Stage.UPDATE: ("update", "refusal"),
    Stage.LIST: ("list", "refusal"),
    Stage.UNMASK: ("list", "unmask", "refusal"),
    Stage.NONCE: ("list", "nonce", "refusal"),
    Stage.CHECK: ("nonce", "check", "refusal"),
    Stage.STATE: ("check", "state", "refusal"),
}
"""Stage -> the kinds whose senders say what is to be done."""
MOST_ENTRIES = 64
"""Entries that are asked for at once."""


def asked(item: Round, mail: Mail) -> Iterable[str]:
    """Who has something to do in this stage, after `keys`."""
    if item.stage == Stage.ROW:
        return item.roster or ()
    if item.stage == Stage.BUNDLES:
        return mail.silos("row")
    if item.stage == Stage.READY:
        return mail.silos("bundles")
    if item.stage == Stage.UPDATE:
        return item.ready_set or ()
    members = item.members or ()
    if item.stage == Stage.UNMASK:
        with book_of(item) as book:
            return book.coordinator.able()
    before = {Stage.CHECK: "nonce", Stage.STATE: "check"}.get(Stage(item.stage))
    return members if before is None else mail.silos(before) & set(members)


def task(item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    """The assignment of the stage itself."""
    stage = item.stage
    if stage == Stage.READY:
        return {"kind": "bundles", "round": item.key, "parcels": parcels_for(item, silo)}
    if stage == Stage.STATE:
        checks = mail.values("check", sorted(mail.silos("check") & set(item.members or ())))
        return {"kind": "state", "round": item.key, "checks": checks}
    with book_of(item) as book:
        given = _GIVEN[Stage(stage)](book, item, silo, mail)
    return {"kind": _NAMES.get(stage, stage), "round": item.key, **given}


def parcels_for(item: Round, silo: str) -> dict[str, Any]:
    """{sender: {"box": base64, "hashes"}} of all boxes that were sealed to a silo; with few silos `hashes` is null."""
    rows = Parcel.objects.filter(round=item, receiver=silo).order_by("sender").values_list("sender", "box", "hashes")
    return {sender: {"box": b64(bytes(box)), "hashes": hashes} for sender, box, hashes in rows}


def _roster(book: Book, item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    coordinator = book.coordinator
    return {"claim": coordinator.claim("roster").as_dict(), "leaf": coordinator.leaf("roster", silo).as_dict()}


def _neighbours(book: Book, item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    return {"neighbours": [each.as_dict() for each in book.coordinator.neighbours_for(silo)]}


def _set(book: Book, what: str, silo: str) -> dict[str, Any]:
    leaves = book.coordinator.leaves_for(what, silo)
    return {"claim": book.coordinator.claim(what).as_dict(), "leaves": _dicts(leaves)}


def _ready(book: Book, item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    return _set(book, "ready", silo)


def _list(book: Book, item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    return {**_set(book, "list", silo), "updates": _dicts(book.coordinator.updates_for(silo))}


def _unmask(book: Book, item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    return {"lists": _dicts(book.coordinator.lists_for(silo))}


def _sum(book: Book, item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    # Who was away when the list was signed takes it now, as t of its row signed it.
    signed = silo in mail.silos("list")
    missed = None if signed else {**_set(book, "list", silo), **_unmask(book, item, silo, mail)}
    return {"sum": item.sum, "portal_signature": item.sum_envelope, "missed": missed}


def _check(book: Book, item: Round, silo: str, mail: Mail) -> dict[str, Any]:
    return {"opened": book.coordinator.opened_nonces.as_dict()}


_GIVEN = {
    Stage.ROW: _roster,
    Stage.BUNDLES: _neighbours,
    Stage.UPDATE: _ready,
    Stage.LIST: _list,
    Stage.UNMASK: _unmask,
    Stage.NONCE: _sum,
    Stage.CHECK: _check,
}
_NAMES = {Stage.ROW: "roster", Stage.BUNDLES: "neighbours", Stage.UPDATE: "ready", Stage.NONCE: "sum"}


def _dicts(items: Iterable[Leaf | Envelope]) -> list[dict[str, Any]]:
    return [item.as_dict() for item in items]


def entries_for(*, round_key: str, silo: Silo, what: str, names: list[str]) -> list[dict[str, Any]]:
    """The entries of these silos in R ("ready") or the list, proved: a hospital asks for partners whose keys it knows.

    Raises Refused: NOT_YOUR_STUDY, OUT_OF_STAGE, BAD_MESSAGE.
    """
    item = round_for(round_key, silo)
    if what not in ("ready", "list") or len(names) > MOST_ENTRIES:
        raise Refused(
            "BAD_MESSAGE", f"Entries are those of 'ready' or 'list', of at most {MOST_ENTRIES} silos at once."
        )
    fixed = item.ready_set if what == "ready" else item.first_list
    if fixed is None or item.stage in CLOSED or not facts_of(item.manifest_digest).sparse:
        raise out_of_stage(item.key, "entries", item.stage)
    with book_of(item) as book:
        known = book.coordinator.parameters.positions.keys()
        return _dicts(book.coordinator.leaf(what, name) for name in names if name in known)
