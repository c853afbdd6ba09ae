"""Step 5 of a silo's sparse round: as in the dense protocol, under the masks of the neighbours in R."""

from __future__ import annotations

from protocol import canonical
from protocol.secure_aggregation.masking import Masks
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.sparse.attempt import SparseAttempt
from protocol.secure_aggregation.sparse.messages import SparseUpdate
from protocol.secure_aggregation.upload import Upload
from protocol.signing import Envelope


class SparseUpload(SparseAttempt, Upload):
    """`begin_update()`, `masked_chunk(k)`, `finish_update()`."""

    def finish_update(self) -> Envelope:
        """Sign R's root and the digests of all chunks; chunks that this process did not mask are masked again."""
        with self._lock:
            self._secrets("finish_update()")
            self._records.need("words", "finish_update()")
            record = self._records.read("update")
            if record is None:
                for k in range(self.parameters.chunk_count):
                    if k not in self._digests:
                        self.masked_chunk(k)
                sent = self._seal(
                    SparseUpdate,
                    roster=self._root("finish_update()"),
                    ready_set=self._records.need("ready", "finish_update()")["root"],
                    chunks=tuple(self._digests[k] for k in range(self.parameters.chunk_count)),
                )
                record = {"sent": envelope_out(sent)}
                self._records.write("update", record)
            return envelope_in(record["sent"])

    def _need_masks(self) -> Masks:
        with self._lock:
            if self._masks is None:
                own = self._secrets("masked_chunk()")
                self._records.need("words", "masked_chunk()")
                seeds = self._records.need("bundles", "masked_chunk()")["seeds"]
                members = self._records.need("ready", "masked_chunk()")["members"]
                # Names are sorted as positions are, so they compare alike.
                self._masks = Masks.build(
                    self._ctx,
                    self_plus=[canonical.unb64(own["self"])],
                    pair_plus=[canonical.unb64(seeds[silo]) for silo in members if silo > self.silo],
                    pair_minus=[canonical.unb64(seeds[silo]) for silo in members if silo < self.silo],
                )
            return self._masks
