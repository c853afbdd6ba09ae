"""What this silo's side of an attempt is computed from: the approved manifest and the checked announcement, no more."""

from __future__ import annotations

from protocol.evaluation import tail_length
from protocol.manifest import Manifest
from protocol.secure_aggregation.parameters import RoundParameters, SketchTerms
from protocol.secure_aggregation.scales import Segments
from protocol.secure_aggregation.sketch import LEAST_WORDS
from protocol.secure_aggregation.sparse import SparseParameters
from silo_node.announcement import Announcement
from silo_node.errors import Refused


def round_parameters(announcement: Announcement, manifest: Manifest, segments: Segments) -> RoundParameters:
    """`SparseParameters` where the manifest says so, whatever the portal asks for.

    segments: the scales of the model that is trained, none where nothing is.

    Raises: ValueError. Refused (SKETCH_OF_TOO_FEW) where a sketch would show single numbers of the update.
    """
    aggregation = manifest.aggregation
    words = sum(size for size, _ in segments)
    if aggregation.sketch and 0 < words < LEAST_WORDS:
        raise Refused(
            "SKETCH_OF_TOO_FEW",
            f"The study trains {words:,} numbers and asks for sketches: of fewer than {LEAST_WORDS:,} a sketch would show "
            "single ones. It must train more of its network, or do without the sketch check.",
        )
    common = {
        "study": announcement.study,
        "manifest": announcement.manifest,
        "round": announcement.number,
        "attempt": announcement.attempt,
        "model": announcement.model,
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
    sketch = _sketch_terms(manifest, segments) if aggregation.sketch and words else None
    return RoundParameters(**common, sketch=sketch)


def _sketch_terms(manifest: Manifest, segments: Segments) -> SketchTerms:
    aggregation = manifest.aggregation
    return SketchTerms(
        weights={participant.silo: participant.weight for participant in manifest.participants},
        clip_norm=aggregation.clip_norm,
        segments=segments,
    )
