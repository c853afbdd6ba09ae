"""The published sum: believed when the pinned portal key signed it, over exactly the list that this silo signed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from protocol import canonical
from protocol.canonical import CanonicalError
from protocol.manifest import Manifest
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import StudyLedger
from protocol.secure_aggregation.parameters import RoundParameters
from protocol.secure_aggregation.scales import Segments
from protocol.secure_aggregation.words import Lanes, lane, unpack
from protocol.server_step import ServerStepError, check_range
from protocol.signing import Envelope, SignatureError, keyid, verify_envelope
from silo_node.errors import AnswerNotGenuine, Refused
from silo_node.node import Node

SUM_TYPE: Final = "application/vnd.consilium.round.sum+json"
SCHEMA: Final = "consilium/round/sum/1"


def check(node: Node, parameters: RoundParameters, manifest: Manifest, body: Mapping[str, Any]) -> dict[str, Any]:
    """The sum's facts (digest, words, tail, chunks, members, total_weight).

    1. Signed by the pinned portal key, for this attempt.
    2. The signed facts are those announced.
    3. Over exactly the list that this silo signed, in the form that the manifest fixes.
    Raises: ProtocolViolation SUM_NOT_SIGNED, SUM_DIFFERS, OUT_OF_STAGE.
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
    members = _members(node, parameters)
    expected = {
        "words": parameters.words,
        "tail": parameters.tail,
        "chunks": parameters.chunk_count,
        "members": members,
        "total_weight": manifest.total_weight(members),
    }
    for name, value in expected.items():
        if facts.get(name) != value:
            raise ProtocolViolation("SUM_DIFFERS", f"the published sum's {name} is not that of the signed list")
    return facts


def fetch(
    node: Node,
    parameters: RoundParameters,
    manifest: Manifest,
    round_id: str,
    facts: Mapping[str, Any],
    segments: Segments,
) -> Lanes:
    """The body words, lanes [d], whose scales are `segments`.

    1. Their bytes with the tail's have the digest that was signed.
    2. No word is larger than the clipped updates of the list can add up to: a sum that the portal made up moves no weight
    further than the hospitals together may.
    Raises: ProtocolViolation SUM_DIFFERS, SUM_OUT_OF_RANGE; AnswerNotGenuine for a piece of another length or with bits beside
    its words; PortalError.
    """
    # 1
    summed = np.empty(parameters.words, dtype=lane(parameters.word_bits))
    whole = hashlib.sha256()
    for k in range(parameters.chunk_count):
        piece = node.egress.get(
            f"/api/v1/rounds/{round_id}/sum", kind="sum", query={"chunk": k}, round_id=round_id
        ).body
        if len(piece) != parameters.chunk_bytes(k):
            raise AnswerNotGenuine(f"piece {k} of the sum has {len(piece)} bytes, not {parameters.chunk_bytes(k)}")
        whole.update(piece)
        kind, start, stop = parameters.chunk_range(k)
        if kind == "body":
            try:
                summed[start:stop] = unpack(piece, parameters.word_bits)
            except ValueError as error:
                raise AnswerNotGenuine(f"piece {k} of the sum: {error}") from None
    if "sha256:" + whole.hexdigest() != facts["digest"]:
        raise ProtocolViolation("SUM_DIFFERS", "the sum that the portal sent is not the one that it signed")
    # 2
    weights = [manifest.participant(silo).weight for silo in facts["members"]]
    bounds = manifest.fixed_point().word_bounds(segments, weights)
    try:
        check_range(summed, segments, bounds, word_bits=parameters.word_bits)
    except ServerStepError as error:
        raise ProtocolViolation(
            "SUM_OUT_OF_RANGE", f"the published sum can't be one of clipped updates: {error}"
        ) from None
    return summed


def _members(node: Node, parameters: RoundParameters) -> list[str]:
    """L1 as this silo signed it (or revealed shares for)."""
    spent = StudyLedger(node.journal, parameters.study).spent(parameters.round)
    if spent is None:
        raise ProtocolViolation("OUT_OF_STAGE", "this silo signed no list in this round, so it can't check a sum")
    return [str(silo) for silo in spent["members"]]
