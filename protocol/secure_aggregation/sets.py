"""The signed sets of a round, read the same way by silo and coordinator: roster, ready set R, updates, list L1.

What comes after the list (sketches, L2, check words) is read in checks.py.

Each set lies within its parent (list in R, R in the roster, roster in the manifest's participants), names no silo
twice, and has the size that everybody recomputes. Every function raises `ProtocolViolation` and returns only what
it verified. What only a silo can ask (is it in the set itself? does it know enough of the others?) is in silo.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from protocol import canonical
from protocol.messages import Keys, ListSignature, Message, MessageError, Ready, Update, open_message
from protocol.secure_aggregation import sealing
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.parameters import RoundParameters, threshold
from protocol.signing import Envelope, SignatureError

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class RosterView:
    """The silos of an attempt. members: sorted by name; digest: names all signed keys; keys: silo -> HPKE key."""

    members: tuple[str, ...]
    digest: str
    keys: Mapping[str, bytes]
    envelopes: tuple[Envelope, ...]

    @property
    def threshold(self) -> int:
        """t of this roster."""
        return threshold(len(self.members))

    def index(self, silo: str) -> int:
        """The silo's place, from 0; its shares lie at x = index + 1. Raises: ValueError where it has none."""
        return self.members.index(silo)


@dataclass(frozen=True)
class ReadyView:
    """The set R: those between whom masks exist. members: sorted; digest: names all `ready`; ready: silo -> message."""

    members: tuple[str, ...]
    digest: str
    ready: Mapping[str, Ready]
    envelopes: tuple[Envelope, ...]


@dataclass(frozen=True)
class ListView:
    """A list L1: whose update is complete. members: sorted; updates: digest that names all signed chunk digests."""

    members: tuple[str, ...]
    ready_set: str
    updates: str

    @property
    def digest(self) -> str:
        """Names the list in all that follows it."""
        return canonical.digest(canonical.encode(self.facts()))

    def facts(self) -> dict[str, object]:
        """What two lists must share to be the same list."""
        return {"members": list(self.members), "ready_set": self.ready_set, "updates": self.updates}


def open_signed(parameters: RoundParameters, kind: type[M], envelope: Envelope, roster: RosterView | None) -> M:
    """One message of this attempt, verified.

    1. exactly one signature, of a silo of the manifest   2. the signature fits, under this message's type
    3. the content is well formed   4. it names the silo that signed   5. it is of this attempt and model
    6. it is of this roster, and the silo is in it

    Raises:
        ProtocolViolation: BAD_SIGNATURE (1, 2, 4), BAD_MESSAGE (3), OTHER_ROUND (5), OTHER_ROSTER (6).
    """
    # 1
    signer = parameters.signers.get(envelope.signatures[0][0]) if len(envelope.signatures) == 1 else None
    if signer is None:
        raise ProtocolViolation("BAD_SIGNATURE", f"a message ({kind.STAGE}) is not signed by one silo of the manifest")
    try:
        # 2, 3
        message = open_message(kind, envelope, parameters.participants[signer])
    except SignatureError as error:
        raise ProtocolViolation("BAD_SIGNATURE", f"{kind.STAGE} of {signer}: {error}") from error
    except MessageError as error:
        raise ProtocolViolation("BAD_MESSAGE", f"{kind.STAGE} of {signer}: {error}") from error
    # 4
    if message.silo != signer:
        raise ProtocolViolation("BAD_SIGNATURE", f"{kind.STAGE} in the name of {message.silo} is signed by {signer}")
    # 5
    if message.ctx != parameters.ctx.hex():
        raise ProtocolViolation(
            "OTHER_ROUND", f"{kind.STAGE} of {signer} belongs to another study, round, attempt or model"
        )
    # 6
    if roster is not None and (message.roster != roster.digest or signer not in roster.members):
        raise ProtocolViolation("OTHER_ROSTER", f"{kind.STAGE} of {signer} belongs to another roster")
    return message


def read_roster(parameters: RoundParameters, envelopes: Iterable[Envelope]) -> RosterView:
    """The roster of signed keys. Raises: ProtocolViolation (TWICE, ROSTER_TOO_SMALL and `open_signed`).

    Whether a key can be sealed to shows when it is done: the coordinator tries each as it comes, each silo uses it.
    """
    keys, signed = open_all(parameters, Keys, envelopes, None)
    if len(keys) < parameters.min_roster:
        raise ProtocolViolation(
            "ROSTER_TOO_SMALL", f"the roster has {len(keys)} silos, the manifest asks for {parameters.min_roster}"
        )
    public = {silo: message.hpke_public for silo, message in keys.items()}
    return RosterView(tuple(keys), set_digest(signed), public, tuple(signed.values()))


def check_ready(roster: RosterView, message: Ready) -> None:
    """One `ready` fits its roster. Raises: ProtocolViolation (BAD_MESSAGE, OUTSIDE_PARENT)."""
    if canonical.digest(message.list_box) != message.list_digest:
        raise ProtocolViolation(
            "BAD_MESSAGE", f"ready of {message.silo}: the list is not the one that its digest names"
        )
    if len(message.list_box) != sealing.list_box_bytes(len(roster.members)):
        raise ProtocolViolation("BAD_MESSAGE", f"ready of {message.silo}: the list does not fit the roster")
    if message.silo in message.senders or not set(message.senders) <= set(roster.members):
        raise ProtocolViolation(
            "OUTSIDE_PARENT", f"ready of {message.silo} names senders outside the roster, or itself"
        )


def read_ready(parameters: RoundParameters, roster: RosterView, envelopes: Iterable[Envelope]) -> ReadyView:
    """The set R. Raises: ProtocolViolation (TWICE, NOT_OPENED, SET_TOO_SMALL, `check_ready`, `open_signed`)."""
    ready, signed = open_all(parameters, Ready, envelopes, roster)
    for silo, message in ready.items():
        check_ready(roster, message)
        for other in ready:
            if other != silo and other not in message.senders:
                raise ProtocolViolation(
                    "NOT_OPENED", f"{silo} could not open the bundle of {other}; one must be left out"
                )
    check_size(parameters, roster, len(ready), "ready set")
    return ReadyView(tuple(ready), set_digest(signed), ready, tuple(signed.values()))


def check_update(parameters: RoundParameters, ready: ReadyView, message: Update) -> None:
    """One `update` wears the masks of R and is complete. Raises: ProtocolViolation (OUTSIDE_PARENT, OTHER_SET, ..)."""
    if message.silo not in ready.members:
        raise ProtocolViolation("OUTSIDE_PARENT", f"{message.silo} is not in the ready set")
    if message.ready_set != ready.digest or message.members != ready.members:
        raise ProtocolViolation("OTHER_SET", f"the update of {message.silo} wears the masks of another ready set")
    if len(message.chunks) != parameters.chunk_count:
        raise ProtocolViolation(
            "BAD_MESSAGE",
            f"the update of {message.silo} has {len(message.chunks)} chunks, this study has {parameters.chunk_count}",
        )


def read_updates(
    parameters: RoundParameters, roster: RosterView, ready: ReadyView, envelopes: Iterable[Envelope]
) -> ListView:
    """The list of those whose `update` is there. Raises: ProtocolViolation (TWICE, SET_TOO_SMALL, `check_update`)."""
    updates, signed = open_all(parameters, Update, envelopes, roster)
    for message in updates.values():
        check_update(parameters, ready, message)
    check_size(parameters, roster, len(updates), "list")
    return ListView(tuple(updates), ready.digest, set_digest(signed))


def check_list(parameters: RoundParameters, roster: RosterView, ready: ReadyView, message: ListSignature) -> ListView:
    """One signature on a list. Raises: ProtocolViolation (OUTSIDE_PARENT, OTHER_SET, SET_TOO_SMALL, BAD_NONCE)."""
    if not set(message.members) <= set(ready.members) or message.silo not in message.members:
        raise ProtocolViolation(
            "OUTSIDE_PARENT", f"the list of {message.silo} reaches outside the ready set or misses it"
        )
    if message.ready_set != ready.digest:
        raise ProtocolViolation("OTHER_SET", f"the list of {message.silo} is of another ready set")
    check_size(parameters, roster, len(message.members), "list")
    committed = ready.ready[message.silo].nonces[0]
    if not sealing.fits("nonce 1", message.nonce, committed, ctx=parameters.ctx, silo=message.silo):
        raise ProtocolViolation("BAD_NONCE", f"the nonce of {message.silo} is not the one it committed to")
    return ListView(message.members, message.ready_set, message.updates)


def read_lists(
    parameters: RoundParameters, roster: RosterView, ready: ReadyView, envelopes: Iterable[Envelope]
) -> ListView:
    """The one list that at least t of its members signed. Raises: ProtocolViolation (TWO_LISTS, TOO_FEW_SIGNATURES)."""
    lists, _ = open_all(parameters, ListSignature, envelopes, roster)
    views = {check_list(parameters, roster, ready, message) for message in lists.values()}
    if len(views) > 1:
        raise ProtocolViolation("TWO_LISTS", "the silos signed different lists; nothing is revealed")
    if len(lists) < roster.threshold:
        raise ProtocolViolation(
            "TOO_FEW_SIGNATURES", f"{len(lists)} silos signed the list, {roster.threshold} are needed"
        )
    return views.pop()


def check_size(parameters: RoundParameters, roster: RosterView, size: int, what: str) -> None:
    """Raises: ProtocolViolation (SET_TOO_SMALL) below max(t, min_participants)."""
    least = parameters.smallest_set(len(roster.members))
    if size < least:
        raise ProtocolViolation("SET_TOO_SMALL", f"the {what} has {size} silos, at least {least} are needed")


def set_digest(signed: Mapping[str, Envelope]) -> str:
    """Digest of a set of signed messages: each silo with the digest of what it signed, sorted by silo."""
    return canonical.digest(canonical.encode([[silo, signed[silo].digest] for silo in sorted(signed)]))


def open_all(
    parameters: RoundParameters, kind: type[M], envelopes: Iterable[Envelope], roster: RosterView | None
) -> tuple[dict[str, M], dict[str, Envelope]]:
    """All messages of a set by silo, sorted. Raises: ProtocolViolation (TWICE and `open_signed`)."""
    pairs = [(open_signed(parameters, kind, envelope, roster), envelope) for envelope in envelopes]
    pairs.sort(key=lambda pair: pair[0].silo)
    messages = {message.silo: message for message, _ in pairs}
    if len(messages) != len(pairs):
        raise ProtocolViolation("TWICE", f"a silo stands twice among the {kind.STAGE} messages")
    return messages, {message.silo: envelope for message, envelope in pairs}
