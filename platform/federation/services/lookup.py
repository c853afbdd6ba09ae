"""Finding a round for a silo: only rounds that the silo was asked to take part in exist for it."""

from __future__ import annotations

from django.db import connection

from federation.models import Round
from federation.services.errors import not_yours
from organisations.models import Silo


def round_for(round_key: str, silo: Silo, *, lock: bool = False) -> Round:
    """The round for one of its silos; `lock` holds its row until the transaction ends.

    Raises Refused (NOT_YOUR_STUDY) for everybody else.
    """
    # Written out: every request of a silo asks this, and building the query takes longer than running it.
    locking = " FOR UPDATE" if lock and connection.features.has_select_for_update else ""
    rows = Round.objects.raw(f"SELECT * FROM {Round._meta.db_table} WHERE key = %s{locking}", [round_key])
    item = next(iter(rows), None)
    if item is None or silo.name not in item.announced:
        raise not_yours(f"Round {round_key[:100]}")
    return item
