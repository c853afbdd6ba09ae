"""The first model: t silos signed the same table and digest; the portal makes it itself and compares.

From a seed it is drawn by the integer generator that the silos used; a pretrained one lies in the model store under the
digest that the manifest names, and is put into the order of the network's table.
"""

from __future__ import annotations

import numpy as np
from django.db import transaction

from federation.models import Round, Stage
from federation.services import rounds, stages
from federation.services.facts import Facts, facts_of
from federation.services.mail import Mail, read_mail
from federation.services.pretrained import pretrained_path
from federation.storage import model_path
from protocol import messages
from protocol.initial_model import initial_state, pretrained_state
from protocol.model_state import (
    ModelState,
    StateError,
    Table,
    Vector,
    check_table,
    digest_of,
    header_bytes,
    table_from_list,
    update_words,
    words,
)


class Differs(Exception):
    """The model that the silos signed is not the one that the manifest leads to. The message says how."""


def initial_finish(key: str) -> None:
    """Make the first model of a round in the stage `sum` and end the round; does nothing where that was done."""
    item = Round.objects.get(key=key)
    if item.stage != Stage.SUM:
        return
    facts = facts_of(item.manifest_digest)
    mail = read_mail(item, ("state",))
    said = messages.State.parse(mail.envelope("state", (item.members or [""])[0]).payload)
    try:
        if said.table is None:
            raise Differs("The silos signed a first model without its table.")
        table = table_from_list([{"name": row.name, "shape": list(row.shape), "kind": row.kind} for row in said.table])
        _make(table, said.state, facts)
    except (Differs, StateError) as error:
        _end(key, mail, facts, digest=None, length=0, sentence=str(error))
        return
    _end(key, mail, facts, digest=said.state, length=update_words(table), sentence="")


def _make(table: Table, digest: str, facts: Facts) -> None:
    """Store the model's file. Raises Differs, StateError."""
    path = model_path(digest)
    scales = facts.fixed.initial(check_table(table))
    header = header_bytes(table, scales)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".first-{path.name}")
    try:
        part.write_bytes(header)
        vector = np.memmap(part, dtype="<f4", mode="r+", offset=len(header), shape=(words(table),))
        _fill(table, facts, vector)
        vector.flush()
        if digest_of(header, vector) != digest:
            raise Differs("The silos agree on a first model that is not the one that the manifest leads to.")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fill(table: Table, facts: Facts, vector: Vector) -> None:
    if facts.pretrained is not None:
        given = pretrained_path(study=facts.study, digest=facts.pretrained)
        if given is None:
            raise Differs("The pretrained model that the manifest names is not stored on the portal for this study.")
        pretrained_state(table, ModelState.load(given), out=vector)
    elif facts.seed is not None:
        initial_state(table, facts.seed, out=vector)
    else:
        raise Differs("The manifest names neither a seed nor a pretrained model.")


@transaction.atomic
def _end(key: str, mail: Mail, facts: Facts, *, digest: str | None, length: int, sentence: str) -> None:
    item = Round.objects.select_for_update().get(key=key)
    if item.stage != Stage.SUM:
        return
    now = stages.now()
    if digest is None:
        rounds.round_fail(item, code="INITIAL_MODEL_DIFFERS", sentence=sentence, facts=facts, now=now)
        return
    item.next_model_digest = digest
    rounds.round_finish(item, mail=mail, facts=facts, now=now, signers=item.members or (), length=length)
