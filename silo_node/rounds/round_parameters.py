"""What this silo's side of an attempt is computed from: the approved manifest and the checked announcement, no more."""

from __future__ import annotations

from protocol.agreed_parameters import agreed_parameters
from protocol.manifest import Manifest
from protocol.secure_aggregation.parameters import RoundParameters
from protocol.secure_aggregation.scales import Segments
from protocol.secure_aggregation.sketch import LEAST_WORDS
from silo_node.errors import Refused
from silo_node.rounds.announcement import Announcement


def round_parameters(announcement: Announcement, manifest: Manifest, segments: Segments) -> RoundParameters:
    """What the protocol makes of both. The gate has checked that the manifest is of the announced study.

    segments: the scales of the model that is trained, none where nothing is.

    Raises: ValueError. Refused (SKETCH_OF_TOO_FEW) where a sketch would show single numbers of the update.
    """
    words = sum(size for size, _ in segments)
    if manifest.aggregation.sketch and 0 < words < LEAST_WORDS:
        raise Refused(
            "SKETCH_OF_TOO_FEW",
            f"The study trains {words:,} numbers and asks for sketches: of fewer than {LEAST_WORDS:,} a sketch would show "
            "single ones. It must train more of its network, or do without the sketch check.",
        )
    return agreed_parameters(
        manifest,
        digest=announcement.manifest,
        number=announcement.number,
        attempt=announcement.attempt,
        model=announcement.model,
        words=words,
        segments=segments,
    )
