"""The silo's side of a round with many silos.

    keys() -> accept_roster() -> accept_neighbours() -> accept_bundles() -> accept_ready()
           -> begin_update(), masked_chunk(k).., finish_update() -> sign_list() -> unmask()
           -> agree() -> open_nonce() -> send_check() -> verify_sum() -> sign_state() -> destroy()

`accept_list()` stands in for what a silo that was away missed between its update and the sum.

No I/O but the journal, which is written before each step has its effect; as in the dense protocol, a step called again
with the same input gives the same bytes, and with other input it raises.
"""

from __future__ import annotations

from protocol.secure_aggregation.sparse.checking import SparseChecking
from protocol.secure_aggregation.sparse.set_up import SparseSetUp
from protocol.secure_aggregation.sparse.upload import SparseUpload


class SparseRound(SparseSetUp, SparseUpload, SparseChecking):
    """One silo in one attempt of one round; parameters as for the dense `SiloRound`, with `SparseParameters`.

    Every method raises `ProtocolViolation(code, sentence)` when it is called out of stage or given content that the
    protocol forbids; then nothing was done and nothing revealed.
    """

    def destroy(self) -> None:
        """End the attempt: its secrets are gone from journal and memory. What was signed and spent stays known."""
        with self._lock:
            self._records.destroy()
            self._masks = None
            self._digests.clear()
