"""Step 7 of a silo's round: the one list that is summed, and the shares that take its masks away, each once."""

from __future__ import annotations

from collections.abc import Iterable

from protocol import canonical
from protocol.messages import Unmask
from protocol.secure_aggregation import checks
from protocol.secure_aggregation.attempt import Attempt
from protocol.secure_aggregation.checks import FinalList
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sets import ListView, ReadyView, RosterView
from protocol.signing import Envelope


class Reveal(Attempt):
    """`agree()`, `unmask()`."""

    def agree(self, list_envelopes: Iterable[Envelope], second_envelopes: Iterable[Envelope] = ()) -> tuple[str, ...]:
        """Accept the one list that is summed, once a round, on the signatures of t of its members.

        A silo that did not sign it itself (too late, or its update never arrived) may accept it too: t signatures prove
        that no other list can have as many. It spends the round with it.

        Parameters:
            list_envelopes: signed L1.   second_envelopes: signed L2, where the manifest has the sketch check.

        Returns:
            the members, sorted.

        Raises:
            ProtocolViolation: TWO_LISTS (not the list this silo signed or accepted), ROUND_SPENT, TOO_FEW_KNOWN,
                OTHER_LIST_UNMASKED, and what `checks.read_final` raises.
            StudyPaused: as `sign_list`.
        """
        with self._lock:
            self._secrets("agree()")
            self._records.need("ready", "agree()")
            roster, ready = self._need_roster("agree()"), self._need_ready("agree()")
            final = checks.read_final(self.parameters, roster, ready, list_envelopes, second_envelopes)
            self._check_known(final.members, "list")
            signed = self._records.read("list")
            if signed is not None and signed["facts"] != final.first.facts():
                raise ProtocolViolation("TWO_LISTS", "this is not the list that this silo signed; nothing is revealed")
            second = self._records.read("second")
            if second is not None and second["sketches"] != final.sketches:
                raise ProtocolViolation("TWO_LISTS", "this is not the second list that this silo signed")
            if self.silo in final.members:
                self._records.need("update", "agree() to a list that names this silo")
            # Raises for another list than the one that spent the round, so a record found below is of this list.
            self._spend(roster, final.first)
            self._ledger.check_members(self._model(), list(final.members))
            facts = {
                "members": list(final.members),
                "first": final.first.facts(),
                "sketches": final.sketches,
            }
            before = self._records.read("final")
            if before is None:
                self._records.write("final", facts)
            elif before != facts:
                raise ProtocolViolation("TWO_LISTS", "this silo already accepted another list in this round")
            return final.members

    # --- 7. unmask ---------------------------------------------------------------------------------------------------

    def unmask(self, list_envelopes: Iterable[Envelope], second_envelopes: Iterable[Envelope] = ()) -> Envelope:
        """Reveal, once a round: shares of b for the members of the list that is summed, of K for the rest of R.

        Parameters and errors: as `agree`.
        """
        with self._lock:
            self.agree(list_envelopes, second_envelopes)
            final = self._final("unmask()")
            record = self._records.read("unmask")
            if record is None:
                roster, ready = self._need_roster("unmask()"), self._need_ready("unmask()")
                record = {"sent": envelope_out(self._shares(roster, ready, final))}
                self._ledger.unmask(self.parameters.round, self._model(), list(final.members))
                self._records.write("unmask", record)
            return envelope_in(record["sent"])

    def _shares(self, roster: RosterView, ready: ReadyView, final: FinalList) -> Envelope:
        opened = dict(self._records.need("bundles", "unmask()")["opened"])
        opened[self.silo] = self._records.need("roster", "unmask()")
        return self._seal(
            Unmask,
            roster=roster.digest,
            self_shares={silo: canonical.unb64(opened[silo]["self_share"]) for silo in final.members},
            list_shares={
                silo: canonical.unb64(opened[silo]["list_share"]) for silo in ready.members if silo not in final.members
            },
        )

    def _final(self, call: str) -> FinalList:
        record = self._records.need("final", call)
        first = ListView(tuple(record["first"]["members"]), record["first"]["ready_set"], record["first"]["updates"])
        return FinalList(tuple(record["members"]), first, record["sketches"])
