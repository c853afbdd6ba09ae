"""Step 4 of a silo's round: the quantised update goes into the journal, then out under its masks, chunk by chunk."""

from __future__ import annotations

import hmac

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.messages import Update
from protocol.secure_aggregation.attempt import Attempt
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.masking import Masks, masked
from protocol.secure_aggregation.records import envelope_in, envelope_out
from protocol.secure_aggregation.words import Lanes, lane
from protocol.signing import Envelope


class Upload(Attempt):
    """`begin_update()`, `masked_chunk(k)`, `finish_update()`."""

    # --- 4. update ---------------------------------------------------------------------------------------------------

    @property
    def update_begun(self) -> bool:
        """Whether the journal holds the update, so that nothing may be quantised again in this attempt."""
        return self._records.read("words") is not None

    def begin_update(self, words: Lanes, tail: NDArray[np.uint64]) -> None:
        """Journal the quantised update; only then may a chunk leave. Never a second vector under the same masks.

        Parameters:
            words: shape d, lane(word_bits): the quantised body.
            tail: shape t, uint64.

        Raises:
            ProtocolViolation: SECOND_UPDATE where another vector was journaled; BAD_UPDATE for another shape or type.
        """
        with self._lock:
            self._secrets("begin_update()")
            self._records.need("ready", "begin_update()")
            wanted = lane(self.parameters.word_bits)
            if words.shape != (self.parameters.words,) or words.dtype != wanted:
                raise ProtocolViolation("BAD_UPDATE", f"the body must be {self.parameters.words} words of {wanted}")
            if tail.shape != (self.parameters.tail,) or tail.dtype != np.dtype("<u8"):
                raise ProtocolViolation("BAD_UPDATE", f"the tail must be {self.parameters.tail} words of 64 bits")
            chunks = []
            for k in range(self.parameters.chunk_count):
                kind, start, stop = self.parameters.chunk_range(k)
                chunks.append((words if kind == "body" else tail)[start:stop])
            if self._records.read("words") is None:
                if self._records.chunk(0) is not None:
                    self._records.drop_chunks()
                for k, chunk in enumerate(chunks):
                    self._records.put_chunk(k, chunk.tobytes())
                self._records.write("words", {"chunks": len(chunks)})
            elif not all(
                hmac.compare_digest(self._records.chunk(k) or b"", chunk.tobytes()) for k, chunk in enumerate(chunks)
            ):
                raise ProtocolViolation(
                    "SECOND_UPDATE",
                    "another update was journaled in this attempt; two under one mask leak their difference",
                )

    def masked_chunk(self, k: int) -> bytes:
        """Chunk k under its masks, packed; always the same bytes. May be called in any order and from several threads.

        Raises:
            ProtocolViolation: OUT_OF_STAGE before `begin_update`.
            IndexError: there is no chunk k.
        """
        self._check_current()
        _, start, stop = self.parameters.chunk_range(k)
        masks = self._need_masks()
        words = self._records.chunk(k)
        if words is None:
            raise ProtocolViolation("ROUND_OVER", "the words of this attempt are gone")
        if len(words) != (stop - start) * lane(self.parameters.bits(k)).itemsize:
            raise ProtocolViolation("BAD_UPDATE", f"the journaled chunk {k} has another length; it is not sent")
        chunk, digest = masked(self.parameters, masks, k, words)
        self._digests[k] = digest
        return chunk

    def finish_update(self) -> Envelope:
        """Sign R and the digests of all chunks; chunks that this process did not mask are masked again."""
        with self._lock:
            self._secrets("finish_update()")
            self._records.need("words", "finish_update()")
            record = self._records.read("update")
            if record is None:
                for k in range(self.parameters.chunk_count):
                    if k not in self._digests:
                        self.masked_chunk(k)
                digests = tuple(self._digests[k] for k in range(self.parameters.chunk_count))
                record = {"sent": envelope_out(self._signed_update(digests))}
                self._records.write("update", record)
            return envelope_in(record["sent"])

    def _need_masks(self) -> Masks:
        with self._lock:
            if self._masks is None:
                own = self._secrets("masked_chunk()")
                self._records.need("words", "masked_chunk()")
                seeds = {silo: canonical.unb64(seed) for silo, seed in self._pair_seeds().items()}
                # Members are sorted as the roster is, so names compare like indices.
                self._masks = Masks.build(
                    self._ctx,
                    self_plus=[canonical.unb64(own["self"])],
                    pair_plus=[seed for silo, seed in seeds.items() if silo > self.silo],
                    pair_minus=[seed for silo, seed in seeds.items() if silo < self.silo],
                )
            return self._masks

    # --- what differs where there are many silos ---------------------------------------------------------------------

    def _signed_update(self, digests: tuple[str, ...]) -> Envelope:
        """The last message of the upload, over R and the digests of all chunks."""
        ready = self._need_ready("finish_update()")
        return self._seal(
            Update,
            roster=self._need_roster("finish_update()").digest,
            ready_set=ready.digest,
            members=ready.members,
            chunks=digests,
        )

    def _pair_seeds(self) -> dict[str, str]:
        """silo -> pair seed (base64) of those of R with whom this silo masks."""
        opened = self._records.need("bundles", "masked_chunk()")["opened"]
        members = self._need_ready("masked_chunk()").members
        return {silo: opened[silo]["seed"] for silo in members if silo != self.silo}
