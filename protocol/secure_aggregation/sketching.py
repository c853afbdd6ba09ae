"""Steps 5 and 6 of a silo's round: the first list, the sketch that it opens the way to, and the second list.

A silo shows one sketch a round: 256 numbers about its update, for t signatures on the list that it signed itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protocol import canonical
from protocol.messages import ListSignature, SecondList, Sketch
from protocol.secure_aggregation import checks, sets, sketch
from protocol.secure_aggregation.attempt import Attempt
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sets import ListView
from protocol.signing import Envelope


class Sketching(Attempt):
    """`sign_list()`, `show_sketch()`, `sign_second()`."""

    # --- 5. first list -----------------------------------------------------------------------------------------------

    def sign_list(self, update_envelopes: Iterable[Envelope]) -> Envelope:
        """Sign the list of those whose update is complete, once a round over all attempts. Spends (study, round).

        Raises:
            ProtocolViolation: LEFT_OUT, OTHER_MESSAGE (not the update this silo signed), TOO_FEW_KNOWN, SECOND_LIST,
                ROUND_SPENT, OTHER_LIST_UNMASKED, and what `sets.read_updates` raises.
            StudyPaused: three lists were already signed for this model state.
        """
        with self._lock:
            own = self._secrets("sign_list()")
            sent = envelope_in(self._records.need("update", "sign_list()")["sent"])
            roster, ready = self._need_roster("sign_list()"), self._need_ready("sign_list()")
            updates = list(update_envelopes)
            view = sets.read_updates(self.parameters, roster, ready, updates)
            self._check_own(view.members, updates, sent, "list")
            self._check_known(view.members, "list")
            record = self._records.read("list")
            if record is None:
                self._spend(roster, view)
                message = self._seal(
                    ListSignature,
                    roster=roster.digest,
                    members=view.members,
                    ready_set=view.ready_set,
                    updates=view.updates,
                    nonce=canonical.unb64(own["nonces"][0]),
                )
                record = {"facts": view.facts(), "sent": envelope_out(message)}
                self._records.write("list", record)
            if record["facts"] != view.facts():
                raise ProtocolViolation("SECOND_LIST", "this silo already signed another list in this round")
            return envelope_in(record["sent"])

    # --- 6. sketch ---------------------------------------------------------------------------------------------------

    def show_sketch(self, list_envelopes: Iterable[Envelope]) -> Envelope:
        """Show the sketch of the journaled update, once a round, under the seed of the nonces that come with t lists.

        Raises:
            ProtocolViolation: NO_SKETCH (the manifest asks for none), TWO_LISTS (not the list this silo signed),
                SECOND_SKETCH (other nonces than those accepted before), and what `sets.read_lists` raises.
        """
        with self._lock:
            self._secrets("show_sketch()")
            terms = checks.terms_of(self.parameters)
            signed = self._records.need("list", "show_sketch()")
            roster, ready = self._need_roster("show_sketch()"), self._need_ready("show_sketch()")
            view, nonces = checks.sketch_nonces(self.parameters, roster, ready, list_envelopes)
            if signed["facts"] != view.facts():
                raise ProtocolViolation("TWO_LISTS", "this is not the list that this silo signed; no sketch is shown")
            record = self._records.read("sketch")
            if record is None:
                sums = sketch.sketch(nonces.seed, terms.segments, self._own_body(), word_bits=self.parameters.word_bits)
                message = self._seal(
                    Sketch,
                    roster=roster.digest,
                    first_list=view.digest,
                    nonces=nonces.digest,
                    sums=sums.astype("<i8").tobytes(),
                )
                record = {
                    "nonces": nonces.digest,
                    "seed": canonical.b64(nonces.seed),
                    "sent": envelope_out(message),
                }
                self._records.write("sketch", record)
            if record["nonces"] != nonces.digest:
                raise ProtocolViolation("SECOND_SKETCH", "this silo already showed a sketch under another seed")
            return envelope_in(record["sent"])

    # --- 6. second list ----------------------------------------------------------------------------------------------

    def sign_second(self, sketch_envelopes: Iterable[Envelope]) -> Envelope:
        """Apply the manifest's rule to all sketches and sign whom it leaves in the sum, once a round.

        Raises:
            ProtocolViolation: LEFT_OUT, OTHER_MESSAGE (not the sketch this silo showed), EXCLUDED (by the rule), TOO_FEW_KNOWN,
                SECOND_LIST, OTHER_LIST_UNMASKED, and what `checks.read_sketches` and `checks.apply_rule` raise.
        """
        with self._lock:
            self._secrets("sign_second()")
            shown = self._records.need("sketch", "sign_second()")
            roster, first = self._need_roster("sign_second()"), self._first_list("sign_second()")
            envelopes = list(sketch_envelopes)
            sketches = checks.read_sketches(self.parameters, roster, first, shown["nonces"], envelopes)
            self._check_own(sketches.sums, envelopes, envelope_in(shown["sent"]), "set of sketches")
            verdict = checks.apply_rule(self.parameters, roster, sketches)
            if self.silo not in verdict.members:
                raise ProtocolViolation("EXCLUDED", f"the sketch check leaves out {self.silo}; it signs no second list")
            self._check_known(verdict.members, "second list")
            self._ledger.check_members(self._model(), list(verdict.members))
            record = self._records.read("second")
            if record is None:
                total = checks.total_of(sketches, verdict.members)
                message = self._seal(
                    SecondList,
                    roster=roster.digest,
                    members=verdict.members,
                    first_list=first.digest,
                    sketches=sketches.digest,
                )
                record = {
                    "sketches": sketches.digest,
                    "total": canonical.b64(total.astype("<i8").tobytes()),
                    "sent": envelope_out(message),
                }
                self._records.write("second", record)
            if record["sketches"] != sketches.digest:
                raise ProtocolViolation("SECOND_LIST", "this silo already signed a second list over other sketches")
            return envelope_in(record["sent"])

    def _first_list(self, call: str) -> ListView:
        facts: dict[str, Any] = self._records.need("list", call)["facts"]
        return ListView(tuple(facts["members"]), facts["ready_set"], facts["updates"])
