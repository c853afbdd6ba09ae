"""The opt-out list, loaded freshly before every round; refused when the last good reading is older than the limit.

Each good reading is kept in FOLDER/consent (mode 0600), so that a network drive that is away for an hour does not stop
the research, and one that is away for a day does. A list that was there before and is gone counts as a failed reading.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from silo_node.config import Config
from silo_node.consent import keeping
from silo_node.consent import opt_out as lists
from silo_node.consent.opt_out import OptOut
from silo_node.errors import Refused
from silo_node.imaging.errors import DataError


def load(config: Config, now: datetime, *, keep: bool = True) -> OptOut | None:
    """The list in force; None where this hospital has never had one. keep: whether a good reading is kept for later.

    Raises: Refused with the reader's code (OPT_OUT_..) or OPT_OUT_STALE.
    """
    kept = config.consent_kept_list
    path = config.opt_out
    if path is None:
        if not kept.exists():
            return None
        return _kept(config, kept, now, gone())
    began = time.time()
    try:
        found, raw = lists.read(path, now=now)
    except DataError as error:
        return _kept(config, kept, now, Refused(error.code, error.sentence))
    if keep:
        keeping.keep(kept, raw, began)
    return found


def gone() -> Refused:
    """A list that was there is not there any more."""
    return Refused(
        "OPT_OUT_MISSING",
        "The opt-out list that was read before is gone: bring it back, or name its place in silo.toml as `opt_out`; with only "
        "its header where everybody on it has withdrawn their no.",
    )


def _kept(config: Config, kept: Path, now: datetime, reason: Refused) -> OptOut:
    hours = config.settings.limits.opt_out_hours
    if not kept.exists():
        raise reason
    read_at = kept.stat().st_mtime
    age = time.time() - read_at
    if age > hours * 3600:
        raise Refused(
            "OPT_OUT_STALE",
            f"The opt-out list was last read {age / 3600:.0f} hours ago, at most {hours} are allowed: "
            f"hospital IT has to bring it back. {reason.sentence}",
        )
    return lists.load(kept, now=datetime.fromtimestamp(read_at, UTC))
