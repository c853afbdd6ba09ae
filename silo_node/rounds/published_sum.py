"""The published sum: looked at when the pinned portal key signed it, over exactly the list that t silos signed.

Whether it is the true sum only the check words say (sum_check.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol import canonical
from protocol.canonical import CanonicalError
from protocol.evaluation import EvaluationError, decode_tail
from protocol.manifest import Manifest
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.parameters import RoundParameters
from protocol.secure_aggregation.scales import Segments
from protocol.secure_aggregation.words import Lanes, lane, unpack
from protocol.server_step import ServerStepError, check_range
from protocol.signing import Envelope, SignatureError, keyid, verify_envelope
from silo_node.errors import AnswerNotGenuine, Refused
from silo_node.node import Node
from silo_node.rounds.runs import Run

SUM_TYPE: Final = "application/vnd.consilium.round.sum+json"
SCHEMA: Final = "consilium/round/sum/1"


class Published(NamedTuple):
    """The sum's words. body: lanes [d], a map of a file in the round's folder. tail: uint64[t]."""

    body: Lanes
    tail: NDArray[np.uint64]


def check(
    node: Node, parameters: RoundParameters, manifest: Manifest, body: Mapping[str, Any], members: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """The sum's facts (digest, words, tail, chunks, members, total_weight), and the digest of what the portal signed.

    1. Signed by the pinned portal key, for this attempt.
    2. The signed facts are those announced.
    3. Over exactly the list of `members` that `SiloRound.agree` accepted, in the form that the manifest fixes.
    Raises: ProtocolViolation SUM_NOT_SIGNED, SUM_DIFFERS.
    """
    if node.pin is None:
        raise Refused("NOT_ENROLLED", "This silo is not enrolled.")
    # 1
    public = node.pin.answer_public
    try:
        envelope = Envelope.from_dict(body["portal_signature"])
        verify_envelope(envelope, payload_type=SUM_TYPE, keys={keyid(public): public})
        signed = canonical.decode(envelope.payload)
        facts = dict(body["sum"])
    except (SignatureError, CanonicalError, KeyError, TypeError) as error:
        raise ProtocolViolation("SUM_NOT_SIGNED", f"the published sum is not signed by the portal: {error}") from None
    # 2
    # In this order: no fact may take the place of the schema or of the attempt.
    if signed != {**facts, "schema": SCHEMA, "ctx": parameters.ctx.hex()}:
        raise ProtocolViolation("SUM_DIFFERS", "the portal signed another sum than the one that it shows")
    # 3
    expected = {
        "words": parameters.words,
        "tail": parameters.tail,
        "chunks": parameters.chunk_count,
        "members": list(members),
        "total_weight": manifest.total_weight(list(members)),
    }
    for name, value in expected.items():
        if facts.get(name) != value:
            raise ProtocolViolation("SUM_DIFFERS", f"the published sum's {name} is not that of the signed list")
    if not canonical.is_digest(facts.get("digest")):
        raise ProtocolViolation("SUM_DIFFERS", "the published sum's digest is none")
    return facts, envelope.digest


def fetch(
    node: Node,
    parameters: RoundParameters,
    manifest: Manifest,
    run: Run,
    facts: Mapping[str, Any],
    segments: Segments,
) -> Published:
    """The words, whose scales are `segments`; piece by piece into the round's folder, so that memory stays at one piece.

    1. Their bytes have the digest that was signed.
    2. No word is larger than the clipped updates of the list can add up to: a sum that the portal made up moves no weight
    further than the hospitals together may.
    3. The tail can be a sum of that many evaluations.
    Raises: ProtocolViolation SUM_DIFFERS, SUM_OUT_OF_RANGE; AnswerNotGenuine for a piece of another length or with bits
    beside its words; PortalError.
    """
    # 1
    summed, tail = _room(run.summed, parameters), np.zeros(0, dtype="<u8")
    whole = hashlib.sha256()
    for k in range(parameters.chunk_count):
        piece = node.egress.get(f"/api/v1/rounds/{run.id}/sum", kind="sum", query={"chunk": k}, round_id=run.id).body
        if len(piece) != parameters.chunk_bytes(k):
            raise AnswerNotGenuine(f"piece {k} of the sum has {len(piece)} bytes, not {parameters.chunk_bytes(k)}")
        whole.update(piece)
        kind, start, stop = parameters.chunk_range(k)
        if kind == "body":
            try:
                summed[start:stop] = unpack(piece, parameters.word_bits)
            except ValueError as error:
                raise AnswerNotGenuine(f"piece {k} of the sum: {error}") from None
        else:
            tail = np.frombuffer(piece, dtype="<u8")
    if "sha256:" + whole.hexdigest() != facts["digest"]:
        raise ProtocolViolation("SUM_DIFFERS", "the sum that the portal sent is not the one that it signed")
    # 2
    of = {participant.silo: participant.weight for participant in manifest.participants}
    weights = [of[silo] for silo in facts["members"]]
    bounds = manifest.fixed_point().word_bounds(segments, weights)
    try:
        check_range(summed, segments, bounds, word_bits=parameters.word_bits)
    except ServerStepError as error:
        raise ProtocolViolation(
            "SUM_OUT_OF_RANGE", f"the published sum can't be one of clipped updates: {error}"
        ) from None
    # 3
    try:
        decode_tail(tail, len(weights))
    except EvaluationError as error:
        raise ProtocolViolation(
            "SUM_OUT_OF_RANGE", f"the published sum's evaluation can't be one of its silos: {error}"
        ) from None
    return Published(summed, tail)


def _room(path: Path, parameters: RoundParameters) -> Lanes:
    """Lanes [d] in a new file. Its blocks are reserved: a write to a map on a full disk would end the process."""
    words, kind = parameters.words, lane(parameters.word_bits)
    if not words:
        return np.zeros(0, dtype=kind)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "r+b") as file:
        os.posix_fallocate(handle, 0, kind.itemsize * words)
        return np.asarray(np.memmap(file, dtype=kind, mode="r+", shape=(words,)))
