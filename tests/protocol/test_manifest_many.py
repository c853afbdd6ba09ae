"""Manifests of studies with many silos: which are taken, and what their words promise."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from protocol.canonical import b64
from protocol.manifest import MAX_BYTES, ManifestError, describe, freeze, parse_manifest, withstood_colluders
from protocol.secure_aggregation.sparse import promised

_spec = importlib.util.spec_from_file_location("manifest_example", Path(__file__).with_name("test_manifest.py"))
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


def many(n: int, *, organisation: str = "H", **aggregation: Any) -> dict[str, Any]:
    body: dict[str, Any] = _module.example()
    body["participants"] = [
        {
            "silo": f"s{i:04}",
            "organisation": f"{organisation}{i}",
            "country": "DE",
            "public": b64(i.to_bytes(32, "big")),
            "weight": 1,
        }
        for i in range(1, n + 1)
    ]
    body["aggregation"] |= {"clip_norm": 1.0, "fraction_bits": 12, "sketch": False, "drawn": None, **aggregation}
    return body


@pytest.mark.parametrize(("n", "sparse"), [(63, False), (64, True), (4096, True)])
def test_mode_follows_from_the_number_of_participants(n: int, sparse: bool) -> None:
    assert parse_manifest(freeze(many(n, sparse_from=64))).sparse is sparse


def test_largest_study_with_the_longest_names_fits() -> None:
    body = freeze(many(4096, organisation="x" * 190, min_roster=4096, min_participants=4096))
    assert 1 << 20 < len(body) < MAX_BYTES


@pytest.mark.parametrize(
    ("n", "change", "words"),
    [
        (64, {"sketch": True}, "set it to false, or sparse_from above the participants"),
        (64, {"drawn": 10}, "set it to null, or sparse_from above the participants"),
        (255, {"sparse_from": 300}, "255 participants are more than 254, so it must be 255 at most"),
        (4097, {}, "participants"),
        (4, {"sparse_from": 3}, "sparse_from"),
    ],
)
def test_what_many_silos_can_not_have_is_refused_with_what_to_change(
    n: int, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ManifestError, match=words):
        freeze(many(n, **change))


def test_sketch_and_drawing_are_taken_below_sparse_from() -> None:
    freeze(many(63, sketch=True))
    freeze(many(64, sketch=True, sparse_from=65))


def test_every_study_that_is_taken_has_a_neighbourhood() -> None:
    """Four is the least sparse_from because three have none."""
    with pytest.raises(ValueError, match="no neighbourhood"):
        promised(3)
    for n in [*range(4, 200), 254, 255, 256, 500, 1000, 2000]:
        assert promised(n).h < n


def test_words_promise_what_holds_with_many_silos() -> None:
    manifest = parse_manifest(freeze(many(100, min_roster=70, min_participants=70)))
    words = dict(describe(manifest))
    assert withstood_colluders(manifest) == 20
    assert "20 other participants, one in five" in words["Who would have to conspire"]
    assert "Only the sum over at least 70 hospitals" in words["What the portal can read"]
    assert "more than half of the hospitals that do not conspire with it" in words["What the portal can read"]
    assert "Of all 100 at least 67 are needed in a round; one in ten may be missing" in words["Partners"]
    few = dict(describe(parse_manifest(freeze(many(63)))))
    assert "one in five" not in few["Who would have to conspire"]
    assert "part of them" not in few["What the portal can read"]
