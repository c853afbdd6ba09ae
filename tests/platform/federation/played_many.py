"""What a played silo does otherwise where there are many: the sparse protocol's steps, each as the portal asks for it."""

from __future__ import annotations

from typing import Any

from protocol.secure_aggregation.sparse import SparseParameters, SparseRound, wire
from protocol.signing import Envelope


def envelopes(values: list[dict[str, Any]]) -> list[Envelope]:
    return [Envelope.from_dict(each) for each in values]


class ManySteps:
    """To be mixed into a played silo; `given` keeps each assignment by round and kind."""

    def machine_for(self, task: dict[str, Any]) -> SparseRound:
        return SparseRound(self.parameters(task), silo=self.name, key=self.key, journal=self.journal)

    def parameters(self, task: dict[str, Any]) -> SparseParameters:
        return SparseParameters(**self.fields(task), sparse_from=self.network.manifest.aggregation.sparse_from)

    def keep(self, task: dict[str, Any]) -> SparseRound:
        self.given.setdefault(task["round"], {})[task["kind"]] = task
        return self.rounds[task["round"]]

    def on_roster(self, task: dict[str, Any]) -> None:
        machine = self.keep(task)
        row = machine.accept_roster(wire.read_claim(task["claim"]), wire.read_leaf(task["leaf"]))
        self.post(task["round"], "row", row)

    def on_neighbours(self, task: dict[str, Any]) -> None:
        machine = self.keep(task)
        self.post(task["round"], "bundles", machine.accept_neighbours(wire.read_neighbours(task["neighbours"])))

    def on_bundles(self, task: dict[str, Any]) -> None:
        self.post(task["round"], "ready", self.keep(task).accept_bundles(wire.read_parcels(task["parcels"])))

    def take_ready(self, task: dict[str, Any]) -> None:
        self.keep(task).accept_ready(wire.read_claim(task["claim"]), wire.read_leaves(task["leaves"]))

    def on_list(self, task: dict[str, Any]) -> None:
        machine, updates = self.keep(task), envelopes(task["updates"])
        signed = machine.sign_list(wire.read_claim(task["claim"]), wire.read_leaves(task["leaves"]), updates)
        self.post(task["round"], "list", signed)

    def on_unmask(self, task: dict[str, Any]) -> None:
        self.post(task["round"], "unmask", self.keep(task).unmask(envelopes(task["lists"])))

    def on_sum(self, task: dict[str, Any]) -> None:
        key, facts, machine, missed = task["round"], task["sum"], self.keep(task), task["missed"]
        if missed is not None:
            given = (wire.read_claim(missed["claim"]), wire.read_leaves(missed["leaves"]), envelopes(missed["lists"]))
            machine.accept_list(*given)
        machine.agree(facts["members"])
        self.published[key] = facts
        if self.post(key, "nonce", machine.open_nonce(facts["digest"])) is not None:
            self.fetch(key)

    def on_check(self, task: dict[str, Any]) -> None:
        self.post(task["round"], "check", self.keep(task).send_check(wire.read_opened(task["opened"])))
