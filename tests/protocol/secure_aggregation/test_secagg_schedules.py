"""Any schedule of messages with up to 6 silos: a portal relays what it likes to whom it likes, silos crash and forget.

A state machine of hypothesis plays the portal. It calls any step of any silo with any choice of the messages that it
has, from any attempt, in any order, twice, and kills silos between calls and in the middle of a write. Whatever comes:
  - a silo gives one answer a step, the same bytes also after a crash;
  - no silo reveals both kinds of share of one owner, and no owner's two secrets can both be rebuilt;
  - who signed one list of a round never signs another, and shows one sketch;
  - where t silos have unmasked a list, the sum is the plain sum of exactly that list;
  - no silo opens its second nonce for two sums, and what a silo believes is that plain sum, whatever was published.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from protocol.messages import ListSignature, Nonce, SecondList, Unmask
from protocol.secure_aggregation import NotEnoughShares, ProtocolViolation, threshold
from protocol.signing import Envelope

STEPS = ("keys", "roster", "bundles", "ready", "list", "sketch", "second", "unmask", "nonce", "check", "verify")


class Schedules(RuleBasedStateMachine):
    """The portal and all silos. `said`: (attempt, step, silo) -> the one answer that this silo gave."""

    World: Any = None

    @initialize(n=st.integers(3, 6), sketch=st.booleans(), seed=st.integers(0, 1000))
    def begin(self, n: int, sketch: bool, seed: int) -> None:
        self.this = self.World(n, words=6, tail=1, seed=seed, small=True, **({"sketch": 2000.0} if sketch else {}))
        self.sketch = sketch
        self.said: dict[tuple[tuple[int, int], str, str], Envelope] = {}
        self.added = 0
        self.sums: dict[str, Any] = {}
        self.at = (1, 0)
        self.old: dict[str, list[Envelope]] = {}

    # --- what the portal may do --------------------------------------------------------------------------------------

    @rule(data=st.data())
    def one_call(self, data: st.DataObject) -> None:
        """One step of one silo, with some of the messages that there are."""
        name = data.draw(st.sampled_from(self.this.silos))
        self._call(data.draw(st.sampled_from(STEPS)), name, data)

    @rule(data=st.data(), step=st.sampled_from(STEPS))
    def everybody(self, data: st.DataObject, step: str) -> None:
        """A stage as an honest portal plays it, so that rounds get somewhere."""
        for name in self.this.silos:
            self._call(step, name, None)

    @rule(stages=st.sampled_from([3, 4, 5, 5, 6, 7, 8, 9, 11, 11]), added=st.integers(0, 1))
    def onwards(self, stages: int, added: int) -> None:
        """Several stages as an honest portal plays them, but that it adds to the first word of the sum that it publishes."""
        self.added = added
        for step in STEPS[:stages]:
            for name in self.this.silos:
                self._call(step, name, None)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A silo is killed and comes back with its journal alone."""
        name = data.draw(st.sampled_from(self.this.silos))
        self.this.machines[name] = self.this.rebuild(name)

    @rule(data=st.data(), puts=st.integers(1, 3), when=st.sampled_from(["before", "after"]))
    def kill_at_a_write(self, data: st.DataObject, puts: int, when: str) -> None:
        """A silo will be killed at one of its next writes."""
        journal = self.this.journals[data.draw(st.sampled_from(self.this.silos))]
        journal.kill_at = (journal.puts + puts, when)

    @rule(next_round=st.booleans())
    def announce_another(self, next_round: bool) -> None:
        """Another attempt, or another round on the same model; what was said before may be replayed."""
        number, attempt = self.at
        self.at = (number + 1, 0) if next_round else (number, attempt + 1)
        if sum(self.at) > 4:
            self.at = (number, attempt)
            return
        self.old = {kind: list(mails.values()) for kind, mails in self.this.mail.items()}
        self.this.attempt(round=self.at[0], attempt=self.at[1])

    def _call(self, step: str, name: str, data: st.DataObject | None) -> None:
        this, machine = self.this, self.this.machines[name]
        try:
            if step == "keys":
                answer = machine.keys()
            elif step == "roster":
                answer = machine.accept_roster(self._some("keys", data))
            elif step == "bundles":
                roster = this.coordinator.roster(self._some("keys", data))
                boxes = this.coordinator.boxes_for(roster, self._some("bundles", data), name)
                answer = machine.accept_bundles(boxes)
            elif step == "ready":
                machine.accept_ready(self._some("ready", data))
                machine.begin_update(*this.updates[name])
                this.chunks[name] = [machine.masked_chunk(k) for k in range(this.parameters.chunk_count)]
                answer = machine.finish_update()
            elif step == "list":
                answer = machine.sign_list(self._some("update", data))
            elif step == "sketch":
                answer = machine.show_sketch(self._some("list", data))
            elif step == "second":
                answer = machine.sign_second(self._some("sketch", data))
            elif step == "unmask":
                answer = machine.unmask(self._some("list", data), self._some("second", data))
            elif step == "nonce":
                published = self._publish()
                machine.agree(self._some("list", data), self._some("second", data))
                answer = machine.open_nonce(published)
            elif step == "check":
                answer = machine.send_check(self._some("nonce", data))
            else:
                self._believe(name, data)
                return
        except (ProtocolViolation, NotEnoughShares):
            return
        except this.Killed:
            this.journals[name].kill_at = None
            this.machines[name] = this.rebuild(name)
            return
        kind = {"roster": "bundles", "bundles": "ready", "ready": "update"}.get(step, step)
        assert self.said.setdefault((self.at, kind, name), answer).payload == answer.payload
        this.mail[kind][name] = answer

    def _publish(self) -> str:
        """The portal publishes the sum, or another one. Its digest."""
        this = self.this
        this.publish(spoil=self.added)
        self.sums[this.published] = this.shown
        return this.published

    def _believe(self, name: str, data: st.DataObject | None) -> None:
        """What a silo believes of the sum for which it opened its nonce: only that it is the sum of the list."""
        opened = self.said.get((self.at, "nonce", name))
        body, tail = ([], self.this.updates[name][1]) if opened is None else self.sums[Nonce.parse(opened.payload).sum]
        assert self.this.machines[name].verify_sum(self._some("check", data), body, tail)
        plain_body, plain_tail = self.this.plain(self.this.removal().members)
        assert (body[0].tolist(), tail.tolist()) == (plain_body.tolist(), plain_tail.tolist())

    def _some(self, kind: str, data: st.DataObject | None) -> list[Envelope]:
        """Messages of one kind: all of this attempt, or without some of them, or with one twice or of an older attempt."""
        have = self.this.relayed(kind)
        if data is None or not have:
            return have
        gone = data.draw(st.sampled_from([0, 0, 0, 1, 1, 2]), label=f"{kind} held back")
        kept = data.draw(st.permutations(have), label=kind)[min(gone, len(have) - 1) :]
        more = have + self.old.get(kind, [])
        return [*kept, data.draw(st.sampled_from(more))] if data.draw(st.integers(0, 9)) == 0 else kept

    # --- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def no_silo_reveals_both_kinds_of_share(self) -> None:
        for (_, kind, _), envelope in getattr(self, "said", {}).items():
            if kind == "unmask":
                message = Unmask.parse(envelope.payload)
                assert not set(message.self_shares) & set(message.list_shares)

    @invariant()
    def no_owners_two_secrets_can_both_be_rebuilt(self) -> None:
        shares: dict[tuple[Any, str, str], set[str]] = {}
        for (at, kind, holder), envelope in getattr(self, "said", {}).items():
            if kind == "unmask":
                message = Unmask.parse(envelope.payload)
                for what, row in (("self", message.self_shares), ("list", message.list_shares)):
                    for owner in row:
                        shares.setdefault((at, owner, what), set()).add(holder)
        t = threshold(3)  # of the smallest roster that the manifest allows: the least that could ever suffice
        for (at, owner, what), holders in shares.items():
            if what == "self":
                assert min(len(holders), len(shares.get((at, owner, "list"), ()))) < t

    @invariant()
    def nobody_signs_two_lists_of_one_round(self) -> None:
        lists: dict[tuple[int, str], set[tuple[Any, ...]]] = {}
        seconds: dict[tuple[int, str], set[tuple[str, ...]]] = {}
        for (at, kind, name), envelope in getattr(self, "said", {}).items():
            if kind == "list":
                message = ListSignature.parse(envelope.payload)
                said = (message.ctx, message.members, message.ready_set, message.updates)
                lists.setdefault((at[0], name), set()).add(said)
            elif kind == "second":
                seconds.setdefault((at[0], name), set()).add(SecondList.parse(envelope.payload).members)
        assert all(len(said) == 1 for said in (*lists.values(), *seconds.values()))

    @invariant()
    def the_sum_is_that_of_the_list(self) -> None:
        this = getattr(self, "this", None)
        if this is None or not this.mail["unmask"]:
            return
        try:
            removal = this.removal()
        except (ProtocolViolation, NotEnoughShares):
            return
        for found, wanted in zip(this.sum(removal), this.plain(removal.members), strict=True):
            assert found.tolist() == wanted.tolist()


def test_no_schedule_of_messages_reveals_more_than_one_sum(world):
    machine = type("Schedules", (Schedules,), {"World": world})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
