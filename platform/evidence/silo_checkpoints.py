"""A silo's own log, anchored in the portal's: its signed checkpoints become leaves here."""

from __future__ import annotations

from typing import Any

from evidence.models import Entry
from evidence.selectors import content, entries_of
from evidence.services import acting
from portal.actors import Subject, silo_actor
from portal.problems import Refused
from protocol.canonical import MAX_INTEGER, b64
from protocol.transparency.note import NoteError, open_checkpoint, parse_note


def silo_checkpoint_receive(*, silo: Any, note: str) -> Entry:
    """Record a checkpoint of the silo's log (`silo`: organisations.Silo), verified with the key given at enrolment.

    The same checkpoint again gives the entry that is there. Refused: no key, a bad signature, and a log that shrank or
    that shows another root at the same size, which is recorded as denied and stays visible.
    """
    actor = silo_actor(silo.name, silo.organisation.slug)
    with acting(type="silo.checkpoint", actor=actor, subject=Subject("silo", silo.name)) as act:
        if not silo.log_vkey:
            raise Refused("BAD_MESSAGE", "This silo enrolled without a log key.")
        try:
            checkpoint = open_checkpoint(note, silo.log_vkey)
        except NoteError as error:
            raise Refused(
                "BAD_MESSAGE", f"This is not a checkpoint signed with this silo's log key: {error}"
            ) from error
        if checkpoint.size > MAX_INTEGER:
            raise Refused("BAD_MESSAGE", "No log has so many entries.")
        last = (
            entries_of(kind="silo", id=silo.name)
            .filter(type="silo.checkpoint", outcome="success")
            .order_by("-time")
            .first()
        )
        root = b64(checkpoint.root)
        if last is not None:
            known = content(last)["data"]
            if known["size"] == checkpoint.size and known["root"] == root:
                return last
            if known["size"] >= checkpoint.size:
                raise Refused(
                    "SILO_LOG_FORKED",
                    f"This silo's log had {known['size']} entries before; a log never shrinks and never changes.",
                )
        return act.record(
            data={
                "origin": checkpoint.origin,
                "size": checkpoint.size,
                "root": root,
                "signature": next(item.line for item in parse_note(note)[1] if item.name == checkpoint.origin).split(
                    " "
                )[-1],
            }
        )
