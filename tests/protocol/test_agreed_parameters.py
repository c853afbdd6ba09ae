"""What silo and portal agree on before a round, field by field from the manifest."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from protocol.agreed_parameters import agreed_parameters
from protocol.manifest import Manifest, freeze, parse_manifest
from protocol.secure_aggregation.parameters import RoundParameters, Segment, SketchTerms
from protocol.secure_aggregation.sparse import SparseParameters

_spec = importlib.util.spec_from_file_location("manifest_example", Path(__file__).with_name("test_manifest.py"))
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

MANIFEST, MODEL = "sha256:" + "1" * 64, "sha256:" + "2" * 64
SEGMENTS = (Segment(7, 12), Segment(13, 10))
KEYS = {f"site-{number}": bytes([number]) * 32 for number in (1, 2, 3, 4)}


def study(**aggregation: Any) -> Manifest:
    """Of four hospitals of weights 1 to 4; every number differs from every other, so that none can stand for another."""
    body: dict[str, Any] = _module.example()
    for weight, participant in enumerate(body["participants"], 1):
        participant["weight"] = weight
    numbers = {"min_roster": 4, "min_participants": 3, "word_bits": 24, "fraction_bits": 12, "clip_norm": 8.5}
    body["aggregation"] |= numbers | aggregation
    return parse_manifest(freeze(body))


def agreed(manifest: Manifest, words: int = 20, segments: tuple[Segment, ...] = SEGMENTS) -> RoundParameters:
    return agreed_parameters(
        manifest, digest=MANIFEST, number=5, attempt=6, model=MODEL, words=words, segments=segments
    )


def test_every_field_is_that_of_the_manifest_and_the_attempt() -> None:
    assert agreed(study(sketch=True, check_words="optional")) == RoundParameters(
        study="st-k3v9q2m7xw4hzt5b",
        manifest=MANIFEST,
        round=5,
        attempt=6,
        model=MODEL,
        participants=KEYS,
        min_roster=4,
        min_participants=3,
        words=20,
        tail=5 + 2 * 256 + 3,
        word_bits=24,
        sketch=SketchTerms({silo: weight for weight, silo in enumerate(KEYS, 1)}, 8.5, SEGMENTS),
        unverified=True,
    )


def test_check_words_are_needed_and_no_sketch_is_shown_unless_the_manifest_says_so() -> None:
    found = agreed(study())
    assert (found.unverified, found.sketch) == (False, None)


def test_no_sketch_is_shown_where_nothing_is_trained() -> None:
    assert agreed(study(sketch=True), words=0, segments=()).sketch is None


def test_scales_that_do_not_cover_the_words_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        agreed(study(sketch=True), words=21)


def test_many_silos_mask_with_a_neighbourhood_because_the_manifest_says_so() -> None:
    few, many = agreed(study(sparse_from=5)), agreed(study(sparse_from=4))
    assert (type(few), type(many)) == (RoundParameters, SparseParameters)
    shared = [each.name for each in dataclasses.fields(RoundParameters)]
    assert [getattr(many, name) for name in shared] == [getattr(few, name) for name in shared]
    assert isinstance(many, SparseParameters) and many.sparse_from == 4
