"""Saying no to a round: first in the silo's own log, then to the portal, with a reason that a person understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocol import canonical
from protocol.messages import Reason, Refusal, seal
from silo_node.errors import DiskFull, PortalRefused
from silo_node.node import Node
from silo_node.rounds.announcement import Announcement, context
from silo_node.rounds.runs import Run
from silo_node.service import logs

Proof = Mapping[str, str | Mapping[str, str]]
"""Digests of signed messages: of one, or of a set by who signed."""

TOO_LATE: Final = frozenset({"OUT_OF_STAGE", "NOT_YOUR_STUDY"})
"""The portal's way of saying that the round went on without this message."""


def send_refusal(
    node: Node, announcement: Announcement, ctx: str, reasons: list[Reason], proof: Proof | None = None
) -> None:
    """Say no to a round: first in the silo's own log, then to the portal. The same refusal is sent once.

    proof: the signed messages that are refused. The record names each set by the digest that the protocol gives it, and
    the single ones stand beside the log.
    """
    run = Run(node.config.runs, announcement.id)
    said = tuple(Reason(reason.code, _without_places(node, reason.sentence)) for reason in reasons)
    message = Refusal(ctx=ctx, silo=node.config.name, roster=None, reasons=said)
    if run.read("refused") is None:
        try:
            run.write(
                "refused", {"reasons": [{"code": reason.code, "sentence": reason.sentence} for reason in reasons]}
            )
            node.evidence.record(
                "round.refused",
                subject=("round", announcement.id, announcement.manifest),
                outcome="denied",
                reasons=[reason.code for reason in reasons],
                refs={name: _digest_of(each) for name, each in (proof or {}).items()},
                private={"sentences": [reason.sentence for reason in reasons], "messages": proof or {}},
            )
        except DiskFull as error:
            # To say no is always possible: the portal keeps the reason, and this silo's own log has it at least in text.
            logs.get().error("round.refusal_not_recorded", round=announcement.id, code=error.code)
    logs.get().warning(
        "round.refused",
        study=announcement.study,
        round=announcement.id,
        codes=[reason.code for reason in said],
        sentence=" ".join(reason.sentence for reason in said),
    )
    try:
        node.egress.post(
            f"/api/v1/rounds/{announcement.id}/refusal",
            seal(message, node.keys.silo).as_dict(),
            kind="refusal",
            round_id=announcement.id,
        )
    except PortalRefused as error:
        if error.code not in TOO_LATE:
            raise


def _digest_of(each: str | Mapping[str, str]) -> str:
    """As `sets.set_digest` where it is a set."""
    if isinstance(each, str):
        return each
    return canonical.digest(canonical.encode([[signer, each[signer]] for signer in sorted(each)]))


def _without_places(node: Node, sentence: str) -> str:
    """The sentence as the portal may read it: where things lie inside the hospital, and under whose account, stays here."""
    for folder, name in ((node.config.folder, "(the silo's folder)"), (node.config.data, "(the data folder)")):
        for place in (str(folder.resolve()), str(folder)):
            if len(place) > 1:
                sentence = sentence.replace(place, name)
    return sentence[:2000]


def context_of(announcement: Announcement) -> str:
    """The attempt's context, for a refusal before the manifest is known to be good."""
    return context(
        announcement.study, announcement.manifest, announcement.number, announcement.attempt, announcement.model
    )
