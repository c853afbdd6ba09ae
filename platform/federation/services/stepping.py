"""The server step, a piece at a time: each task that makes a piece of the sum makes the same piece of the next model.

The next model grows in one file beside the models, each piece written at its own place, so pieces may come in any order
and twice. Only when all are there is it hashed and given its name (finishing.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from federation import conf
from federation.models import Round
from federation.services.facts import facts_of, parameters_of
from federation.services.models import model_header
from federation.storage import StorageFull, is_full, model_path
from protocol.secure_aggregation.words import Lanes
from protocol.server_step import apply, check_range, word_bound


def growing_path(round_key: str) -> Path:
    """Where the next model of a round grows."""
    return conf.model_folder() / f".next-{round_key}"


def step_piece(item: Round, index: int, summed: Lanes) -> None:
    """Make piece `index` of the next model from the same piece of the sum, masks removed (lanes, shape of the piece).

    Raises ServerStepError where a word is out of the range that the members' clipped updates can reach; StorageFull.
    """
    facts = facts_of(item.manifest_digest)
    weights = [facts.weights[silo] for silo in item.members or ()]
    _, start, stop = parameters_of(item).chunk_range(index)
    bound = word_bound(weights, clip_norm=facts.clip_norm, fraction_bits=facts.fraction_bits)
    check_range(summed, bound, offset=start, word_bits=facts.word_bits)
    before = model_path(item.model_digest or "")
    header = model_header(before)
    with before.open("rb", buffering=0) as old:
        old.seek(len(header) + 4 * start)
        state = np.fromfile(old, dtype="<f4", count=stop - start)
    apply(
        state,
        summed,
        fraction_bits=facts.fraction_bits,
        total_weight=item.total_weight or 0,
        server_lr=facts.server_lr,
        word_bits=facts.word_bits,
        out=state,
    )
    handle = os.open(growing_path(item.key), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if index == 0:
            _write_at(handle, memoryview(header), 0)
        _write_at(handle, memoryview(state).cast("B"), len(header) + 4 * start)
    except OSError as error:
        if is_full(error):
            raise StorageFull(f"the disk of {conf.model_folder()} is full; free some space") from error
        raise
    finally:
        os.close(handle)


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
