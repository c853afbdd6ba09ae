"""What every step of a silo's round needs: who it is, what it may still do, what it accepted before."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.messages import Message, seal
from protocol.secure_aggregation import sealing, sets
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import Journal, StudyLedger
from protocol.secure_aggregation.masking import Masks
from protocol.secure_aggregation.parameters import Kind, RoundParameters
from protocol.secure_aggregation.records import Records, envelope_in
from protocol.secure_aggregation.sets import ListView, ReadyView, RosterView
from protocol.secure_aggregation.words import lane, signed
from protocol.signing import Envelope, SigningKey, keyid

SECRET_BYTES = 32


class Attempt:
    """One silo in one attempt; see `silo.SiloRound` for the parameters. The steps are in set_up, upload, sketching,
    reveal and checking."""

    def __init__(
        self,
        parameters: RoundParameters,
        *,
        silo: str,
        key: SigningKey,
        journal: Journal,
        known_partners: frozenset[str] = frozenset(),
        min_known: int = 0,
    ) -> None:
        if parameters.participants.get(silo) != key.public:
            raise ProtocolViolation("OTHER_KEY", f"the manifest names another key for {silo}, or does not name it")
        self.parameters = parameters
        self.silo = silo
        self._key = key
        self._ctx = parameters.ctx
        self._known = known_partners - {key.keyid}
        self._min_known = min_known
        self._records = Records(journal, parameters.study, parameters.round, parameters.attempt)
        self._ledger = StudyLedger(journal, parameters.study)
        self._lock = threading.RLock()
        self._roster: RosterView | None = None
        self._ready: ReadyView | None = None
        self._masks: Masks | None = None
        self._digests: dict[int, str] = {}

    def _model(self) -> str:
        if self.parameters.model is None:
            raise ProtocolViolation("NO_MODEL", "the round that makes the first model sums nothing")
        return self.parameters.model

    def _check_current(self) -> None:
        self._ledger.check_newest(self.parameters.round, self.parameters.attempt)

    def _secrets(self, call: str) -> dict[str, Any]:
        """The secrets of this attempt, checked to be of this model and for an update of this length."""
        self._check_current()
        own = self._records.need("keys", call)
        if own["ctx"] != self._ctx.hex():
            raise ProtocolViolation("OTHER_MODEL", "this attempt was joined with another manifest or model")
        # ctx does not say whether the round trains or only evaluates: with another length the journaled body would go out
        # once more, under the masks of the tail.
        if (own.get("words"), own.get("tail")) != (self.parameters.words, self.parameters.tail):
            raise ProtocolViolation("OTHER_LENGTH", "this attempt was joined for an update of another length")
        return own

    def _join(self, call: str) -> dict[str, Any]:
        """Join the attempt, with fresh secrets where it was not joined before; those of older attempts are erased."""
        number, attempt = self.parameters.round, self.parameters.attempt
        model = self._model()
        newest = self._ledger.newest()
        if newest is not None and newest > (number, attempt):
            self._records.destroy()  # a crash may have come between these secrets and joining
            self._check_current()
        if self._records.read("keys") is None:
            if newest == (number, attempt):
                raise ProtocolViolation("ROUND_OVER", f"round {number}.{attempt} is over here; its secrets are gone")
            self._make_secrets(number, model)
        self._ledger.join(number, attempt)
        return self._secrets(call)

    def _make_secrets(self, number: int, model: str) -> None:
        spent = self._ledger.spent(number)
        if spent is not None:
            raise ProtocolViolation(
                "ROUND_SPENT", f"this silo signed a list in attempt {spent['attempt']} of round {number}"
            )
        self._ledger.check_open(model)
        record = {
            "ctx": self._ctx.hex(),
            "words": self.parameters.words,
            "tail": self.parameters.tail,
            "hpke": canonical.b64(sealing.generate_private()),
            "self": canonical.b64(secrets.token_bytes(SECRET_BYTES)),
            "list": canonical.b64(secrets.token_bytes(SECRET_BYTES)),
            "nonces": [canonical.b64(secrets.token_bytes(SECRET_BYTES)) for _ in range(2)],
        }
        # Before, not after: whatever crash came in between, no attempt leaves secrets behind.
        self._ledger.forget_rounds()
        self._records.write("keys", record)

    def _need_roster(self, call: str) -> RosterView:
        if self._roster is None:
            keys = self._records.need("roster", call)["keys"]
            self._roster = sets.read_roster(self.parameters, [envelope_in(value) for value in keys])
        return self._roster

    def _need_ready(self, call: str) -> ReadyView:
        if self._ready is None:
            ready = self._records.need("ready", call)["ready"]
            roster = self._need_roster(call)
            self._ready = sets.read_ready(self.parameters, roster, [envelope_in(value) for value in ready])
        return self._ready

    def _check_known(self, members: Iterable[str], what: str) -> None:
        known = sum(keyid(self.parameters.participants[silo]) in self._known for silo in members)
        if known < self._min_known:
            raise ProtocolViolation(
                "TOO_FEW_KNOWN",
                f"the {what} has {known} partners whose keys are known here, {self._min_known} are needed",
            )

    def _check_own(self, members: Iterable[str], envelopes: Iterable[Envelope], sent: Envelope, what: str) -> None:
        if self.silo not in members:
            raise ProtocolViolation("LEFT_OUT", f"the {what} does not name {self.silo}")
        if all(envelope.payload != sent.payload for envelope in envelopes):
            raise ProtocolViolation("OTHER_MESSAGE", f"the {what} holds another message of {self.silo} than it sent")

    def _binding(self, what: str, secret: str) -> str:
        return sealing.binding(what, canonical.unb64(secret), ctx=self._ctx, silo=self.silo)

    def _seal(self, kind: type[Message], *, roster: str | None, **content: Any) -> Envelope:
        return seal(kind(ctx=self._ctx.hex(), silo=self.silo, roster=roster, **content), self._key)

    def _spend(self, roster: RosterView, view: ListView) -> None:
        facts = {"attempt": self.parameters.attempt, "ctx": self._ctx.hex(), "roster": roster.digest, **view.facts()}
        final = self.parameters.sketch is None
        self._ledger.spend(self.parameters.round, self._model(), facts, final=final)

    def _own_chunks(self, kind: Kind) -> Iterator[bytes]:
        """The journaled words of body or tail, chunk by chunk in order, not masked."""
        for k in range(self.parameters.chunk_count):
            if self.parameters.chunk_range(k)[0] == kind:
                words = self._records.chunk(k)
                if words is None:
                    raise ProtocolViolation("ROUND_OVER", "the words of this attempt are gone")
                yield words

    def _own_body(self) -> Iterator[NDArray[np.int32]]:
        """The journaled body as signed words."""
        bits = self.parameters.word_bits
        return (signed(np.frombuffer(words, dtype=lane(bits)), bits) for words in self._own_chunks("body"))
