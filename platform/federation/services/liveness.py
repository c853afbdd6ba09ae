"""Signs of life: heartbeats come in, and the sweep asks who is lost. A silo is lost after some seconds without one."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Max

from federation import conf
from federation.models import CLOSED, ChunkReceipt, Round, RoundMessage, Seat, SiloStage
from federation.services import stages
from federation.services.errors import bad_message
from federation.services.facts import facts_of, parameters_of
from federation.services.lookup import round_for
from organisations.models import Silo
from protocol import messages
from protocol.signing import Envelope, SignatureError


@transaction.atomic
def heartbeat_receive(*, round_key: str, silo: Silo, envelope: object) -> str:
    """Note a signed heartbeat; returns the round's stage. Raises Refused (NOT_YOUR_STUDY, BAD_MESSAGE)."""
    item = round_for(round_key, silo)
    try:
        signed = Envelope.from_dict(envelope)
        public = facts_of(item.manifest_digest).participants[silo.name]
        content = messages.open_message(messages.Heartbeat, signed, public)
    except (SignatureError, messages.MessageError) as error:
        raise bad_message(str(error)) from error
    if content.ctx != parameters_of(item).attempt_ctx.hex() or content.silo != silo.name:
        raise bad_message("The heartbeat is of another round, attempt, model or silo.")
    if item.stage in CLOSED:
        return item.stage
    now = stages.now()
    if not Seat.objects.filter(round=item, silo=silo, working_on=content.stage).update(seen_at=now):
        Seat.objects.filter(round=item, silo=silo).update(seen_at=now, working_on=content.stage)
        SiloStage.objects.get_or_create(round=item, silo=silo, stage=content.stage, defaults={"entered_at": now})
        stages.tell(item, ())
    return item.stage


def lost_silos(item: Round, among: Collection[str], now: datetime) -> set[str]:
    """Those of `among` from whom nothing signed came for too long: no heartbeat, message or piece of this round.

    The time counts from the start of the stage at the earliest, so that nobody is lost for having had nothing to do.
    """
    if not among:
        return set()
    limit = now - timedelta(seconds=conf.lost_after())
    if item.stage_at > limit:
        return set()
    seen: dict[str, datetime] = {}
    names = list(among)
    for rows in (
        Seat.objects.filter(round=item, silo__name__in=names).values_list("silo__name", "seen_at"),
        RoundMessage.objects.filter(round=item, silo__name__in=names)
        .values_list("silo__name")
        .annotate(at=Max("received_at")),
        ChunkReceipt.objects.filter(round=item, silo__name__in=names)
        .values_list("silo__name")
        .annotate(at=Max("received_at")),
    ):
        for name, at in rows:
            if at is not None:
                seen[name] = max(at, seen.get(name, at))
    return {name for name in names if name not in seen or seen[name] <= limit}
