"""Step 5 of a silo's sparse round: as in the dense protocol, under the masks of the neighbours in R."""

from __future__ import annotations

from protocol.secure_aggregation.sparse.attempt import SparseAttempt
from protocol.secure_aggregation.sparse.messages import SparseUpdate
from protocol.secure_aggregation.upload import Upload
from protocol.signing import Envelope


class SparseUpload(SparseAttempt, Upload):
    """`begin_update()`, `masked_chunk(k)`, `finish_update()`."""

    def _signed_update(self, digests: tuple[str, ...]) -> Envelope:
        return self._seal(
            SparseUpdate,
            roster=self._root("finish_update()"),
            ready_set=self._records.need("ready", "finish_update()")["root"],
            chunks=digests,
        )

    def _pair_seeds(self) -> dict[str, str]:
        seeds = self._records.need("bundles", "masked_chunk()")["seeds"]
        members = self._records.need("ready", "masked_chunk()")["members"]
        return {silo: seeds[silo] for silo in members if silo != self.silo}
