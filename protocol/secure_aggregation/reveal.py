"""Steps 5, 7 and 9 of a silo's round: what it signs and reveals once updates are in, each once."""

from __future__ import annotations

from collections.abc import Iterable

from protocol import canonical
from protocol.messages import ListSignature, MessageError, State, TableRow, Unmask
from protocol.model_state import TensorSpec
from protocol.secure_aggregation import sets
from protocol.secure_aggregation.attempt import Attempt
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sets import ListView, ReadyView, RosterView
from protocol.signing import Envelope


class Reveal(Attempt):
    """`sign_list()`, `unmask()`, `sign_state()`."""

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

    # --- 7. unmask ---------------------------------------------------------------------------------------------------

    def unmask(self, list_envelopes: Iterable[Envelope]) -> Envelope:
        """Reveal, once a round: shares of b for the members of the signed list, of K for the rest of R.

        A silo that did not sign the list itself (too late, or its update never arrived) may reveal too: t signatures
        prove that no other list can have as many. It spends the round with it.

        Raises:
            ProtocolViolation: TWO_LISTS (not the list this silo signed), ROUND_SPENT, TOO_FEW_KNOWN,
                OTHER_LIST_UNMASKED, and what `sets.read_lists` raises.
            StudyPaused: as `sign_list`.
        """
        with self._lock:
            self._secrets("unmask()")
            self._records.need("ready", "unmask()")
            roster, ready = self._need_roster("unmask()"), self._need_ready("unmask()")
            view = sets.read_lists(self.parameters, roster, ready, list_envelopes)
            self._check_known(view.members, "list")
            signed = self._records.read("list")
            if signed is not None and signed["facts"] != view.facts():
                raise ProtocolViolation("TWO_LISTS", "this is not the list that this silo signed; nothing is revealed")
            if self.silo in view.members:
                self._records.need("update", "unmask() of a list that names this silo")
            # Raises for another list than the one that spent the round, so a record found below is of this list.
            self._spend(roster, view)
            record = self._records.read("unmask")
            if record is None:
                record = {"sent": envelope_out(self._shares(roster, ready, view))}
                self._ledger.unmask(self.parameters.round, self._model(), list(view.members))
                self._records.write("unmask", record)
            return envelope_in(record["sent"])

    def _shares(self, roster: RosterView, ready: ReadyView, view: ListView) -> Envelope:
        opened = dict(self._records.need("bundles", "unmask()")["opened"])
        opened[self.silo] = self._records.need("roster", "unmask()")
        return self._seal(
            Unmask,
            roster=roster.digest,
            self_shares={silo: canonical.unb64(opened[silo]["self_share"]) for silo in view.members},
            list_shares={
                silo: canonical.unb64(opened[silo]["list_share"]) for silo in ready.members if silo not in view.members
            },
        )

    # --- 9. state ----------------------------------------------------------------------------------------------------

    def sign_state(self, digest: str, table: Iterable[TensorSpec | TableRow] | None = None) -> Envelope:
        """Sign the digest of the model state that this silo computed itself, once an attempt.

        Parameters:
            digest: "sha256:<64 hex>" of the state.
            table: only, and always, in the round that makes the first model: its tensors.

        Raises:
            ProtocolViolation: SECOND_STATE, OUT_OF_STAGE (not in a roster), BAD_STATE.
        """
        with self._lock:
            if (table is None) != (self.parameters.model is not None):
                raise ProtocolViolation("BAD_STATE", "a table is signed with the first model, and only with it")
            if table is None:
                self._secrets("sign_state()")
                roster, rows = self._need_roster("sign_state()").digest, None
            else:
                self._check_current()
                roster, rows = None, tuple(TableRow(row.name, tuple(row.shape), row.kind) for row in table)
            try:
                message = self._seal(State, roster=roster, state=digest, table=rows)
            except MessageError as error:
                raise ProtocolViolation("BAD_STATE", str(error)) from error
            record = {"sent": envelope_out(message)}
            before = self._records.read("state")
            if before is None:
                self._records.write("state", record)
            elif before != record:
                raise ProtocolViolation("SECOND_STATE", "this silo already signed another state in this attempt")
            return message
