"""A silo's signed message comes in: checked, stored once, and the round goes on in the same transaction.

Steps of a reception:
  1. The round exists and the silo was asked to take part in it; the row is locked.
  2. The same message again is granted and changes nothing; another one in its place is refused.
  3. The round is in the stage that takes this kind.
  4. The content is verified: signature by the key in the manifest, of this attempt, and what the protocol demands.
  5. It is stored, with its evidence entry where something left the hospital.
  6. The round advances if this was what it waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.db import transaction

from evidence.services import record
from federation.models import ORDER, Parcel, Purpose, Round, RoundMessage, SiloMetric, Stage
from federation.services import advance, books, stages
from federation.services.chunks import check_chunks
from federation.services.errors import Refused, bad_message, not_yours, out_of_stage
from federation.services.facts import Facts, coordinator_of, facts_of, parameters_of
from federation.services.lookup import round_for
from federation.services.mail import Letter, Mail, read_mail
from organisations.models import Silo
from portal.actors import Subject, silo_actor
from protocol import messages
from protocol.secure_aggregation import check_word, checks
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.sparse.boxes import Parcel as Sealed
from protocol.secure_aggregation.sparse.messages import SparseUpdate
from protocol.signing import Envelope, SignatureError

NEEDS: Mapping[str, tuple[str, ...]] = {
    "keys": ("keys", "refusal"),
    "bundles": ("keys", "bundles", "refusal"),
    "ready": ("keys", "ready", "bundles", "refusal"),
    "update": ("keys", "ready", "update", "refusal"),
    "list": ("keys", "ready", "update", "list", "refusal"),
    "sketch": ("keys", "ready", "list", "sketch", "refusal"),
    "second": ("keys", "ready", "list", "sketch", "second", "refusal"),
    "unmask": ("keys", "ready", "list", "second", "unmask", "refusal"),
    "nonce": ("keys", "ready", "list", "second", "nonce", "refusal"),
    "check": ("keys", "ready", "list", "second", "nonce", "check", "refusal"),
    "state": ("check", "state", "refusal"),
    "metrics": ("metrics",),
}
"""Kind of message -> the kinds that are read to check it and to go on."""

MANY_NEED: Mapping[str, tuple[str, ...]] = {
    "keys": ("keys", "refusal"),
    "row": ("row", "refusal"),
    "bundles": ("row", "bundles", "refusal"),
    "ready": ("bundles", "ready", "refusal"),
    "update": ("update", "refusal"),
    "list": ("list", "refusal"),
    "unmask": ("list", "unmask", "refusal"),
    "nonce": ("nonce", "refusal"),
    "check": ("nonce", "check", "refusal"),
    "state": ("check", "state", "refusal"),
    "metrics": ("metrics",),
}
"""The same with many silos: who sent them; what was sent is in the round's book."""

KINDS = frozenset({*NEEDS, *MANY_NEED, "refusal"})
"""All kinds that `message_receive` takes."""
LATE = ("list", "sketch", "second", "unmask", "nonce", "check", "state")
"""These stages may go on without some; what comes after is checked, kept and marked late, and is never relayed."""
LEAVES = {"sketch": 2048, "check": 8}
"""Bytes of what these messages tell about an update."""


class Reception(NamedTuple):
    """What became of a message. `new` is False where it was there already."""

    stage: str
    new: bool


@transaction.atomic
def message_receive(*, round_key: str, kind: str, silo: Silo, envelope: object) -> Reception:
    """Take one message of `kind` from `silo`. `envelope`: the JSON object of a DSSE envelope.

    Raises Refused: NOT_YOUR_STUDY, OUT_OF_STAGE, MESSAGE_DIFFERS, BAD_MESSAGE, CHUNKS_MISSING.
    """
    # 1
    item = round_for(round_key, silo, lock=True)
    facts = facts_of(item.manifest_digest)
    try:
        signed = Envelope.from_dict(envelope)
    except SignatureError as error:
        raise bad_message(str(error)) from None
    # 2
    mail = mail_for(item, kind, facts)
    before = mail.letter(kind, silo.name)
    if before is not None:
        if before.digest == signed.digest:
            return Reception(item.stage, new=False)
        raise Refused("MESSAGE_DIFFERS", f"Another '{kind}' of your silo is already stored for round {item.key}.")
    # 3
    late = _check_stage(item, kind)
    # 4
    content = _check(item, kind, silo, signed, mail, facts, late)
    # 5
    now = stages.now()
    RoundMessage.objects.create(
        round=item, kind=kind, silo=silo, envelope=signed.as_dict(), digest=signed.digest, late=late, received_at=now
    )
    _note(item, kind, silo, signed, content)
    mail.add(kind, Letter(silo.name, signed.digest, late))
    # 6
    if late or kind == "metrics":
        return Reception(item.stage, new=True)
    if not advance.round_advance(item, mail=mail, facts=facts, now=now):
        stages.tell(item, ())
    return Reception(item.stage, new=True)


def mail_for(item: Round, kind: str | None, facts: Facts) -> Mail:
    """The messages that are needed to judge one of `kind`, and to go on. None, or a refusal, which may end any stage: what the
    present stage needs."""
    needs = MANY_NEED if facts.sparse else NEEDS
    if kind is None or kind == "refusal":
        kind = str(item.stage)
    return read_mail(item, needs.get(kind, (kind, "refusal")))


def _check_stage(item: Round, kind: str) -> bool:
    """Whether the message is late. Raises Refused (OUT_OF_STAGE) where the round does not take it any more, or yet."""
    if item.stage == Stage.FAILED:
        raise out_of_stage(item.key, kind, item.stage)
    if kind == "metrics":
        if item.purpose == Purpose.INITIAL:
            raise out_of_stage(item.key, kind, item.stage)
        return False
    if kind == "refusal":
        if item.stage in (Stage.SUM, Stage.FINISHED):
            raise out_of_stage(item.key, kind, item.stage)
        return False
    if item.stage == kind:
        return False
    if kind in LATE and _rank(item, item.stage) > _rank(item, kind):
        return True
    raise out_of_stage(item.key, kind, item.stage)


def _rank(item: Round, stage: str) -> int:
    # The first model is signed first and made by the portal after.
    if item.purpose == Purpose.INITIAL and stage in (Stage.STATE, Stage.SUM):
        return int(stage == Stage.SUM)
    return ORDER.index(stage)


def _check(item: Round, kind: str, silo: Silo, signed: Envelope, mail: Mail, facts: Facts, late: bool) -> Any:
    """The verified content of a message: the parcels of a `bundles`, None for all others that the coordinator checks."""
    parcels = None
    try:
        if kind in ("state", "refusal", "metrics"):
            return _open(item, kind, silo, signed, facts)
        if kind != "keys" and silo.name not in (item.roster or ()):
            raise not_yours(f"The roster of round {item.key}")
        if facts.sparse:
            sender, parcels = books.message_check(item, kind, silo.name, signed, late=late)
        elif kind == "keys":
            sender = coordinator_of(item).check_keys(signed)
        else:
            sender = _check_in_roster(item, kind, signed, mail)
    except ProtocolViolation as error:
        raise Refused("BAD_MESSAGE", f"{error.sentence} ({error.code})") from error
    except (SignatureError, messages.MessageError) as error:
        raise bad_message(str(error)) from error
    if sender != silo.name:
        raise bad_message(f"The message is signed by {sender} and was sent by {silo.name}.")
    if kind == "update":
        update = (SparseUpdate if facts.sparse else messages.Update).parse(signed.payload)
        check_chunks(item, silo, update, parameters_of(item))
    if kind == "bundles" and not facts.sparse:
        boxes = messages.Bundles.parse(signed.payload).boxes
        parcels = {receiver: Sealed(box, None) for receiver, box in boxes.items()}
    if kind == "check":
        _check_range(messages.Check.parse(signed.payload))
    return parcels


def _check_range(check: messages.Check) -> None:
    """A check word that no update has would fail the round later, with nobody to name."""
    try:
        check_word.add_up([check.word])
    except ValueError as error:
        raise bad_message(f"{error}.") from error


def _check_in_roster(item: Round, kind: str, signed: Envelope, mail: Mail) -> str:
    coordinator = coordinator_of(item)
    roster = coordinator.roster(mail.envelopes("keys", item.roster))
    if kind == "bundles":
        return coordinator.check_bundles(roster, signed)
    if kind == "ready":
        return coordinator.check_ready(roster, signed)
    ready = mail.envelopes("ready", item.ready_set)
    if kind == "update":
        return coordinator.check_update(roster, ready, signed)
    if kind == "list":
        return coordinator.check_list(roster, ready, mail.envelopes("update", item.first_list), signed)
    lists, seconds = mail.envelopes("list"), mail.envelopes("second")
    if kind == "sketch":
        return coordinator.check_sketch(roster, ready, lists, signed)
    if kind == "second":
        checks.terms_of(coordinator.parameters)
        return coordinator.check_second(roster, ready, lists, mail.envelopes("sketch"), signed)
    if kind == "unmask":
        return coordinator.check_unmask(roster, ready, lists, signed, seconds)
    final = coordinator.final(roster, ready, lists, seconds)
    published = item.sum_digest or ""
    if kind == "nonce":
        return coordinator.check_nonce(roster, ready, final, published, signed)
    nonces = coordinator.nonces(roster, ready, final, published, mail.envelopes("nonce"))
    return coordinator.check_check(roster, final, published, nonces, signed)


def _open(item: Round, kind: str, silo: Silo, signed: Envelope, facts: Facts) -> messages.Message:
    """A state, refusal or metrics message: signed by the silo's key in the manifest, for this attempt."""
    content = messages.open_message(messages.KINDS[kind], signed, facts.participants[silo.name])
    if content.ctx != parameters_of(item).attempt_ctx.hex():
        raise bad_message("The message is of another round, attempt or model.")
    if content.silo != silo.name:
        raise bad_message(f"The message names {content.silo} and was sent by {silo.name}.")
    return content


def _note(item: Round, kind: str, silo: Silo, signed: Envelope, content: Any) -> None:
    """The rows and evidence that belong to a message: what left the hospital, and what it refused."""
    if kind == "bundles" and content:
        Parcel.objects.bulk_create(
            Parcel(round=item, sender=silo.name, receiver=receiver, box=parcel.box, hashes=parcel.hashes)
            for receiver, parcel in content.items()
        )
        return
    if kind == "metrics":
        SiloMetric.objects.create(round=item, silo=silo, auc_micro=content.auc_micro)
        data = {"kind": kind, "silo": silo.name, "bytes": len(signed.payload)}
    elif kind == "update":
        parameters = parameters_of(item)
        size = sum(parameters.chunk_bytes(index) for index in range(parameters.chunk_count))
        data = {"kind": kind, "silo": silo.name, "bytes": size}
    elif kind in LEAVES:
        data = {"kind": kind, "silo": silo.name, "bytes": LEAVES[kind]}
    elif kind == "refusal":
        data = {"kind": kind, "silo": silo.name}
    else:
        return
    refused = kind == "refusal"
    record(
        type="round.refused" if refused else "update.exported",
        actor=silo_actor(silo.name, silo.organisation.slug),
        subject=Subject("round", item.key, item.manifest_digest),
        outcome="denied" if refused else "success",
        reasons=[reason.code for reason in content.reasons] if refused else (),
        refs={"message": signed.digest},
        data=data,
        private={"sentences": [reason.sentence for reason in content.reasons]} if refused else None,
    )
