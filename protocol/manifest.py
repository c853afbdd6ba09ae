"""The study manifest: the exact study that a hospital approves. Its digest is the study's version.

The models are in manifest_schema.py, the plain words in manifest_words.py. Bytes that are received are checked first
and parsed after; they are never written anew, so the digest is always that of the bytes in hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from protocol.canonical import CanonicalError, decode, encode
from protocol.manifest_schema import SCHEMA, Manifest, Participant
from protocol.manifest_words import describe, withstood_colluders

__all__ = [
    "MAX_BYTES",
    "SCHEMA",
    "Manifest",
    "ManifestError",
    "Participant",
    "describe",
    "freeze",
    "parse_manifest",
    "study_facts",
    "withstood_colluders",
]

MAX_BYTES: Final = 2_097_152
"""The longest manifest that is read at all."""


class ManifestError(ValueError):
    """A manifest that cannot be used. The message names the field and what is wrong with it."""


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in `data`.

    Raises: ManifestError where the bytes are not canonical JSON, do not fit the schema, contradict themselves, or leave
    out a field (`freeze` writes every one), with the names of the fields.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError(f"a manifest is {MAX_BYTES} bytes at most, this one has {len(data)}")
    # 1. The bytes are the canonical form of one JSON value: no duplicate keys, no second spelling.
    try:
        decode(data, floats=True)
    except CanonicalError as error:
        raise ManifestError(f"the manifest is not canonical JSON: {error}") from None
    # 2. The value fits the schema and its own cross-checks.
    manifest = _validate(data)
    # 3. Every field is written out, so that two manifests that mean the same have the same digest.
    if _dump(manifest) != data:
        raise ManifestError("the manifest leaves out a field that has a default: freeze it first")
    return manifest


def freeze(manifest: Manifest | Mapping[str, Any]) -> bytes:
    """The canonical bytes of a manifest, with every default written out; their digest is the study's version.

    Raises: ManifestError as `parse_manifest`.
    """
    if isinstance(manifest, Manifest):
        return _dump(manifest)
    try:
        data = encode(dict(manifest), floats=True)
    except CanonicalError as error:
        raise ManifestError(f"the manifest has no canonical form: {error}") from None
    return _dump(_validate(data))


def study_facts(manifest: Manifest) -> dict[str, Any]:
    """What `policy.match` asks a study, from its manifest. A fact that the manifest cannot state is left out, and an
    absent answer is a DENY wherever a policy asks for it (`epsilon` without noise; `users`)."""
    purpose = manifest.purpose
    return {
        "study_id": manifest.study,
        "purpose": purpose.kind,
        "diseases": list(purpose.diseases),
        "methods": purpose.methods,
        "commercial": purpose.commercial,
        "all_non_profit": purpose.all_non_profit,
        "genetic": purpose.genetic,
        "ethics": purpose.ethics.model_dump() if purpose.ethics is not None else None,
        "countries": list(purpose.countries),
        "accepts": list(purpose.accepts),
        "institutions": sorted({participant.organisation for participant in manifest.participants}),
        "end": manifest.dates.end,
        "min_cohort": manifest.cohort.min_patients,
        "min_participants": manifest.aggregation.min_participants,
        "max_rounds": manifest.plan.stopping.max_rounds,
        "model_family": manifest.plan.network.name,
        "partners": [participant.silo for participant in manifest.participants],
    }


def _validate(data: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(step) for step in problem['loc']) or 'manifest'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        shown = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ManifestError(f"the manifest does not fit {SCHEMA}: {shown}{more}") from None


def _dump(manifest: Manifest) -> bytes:
    return encode(manifest.model_dump(mode="json", by_alias=True), floats=True)
