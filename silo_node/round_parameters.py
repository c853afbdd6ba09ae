"""What this silo's side of an attempt is computed from: the approved manifest and the checked announcement, no more."""

from __future__ import annotations

from protocol.evaluation import tail_length
from protocol.manifest import Manifest
from protocol.secure_aggregation.parameters import RoundParameters, Segment, SketchTerms
from silo_node.announcement import Announcement


def round_parameters(announcement: Announcement, manifest: Manifest, words: int) -> RoundParameters:
    """words: d of the model that is trained, 0 where nothing is. Raises: ValueError."""
    aggregation = manifest.aggregation
    return RoundParameters(
        study=announcement.study,
        manifest=announcement.manifest,
        round=announcement.number,
        attempt=announcement.attempt,
        model=announcement.model,
        participants=manifest.public_keys(),
        min_roster=aggregation.min_roster,
        min_participants=aggregation.min_participants,
        words=words,
        tail=tail_length(manifest.plan.evaluation.bins),
        word_bits=aggregation.word_bits,
        sketch=_sketch_terms(manifest, words) if aggregation.sketch and words else None,
        unverified=aggregation.check_words == "optional",
    )


def _sketch_terms(manifest: Manifest, words: int) -> SketchTerms:
    aggregation = manifest.aggregation
    return SketchTerms(
        weights={participant.silo: participant.weight for participant in manifest.participants},
        clip_norm=aggregation.clip_norm,
        segments=(Segment(words, aggregation.fraction_bits),),
    )
