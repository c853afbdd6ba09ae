"""The Data Use Ontology's terms in words, and the pinned closure of the disease hierarchy.

The closure ships as one file (duo_closure.json): every disease that we know by name with all its ancestors, made by
hand from the Human Disease Ontology. Its digest stands inside and is checked when it is read, and it is logged with
every match.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

from protocol.canonical import digest, encode


@dataclass(frozen=True, slots=True)
class DuoTerm:
    """A term of the Data Use Ontology: its id, our reason code, its name, and what it asks in one sentence."""

    id: str
    code: str
    label: str
    meaning: str


_TERMS = (
    DuoTerm("DUO:0000004", "NRES", "no restriction", "The data may be used for any purpose."),
    DuoTerm("DUO:0000042", "GRU", "general research use", "The data may be used for any research purpose."),
    DuoTerm(
        "DUO:0000006",
        "HMB",
        "health, medical or biomedical research",
        "The data may be used for health, medical or biomedical research, not for the study of ancestry.",
    ),
    DuoTerm(
        "DUO:0000007",
        "DS",
        "disease-specific research",
        "The data may be used only for research on the named diseases.",
    ),
    DuoTerm(
        "DUO:0000011",
        "POA",
        "population origins or ancestry research only",
        "The data may be used only for research on population origins or ancestry.",
    ),
    DuoTerm(
        "DUO:0000012",
        "RS",
        "research-specific restrictions",
        "Further restrictions apply that only a person can judge.",
    ),
    DuoTerm(
        "DUO:0000015",
        "NMDS",
        "no general methods research",
        "The data may not be used to develop methods, software or algorithms.",
    ),
    DuoTerm("DUO:0000016", "GSO", "genetic studies only", "The data may be used only in genetic studies."),
    DuoTerm(
        "DUO:0000018",
        "NPUNCU",
        "not for profit, non-commercial use only",
        "Only not-for-profit organisations may use the data, and only for non-commercial purposes.",
    ),
    DuoTerm("DUO:0000019", "PUB", "publication required", "The results of the study must be published."),
    DuoTerm(
        "DUO:0000020",
        "COL",
        "collaboration required",
        "The study must collaborate with the hospital's own investigators.",
    ),
    DuoTerm("DUO:0000021", "IRB", "ethics approval required", "The study needs the approval of an ethics committee."),
    DuoTerm("DUO:0000022", "GS", "geographical restriction", "The data may be used only in the named countries."),
    DuoTerm("DUO:0000024", "MOR", "publication moratorium", "Nothing may be published before the named date."),
    DuoTerm("DUO:0000025", "TS", "time limit on use", "The data may be used only until the named date."),
    DuoTerm("DUO:0000026", "US", "user-specific restriction", "Only the named users may use the data."),
    DuoTerm("DUO:0000027", "PS", "project-specific restriction", "The data may be used only in the named projects."),
    DuoTerm("DUO:0000028", "IS", "institution-specific restriction", "Only the named institutions may use the data."),
    DuoTerm(
        "DUO:0000029",
        "RTN",
        "return to database or resource",
        "What is derived from the data must be returned to its source.",
    ),
    DuoTerm("DUO:0000043", "CC", "clinical care use", "The data may also be used for clinical care."),
    DuoTerm(
        "DUO:0000044",
        "NPOA",
        "no population origins or ancestry research",
        "The data may not be used to study population origins or ancestry.",
    ),
    DuoTerm(
        "DUO:0000045", "NPU", "not-for-profit organisations only", "Only not-for-profit organisations may use the data."
    ),
    DuoTerm("DUO:0000046", "NCU", "non-commercial use only", "The data may not be used commercially."),
)

TERMS: Final[Mapping[str, DuoTerm]] = MappingProxyType({term.id: term for term in _TERMS})
"""Every term that we can evaluate, by id."""
PERMISSIONS: Final = frozenset({"DUO:0000004", "DUO:0000042", "DUO:0000006", "DUO:0000007", "DUO:0000011"})
"""Terms that can stand as a policy's permission."""
OBLIGATIONS: Final = frozenset({"DUO:0000019", "DUO:0000020", "DUO:0000024", "DUO:0000029"})
"""Terms that a study accepts in its manifest, and then owes."""


@dataclass(frozen=True)
class Closure:
    """The disease hierarchy: release of the source, digest of release and terms, labels and all ancestors by disease "
    "id."""

    release: str
    digest: str
    labels: Mapping[str, str]
    ancestors: Mapping[str, tuple[str, ...]]

    def label(self, disease: str) -> str:
        """The disease's name with its id, or the bare id where it is unknown."""
        return f"{self.labels[disease]} ({disease})" if disease in self.labels else disease


class ClosureError(ValueError):
    """A closure file that is damaged: what it says and its digest differ."""


def parse_closure(text: str) -> Closure:
    """The closure in a file's text. Raises ClosureError where its digest is wrong or an ancestor has no entry."""
    try:
        value = json.loads(text)
        release, stated, terms = value["release"], value["digest"], value["terms"]
        found = digest(encode({"release": release, "terms": terms}))
        labels = {disease: str(entry["label"]) for disease, entry in terms.items()}
        ancestors = {disease: tuple(entry["ancestors"]) for disease, entry in terms.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClosureError(f"not a disease closure: {type(error).__name__}") from error
    if found != stated:
        raise ClosureError(f"the disease closure says {stated}, its content has {found}: it was changed")
    for disease, above in ancestors.items():
        unknown = [other for other in above if other not in labels]
        if unknown or disease in above:
            raise ClosureError(f"{disease}: an ancestor is the disease itself or has no entry")
    return Closure(release, stated, MappingProxyType(labels), MappingProxyType(ancestors))


@cache
def load_closure() -> Closure:
    """The closure that ships with this package, read once."""
    return parse_closure(resources.files("protocol").joinpath("duo_closure.json").read_text(encoding="utf-8"))
