"""The silo's side of a round: checks everything that comes in, and reveals nothing that could open one update.

    keys() -> accept_roster() -> accept_bundles() -> accept_ready()
           -> begin_update(), masked_chunk(k).., finish_update()
           -> sign_list() [-> show_sketch() -> sign_second()] -> unmask()
           -> open_nonce() -> send_check() -> verify_sum() -> sign_state() -> destroy()

What stands in brackets is there where the manifest has the sketch check. `agree()` stands in for what a silo that was
away missed between its update and the sum.

No I/O but the journal, which is written before each step has its effect. A `SiloRound` holds no state of its own that
matters: after a crash a new one over the same journal goes on, and a step called again with the same input gives the
same bytes. With other input it raises: a silo takes one roster, one set R and one update an attempt, and signs one list
a round over all attempts.
"""

from __future__ import annotations

from protocol.secure_aggregation.checking import Checking
from protocol.secure_aggregation.set_up import SetUp
from protocol.secure_aggregation.sketching import Sketching
from protocol.secure_aggregation.upload import Upload


class SiloRound(SetUp, Upload, Sketching, Checking):
    """One silo in one attempt of one round.

    Parameters:
        parameters: from the approved manifest and the verified announcement, never from the portal alone.
        silo: this silo's name in the manifest.
        key: this silo's signing key; its public half must be the manifest's.
        journal: durable storage; what it holds decides.
        known_partners: keyids (64 hex, `protocol.signing.keyid`) of partners whose key fingerprints this hospital
            compared itself, from its policy. Keyids, not names: a name can be given to any key.
        min_known: how many of them, besides this silo, must be in the masked set and in the summed list.

    Every method raises `ProtocolViolation(code, sentence)` when it is called out of stage or given content that the
    protocol forbids; then nothing was done and nothing revealed. OLD_ROUND: a newer attempt was joined. ROUND_OVER:
    this attempt's secrets are gone.
    """

    def destroy(self) -> None:
        """End the attempt: its secrets are gone from journal and memory. What was signed and spent stays known."""
        with self._lock:
            self._records.destroy()
            self._roster = self._ready = self._masks = None
            self._digests.clear()
