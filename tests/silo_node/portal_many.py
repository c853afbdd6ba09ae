"""A round with many silos at the small portal, with the real coordinator; partners are played with the real state machine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from protocol.canonical import digest
from protocol.evaluation import encode_tail
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.sparse import Parcel, SparseCoordinator, SparseRound
from protocol.secure_aggregation.sparse.messages import SparseUpdate
from protocol.secure_aggregation.words import lane
from protocol.signing import Envelope
from tests.silo_node.portal_double import ORDER, Partner, PlayedRound, Refusal

CLOSES = {"keys": "roster", "row": "graph", "ready": "ready", "update": "list", "nonce": "nonces"}


class PlayedMany(PlayedRound):
    """One attempt."""

    MACHINE = SparseRound

    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        without = ("sketch", "second", *(() if self.purpose == "train" else ("state",)))
        if self.purpose != "initial":
            self.order = tuple(kind for kind in ORDER if kind not in without)
        self.coordinator = SparseCoordinator(self.parameters)
        self.parcels: dict[str, dict[str, Parcel]] = {silo: {} for silo in self.parameters.members}

    def expected(self) -> set[str]:
        if self.stage in ("row", "bundles", "ready"):
            asked = set(self.mail[self.order[self.order.index(self.stage) - 1]])
        elif self.stage == "update":
            asked = set(self.coordinator.members("ready"))
        else:
            return super().expected()
        return asked - set(self.mail["refusal"]) - self.double.absent_from(self.stage)

    def _check(self, kind: str, envelope: Envelope) -> None:
        if kind not in ORDER or kind == "state":
            return
        published = (self.published,) if kind in ("nonce", "check") else ()
        if kind != self.stage:
            getattr(self.coordinator, f"check_{kind}")(*published, envelope)
        elif kind == "bundles":
            sender, parcels = self.coordinator.take_bundles(envelope)
            for receiver, parcel in parcels.items():
                self.parcels[receiver][sender] = parcel
        else:
            sender = getattr(self.coordinator, f"take_{kind}")(*published, envelope)
            if kind == "update":
                chunks = SparseUpdate.parse(envelope.payload).chunks
                stored = self.chunks.get(sender, {})
                if any(digest(stored[k]) != chunks[k] for k in range(self.parameters.chunk_count)):
                    raise Refusal(409, "CHUNK_DIFFERS", "the stored chunks are not those that the update signs")

    def _leave(self, stage: str) -> None:
        if stage in CLOSES and self.purpose != "initial":
            getattr(self.coordinator, f"close_{CLOSES[stage]}")()
        if stage == "update":
            self.members = list(self.coordinator.members("list"))
        elif stage == "unmask":
            self._sum()
        elif stage == "check" and not self.double.lying:
            try:
                self.coordinator.check_sum(self.published, *self.words())
            except ProtocolViolation as error:
                self.stage, self.reason = "failed", error.code
        elif stage == "state":
            self._finish()

    def _removal(self) -> Any:
        return self.coordinator.recover()

    def set_for(self, what: str, silo: str) -> tuple[Any, Any]:
        return self.coordinator.claim(what), self.coordinator.leaves_for(what, silo)

    def _answer(self, partner: Partner) -> Envelope:
        if self.stage in ("keys", "state"):
            return super()._answer(partner)
        machine, portal, name = partner.machine, self.coordinator, partner.name
        assert machine is not None
        if self.stage == "row":
            return machine.accept_roster(portal.claim("roster"), portal.leaf("roster", name))
        if self.stage == "bundles":
            return machine.accept_neighbours(portal.neighbours_for(name))
        if self.stage == "ready":
            return machine.accept_bundles(self.parcels[name])
        if self.stage == "update":
            machine.accept_ready(*self.set_for("ready", name))
            words = np.full(self.parameters.words, self.double.partner_word, dtype=lane(self.parameters.word_bits))
            bins = self.double.manifest.plan.evaluation.bins
            machine.begin_update(words, encode_tail(loss=None, auc=None, histograms=np.zeros((2, bins), np.int64)))
            self.chunks[name] = {k: machine.masked_chunk(k) for k in range(self.parameters.chunk_count)}
            return machine.finish_update()
        if self.stage == "list":
            return machine.sign_list(*self.set_for("list", name), portal.updates_for(name))
        if self.stage == "unmask":
            return machine.unmask(portal.lists_for(name))
        if self.stage == "nonce":
            machine.agree(self.members)
            return machine.open_nonce(self.published)
        return machine.send_check(portal.opened_nonces)

    def _told(self, silo: str) -> dict[str, Any] | None:
        portal = self.coordinator
        dicts = lambda items: [item.as_dict() for item in items]  # noqa: E731
        if self.stage == "row":
            claim, leaf = portal.claim("roster"), portal.leaf("roster", silo)
            return {"kind": "roster", "claim": claim.as_dict(), "leaf": leaf.as_dict()}
        if self.stage == "bundles":
            return {"kind": "neighbours", "neighbours": dicts(portal.neighbours_for(silo))}
        if self.stage == "ready":
            parcels = {sender: parcel.as_dict() for sender, parcel in self.parcels[silo].items()}
            return {"kind": "bundles", "parcels": parcels}
        if self.stage == "update":
            return {"kind": "ready", **self._set("ready", silo)}
        if silo not in self.members:
            return None
        if self.stage == "list":
            return {"kind": "list", **self._set("list", silo), "updates": dicts(portal.updates_for(silo))}
        if self.stage == "unmask":
            return {"kind": "unmask", "lists": dicts(portal.lists_for(silo))}
        if self.stage == "nonce":
            missed = {**self._set("list", silo), "lists": dicts(portal.lists_for(silo))}
            signed = silo in self.mail["list"]
            published = {"sum": self.sum, "portal_signature": self.signed_sum}
            return {"kind": "sum", **published, "missed": None if signed else missed}
        if self.stage == "check":
            return {"kind": "check", "opened": portal.opened_nonces.as_dict()}
        return {"kind": "state", "checks": dicts(self.members_of("check"))} if self.stage == "state" else None

    def _set(self, what: str, silo: str) -> dict[str, Any]:
        claim, leaves = self.set_for(what, silo)
        return {"claim": claim.as_dict(), "leaves": [leaf.as_dict() for leaf in leaves]}

    def entries(self, what: str, names: list[str]) -> bytes:
        return json.dumps({"leaves": [self.coordinator.leaf(what, name).as_dict() for name in names]}).encode()
