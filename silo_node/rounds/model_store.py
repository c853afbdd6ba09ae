"""FOLDER/models: model states by digest. A state is either downloaded or made here, and is checked before it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from protocol.initial_model import initial_state, pretrained_state
from protocol.model_state import ModelState, StateError, Table, digest_of, header_bytes
from protocol.secure_aggregation.scales import FixedPoint
from protocol.secure_aggregation.words import Lanes
from protocol.server_step import apply_whole, next_scales
from silo_node.egress import Egress
from silo_node.errors import AnswerNotGenuine, DiskFull, is_disk_full
from silo_node.files import replacing, write_json

MAX_CHUNKS: Final = 4096
"""Of 4 MiB each: 16 GiB is the largest model that is fetched."""


class ModelStore:
    """Model states of one silo. Only the main process writes here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._checked: set[str] = set()

    def path(self, digest: str) -> Path:
        """Where the state of this digest lies, or would."""
        return self._folder / (digest.removeprefix("sha256:") + ".state")

    def ensure(self, digest: str, egress: Egress, *, round_id: str) -> ModelState:
        """The state of `digest`, from here or from the portal; its bytes have that digest.

        Raises: PortalError, PortalRefused, AnswerNotGenuine (other bytes came), DiskFull, StateError.
        """
        path = self.path(digest)
        if digest not in self._checked and not (path.exists() and _digest_of_file(path) == digest):
            self._fetch(digest, egress, round_id)
        self._checked.add(digest)
        return ModelState.load(path)

    def make_initial(self, table: Table, seed: int, fixed: FixedPoint) -> str:
        """Draw the first model from its seed, keep it, and return its digest."""
        return self._keep(initial_state(table, seed, scales=fixed.initial(table)))

    def make_pretrained(self, table: Table, model: str, fixed: FixedPoint, egress: Egress, *, round_id: str) -> str:
        """Fetch the model that the manifest names, put it into the network's order, and return the digest of that.

        Raises: what `ensure` raises; StateError where its tensors are not the network's.
        """
        given = self.ensure(model, egress, round_id=round_id)
        state = pretrained_state(table, given, scales=fixed.initial(table))
        return model if state.digest == model else self._keep(state)

    def make_next(
        self,
        model: str,
        summed: Lanes,
        fixed: FixedPoint,
        *,
        total_weight: int,
        server_lr: float,
    ) -> str:
        """Apply the server step to `model` with the published sum (lanes [d]), keep the next state, return its digest.

        Raises: ServerStepError, StateError, ScalesError, DiskFull.
        """
        state = ModelState.load(self.path(model))
        segments = fixed.segments(state.table, state.scales)
        scales = next_scales(fixed, state.table, state.scales, summed, total_weight=total_weight)
        header = header_bytes(state.table, scales)
        beside = self._folder / f".next.{os.getpid()}.tmp"
        try:
            with beside.open("wb") as file:
                file.write(header)
                # The blocks are reserved now: writing to a sparse map on a full disk would end the process by a signal.
                os.posix_fallocate(file.fileno(), 0, state.length)
            vector = np.memmap(beside, dtype="<f4", mode="r+", offset=len(header), shape=state.vector.shape)
            apply_whole(
                state.table,
                state.vector,
                summed,
                segments,
                total_weight=total_weight,
                server_lr=server_lr,
                word_bits=fixed.word_bits,
                out=vector,
            )
            digest = digest_of(header, vector)
            beside.replace(self.path(digest))
        except OSError as error:
            _refuse_when_full(error)
            raise
        finally:
            beside.unlink(missing_ok=True)
        self._checked.add(digest)
        return digest

    def note_signers(self, digest: str, needed: int) -> None:
        """Keep how many silos must have signed this model: t of the roster in whose round it was made here."""
        write_json(self.path(digest).with_suffix(".json"), {"signers": needed}, sync=False)

    def keep_only(self, digests: Iterable[str]) -> None:
        """Remove every other state."""
        kept = {self.path(digest).stem for digest in digests}
        for path in self._folder.iterdir():
            if path.stem not in kept and not path.name.startswith("."):
                path.unlink()
        self._checked &= {f"sha256:{stem}" for stem in kept}

    def _keep(self, state: ModelState) -> str:
        digest = state.digest
        try:
            state.save(self.path(digest))
        except OSError as error:
            _refuse_when_full(error)
            raise
        self._checked.add(digest)
        return digest

    def _fetch(self, digest: str, egress: Egress, round_id: str) -> None:
        address = f"/api/v1/models/{digest.removeprefix('sha256:')}"
        state, chunks, k = hashlib.sha256(), 1, 0
        with replacing(self.path(digest)) as file:
            while k < chunks:
                answer = egress.get(address, kind="model", query={"chunk": k}, round_id=round_id)
                chunks = _count(answer.headers.get("x-chunks"))
                state.update(answer.body)
                file.write(answer.body)
                k += 1
            if "sha256:" + state.hexdigest() != digest:
                raise AnswerNotGenuine(
                    "the model that the portal sent is not the one that it announced; nothing was kept"
                )


def _count(text: str | None) -> int:
    if text is None or not text.isdecimal() or not 1 <= int(text) <= MAX_CHUNKS:
        raise StateError("the portal does not say in how many pieces the model comes")
    return int(text)


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_when_full(error: OSError) -> None:
    if is_disk_full(error):
        raise DiskFull("no room for the next model: make room; the state of the round is kept") from error
