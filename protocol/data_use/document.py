"""The data-use policy as a signed document: what a steward signs, in fields and in words.

The payload of a DSSE envelope of type POLICY_TYPE: canonical JSON without floating point numbers (privacy loss in
micro-units). A field that is None or left out of `limits` sets no limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from protocol.canonical import CanonicalError, decode, encode
from protocol.duo import TERMS
from protocol.manifest_fields import Country, Day, Name, Part, Slug, Term

POLICY_TYPE: Final = "application/vnd.consilium.policy+json"
SCHEMA: Final = "consilium/policy/1"
MAX_BYTES: Final = 262_144
MICRO: Final = 1_000_000

_NEEDS: Final[Mapping[str, str]] = {
    "DUO:0000007": "diseases",
    "DUO:0000022": "countries",
    "DUO:0000024": "until",
    "DUO:0000025": "until",
    "DUO:0000026": "users",
    "DUO:0000027": "projects",
    "DUO:0000028": "institutions",
}
"""The list or date without which a modifier means nothing."""
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z")


class PolicyError(ValueError):
    """A policy document that cannot be used. The message names the field and what is wrong with it."""


def parse_time(text: str) -> datetime:
    """An RFC 3339 time in UTC, written with Z. Raises ValueError."""
    if _TIME.fullmatch(text) is None:
        raise ValueError("must be a time in UTC written like 2026-11-23T10:00:00Z")
    return datetime.fromisoformat(text).astimezone(UTC)


def _time(text: str) -> str:
    parse_time(text)
    return text


Time = Annotated[str, AfterValidator(_time)]
"""RFC 3339 in UTC, with Z."""
DuoId = Annotated[str, Field(pattern=r"^DUO:[0-9]{7}$")]
KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Texts = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(min_length=1)]


class Modifier(Part):
    """A condition: a term and what it needs."""

    code: DuoId
    diseases: tuple[Term, ...] | None = None
    countries: tuple[Country, ...] | None = None
    until: Day | None = None
    projects: Texts | None = None
    institutions: Texts | None = None
    users: Texts | None = None

    @model_validator(mode="after")
    def _check_needs(self) -> Modifier:
        needed = _NEEDS.get(self.code)
        if needed is not None and not getattr(self, needed):
            raise ValueError(f"{needed}: {TERMS[self.code].label} ({self.code}) must say which")
        return self


class LocalLimits(Part):
    """The hospital's own limits; None is no limit. epsilon_max_micro: privacy loss in millionths."""

    epsilon_max_micro: int | None = Field(default=None, ge=0)
    min_cohort: int | None = Field(default=None, ge=1)
    min_participants: int | None = Field(default=None, ge=2)
    max_rounds: int | None = Field(default=None, ge=1)
    model_families: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    partners: Annotated[tuple[Slug, ...], Field(min_length=1)] | None = None
    countries: Annotated[tuple[Country, ...], Field(min_length=1)] | None = None
    expires: Day | None = None


class KnownPartners(Part):
    """Partners whose keys the hospital has compared itself, and how many of them must be in every sum."""

    keys: dict[Slug, KeyId]
    min_known: int = Field(ge=0)

    @model_validator(mode="after")
    def _check_number(self) -> KnownPartners:
        if self.min_known > len(self.keys):
            raise ValueError("min_known: more than there are known keys")
        return self


class PolicyDocument(Part):
    """A hospital's data-use policy. `version` grows by one with each change."""

    schema_: Literal["consilium/policy/1"] = Field(alias="schema")
    silo: Slug
    organisation: str = Field(min_length=1, max_length=200)
    version: int = Field(ge=1)
    permission: DuoId | None
    modifiers: tuple[Modifier, ...] = Field(max_length=64)
    diseases: tuple[Term, ...]
    limits: LocalLimits
    legal_basis: Annotated[str, Field(min_length=1, max_length=1000)] | None
    consent_default: Literal["opt-in", "opt-out"]
    share_metrics: bool
    partners: KnownPartners
    log_max_age_seconds: int = Field(default=86_400, ge=60)
    issued: Time

    @model_validator(mode="after")
    def _check_diseases(self) -> PolicyDocument:
        if self.permission == "DUO:0000007" and not self.diseases:
            raise ValueError("diseases: disease-specific research must name at least one")
        if self.permission != "DUO:0000007" and self.diseases:
            raise ValueError("diseases: named, but the permission is not disease-specific research (DUO:0000007)")
        return self


def parse_policy(payload: bytes) -> PolicyDocument:
    """The document in an envelope's payload. Raises PolicyError naming the fields that do not fit."""
    if len(payload) > MAX_BYTES:
        raise PolicyError(f"a policy is {MAX_BYTES} bytes at most, this one has {len(payload)}")
    try:
        decode(payload)
    except CanonicalError as error:
        raise PolicyError(f"the policy is not canonical JSON: {error}") from None
    return _validate(payload)


def freeze_policy(document: PolicyDocument | Mapping[str, Any]) -> bytes:
    """The canonical bytes to sign, with every default written out. Raises PolicyError."""
    if isinstance(document, PolicyDocument):
        return encode(document.model_dump(mode="json", by_alias=True))
    try:
        data = encode(dict(document))
    except CanonicalError as error:
        raise PolicyError(f"the policy has no canonical form: {error}") from None
    return freeze_policy(_validate(data))


def _validate(data: bytes) -> PolicyDocument:
    try:
        return PolicyDocument.model_validate_json(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(step) for step in problem['loc']) or 'policy'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise PolicyError(f"the policy does not fit {SCHEMA}: {'; '.join(problems[:5])}") from None


def policy_facts(document: PolicyDocument) -> dict[str, Any]:
    """The `policy` argument of `policy.match`. The hospital itself always counts among its allowed partners."""
    limits = document.limits.model_dump(mode="json", exclude_none=True)
    if "epsilon_max_micro" in limits:
        limits["epsilon_max"] = limits.pop("epsilon_max_micro") / MICRO
    if "partners" in limits:
        limits["partners"] = sorted({*limits["partners"], document.silo})
    return {
        "permission": document.permission,
        "modifiers": [modifier.model_dump(mode="json", exclude_none=True) for modifier in document.modifiers],
        "diseases": list(document.diseases),
        "limits": limits,
    }
