"""What one silo sends in a round, built for real: every signed message and every chunk, between silos in memory."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory_journal import MemoryJournal
from protocol.evaluation import encode_tail, tail_length
from protocol.secure_aggregation import Coordinator, RoundParameters, SiloRound
from protocol.secure_aggregation.parameters import Segment, SketchTerms
from protocol.secure_aggregation.words import lane, signed
from protocol.signing import Envelope, SigningKey

BINS = 256
"""Of the evaluation's histograms in a usual plan."""
DIGEST = "sha256:" + "0" * 64


def parameters_for(d: int, n: int, word_bits: int, keys: dict[str, SigningKey] | None = None) -> RoundParameters:
    """A round of n silos with d weights."""
    keys = keys or {f"site-{number:03}": SigningKey.generate() for number in range(n)}
    return RoundParameters(
        study="st-benchmark",
        manifest=DIGEST,
        round=1,
        attempt=1,
        model=DIGEST,
        participants={silo: key.public for silo, key in keys.items()},
        min_roster=3,
        min_participants=3,
        words=d,
        tail=tail_length(BINS),
        word_bits=word_bits,
        sketch=SketchTerms(dict.fromkeys(keys, 1), 1.0, (Segment(d, 0),)),
    )


def _judged(
    silo: SiloRound, checks: list[Envelope], body: list[NDArray[np.int32]], tail: NDArray[np.uint64]
) -> SiloRound:
    silo.verify_sum(checks, body, tail)
    return silo


def bytes_sent(d: int, n: int, word_bits: int) -> int:
    """Bytes of all bodies that the first of n silos sends: messages as JSON, chunks as they are."""
    keys = {f"site-{number:03}": SigningKey.generate() for number in range(n)}
    parameters = parameters_for(d, n, word_bits, keys)
    coordinator = Coordinator(parameters)
    silos = {silo: SiloRound(parameters, silo=silo, key=key, journal=MemoryJournal()) for silo, key in keys.items()}
    first = next(iter(silos))
    sent: list[bytes] = []

    def all_of(envelopes: dict[str, Envelope]) -> list[Envelope]:
        sent.append(json.dumps(envelopes[first].as_dict(), separators=(",", ":")).encode())
        return list(envelopes.values())

    public = all_of({silo: each.keys() for silo, each in silos.items()})
    roster = coordinator.roster(public)
    boxes = all_of({silo: each.accept_roster(public) for silo, each in silos.items()})
    ready = all_of(
        {silo: each.accept_bundles(coordinator.boxes_for(roster, boxes, silo)) for silo, each in silos.items()}
    )
    words = np.zeros(d, dtype=lane(word_bits))
    tail = encode_tail(loss=0.5, auc=0.75, histograms=np.ones((2, BINS), dtype=np.int64))
    updates = {}
    for silo, each in silos.items():
        each.accept_ready(ready)
        each.begin_update(words, tail)
        chunks = [each.masked_chunk(k) for k in range(parameters.chunk_count)]
        if silo == first:
            sent += chunks
        updates[silo] = each.finish_update()
    updated = all_of(updates)
    lists = all_of({silo: each.sign_list(updated) for silo, each in silos.items()})
    sketches = all_of({silo: each.show_sketch(lists) for silo, each in silos.items()})
    seconds = all_of({silo: each.sign_second(sketches) for silo, each in silos.items()})
    all_of({silo: each.unmask(lists, seconds) for silo, each in silos.items()})
    nonces = all_of({silo: each.open_nonce(DIGEST) for silo, each in silos.items()})
    checks = all_of({silo: each.send_check(nonces) for silo, each in silos.items()})
    body = [signed(words, word_bits)]
    all_of({silo: _judged(each, checks, body, tail * np.uint64(n)).sign_state(DIGEST) for silo, each in silos.items()})
    return sum(map(len, sent))
