"""What all parties of an attempt agree on, from the approved manifest: silo and portal each work it out with this function."""

from __future__ import annotations

from typing import Any

from protocol.evaluation import tail_length
from protocol.manifest import Manifest
from protocol.secure_aggregation.parameters import RoundParameters, SketchTerms
from protocol.secure_aggregation.scales import Segments
from protocol.secure_aggregation.sparse import SparseParameters


def agreed_parameters(
    manifest: Manifest, *, digest: str, number: int, attempt: int, model: str | None, words: int, segments: Segments
) -> RoundParameters:
    """`SparseParameters` where the manifest says so, whatever the portal asks for.

    Parameters:
        digest: of the manifest, "sha256:<64 hex>".
        number, attempt: the attempt's.
        model: digest of the model that goes in; None in the round that makes the first one.
        words: of an update's body; 0 where nothing is trained.
        segments: the scales of these words; they are read only where sketches are shown of them.

    Raises: ValueError.
    """
    aggregation = manifest.aggregation
    common: dict[str, Any] = {
        "study": manifest.study,
        "manifest": digest,
        "round": number,
        "attempt": attempt,
        "model": model,
        "participants": manifest.public_keys(),
        "min_roster": aggregation.min_roster,
        "min_participants": aggregation.min_participants,
        "words": words,
        "tail": tail_length(manifest.plan.evaluation.bins),
        "word_bits": aggregation.word_bits,
        "unverified": aggregation.check_words == "optional",
    }
    if manifest.sparse:
        return SparseParameters(**common, sparse_from=aggregation.sparse_from)
    terms = None
    if aggregation.sketch and words:
        weights = {participant.silo: participant.weight for participant in manifest.participants}
        terms = SketchTerms(weights, aggregation.clip_norm, segments)
    return RoundParameters(**common, sketch=terms)
