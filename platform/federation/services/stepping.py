"""The server step, a piece at a time: each task that makes a piece of the sum makes the same piece of the next model.

The next model grows in one file beside the models, each piece written at its own place, so pieces may come in any order
and twice. Only when all are there is its front written, because the scales of the next round follow from the whole sum;
then it is hashed and given its name (finishing.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from federation import conf
from federation.models import Round
from federation.services.facts import facts_of, parameters_of
from federation.services.models import front_of
from federation.storage import StorageFull, is_full, model_path
from protocol.model_state import BLOCK, stretches
from protocol.secure_aggregation.scales import cut
from protocol.secure_aggregation.words import Lanes
from protocol.server_step import apply, check_range


def growing_path(round_key: str) -> Path:
    """Where the next model of a round grows."""
    return conf.model_folder() / f".next-{round_key}"


def step_piece(item: Round, index: int, summed: Lanes) -> None:
    """Make what goes with piece `index` of the sum in the next model, from the piece without masks (lanes).

    Raises ServerStepError where a word is out of the range that the members' clipped updates can reach; StorageFull.
    """
    facts, front = facts_of(item.manifest_digest), front_of(item.model_digest or "")
    segments = facts.fixed.segments(front.table, front.scales)
    _, start, stop = parameters_of(item).chunk_range(index)
    here = tuple(cut(segments, start, stop))
    weights = [facts.weights[silo] for silo in item.members or ()]
    bounds, bits = facts.fixed.word_bounds(here, weights), facts.fixed.word_bits
    check_range(summed, here, bounds, offset=start, word_bits=bits)
    with model_path(item.model_digest or "").open("rb", buffering=0) as old, growing(item) as new:
        for values, changed in stretches(front.table, start, stop):
            step = BLOCK if changed is None else values.stop - values.start
            for low in range(values.start, values.stop, step):
                old.seek(len(front.header) + 4 * low)
                state = np.fromfile(old, dtype="<f4", count=min(step, values.stop - low))
                if changed is not None:
                    apply(
                        state,
                        summed[changed.start - start : changed.stop - start],
                        tuple(cut(segments, changed.start, changed.stop)),
                        total_weight=item.total_weight or 0,
                        server_lr=facts.server_lr,
                        word_bits=bits,
                        out=state,
                    )
                write_at(new, memoryview(state).cast("B"), len(front.header) + 4 * low)


@contextmanager
def growing(item: Round) -> Iterator[int]:
    """The handle of the growing file, made where it is missing. Raises StorageFull."""
    handle = os.open(growing_path(item.key), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield handle
    except OSError as error:
        if is_full(error):
            raise StorageFull(f"the disk of {conf.model_folder()} is full; free some space") from error
        raise
    finally:
        os.close(handle)


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """All of `data` at its place."""
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
