"""From a draft to a manifest: the portal fills in what it knows (keys, countries, log, witnesses), the rest is the draft's.

A draft has a manifest's shape without `schema`, `study`, `log` and `witnesses`; its participants are
`{"silo": name, "weight": n}` (or just names).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from governance.models import Study
from organisations.models import Silo, SiloState
from portal.keys import log_vkey
from portal.problems import Refused
from protocol import canonical
from protocol.canonical import b64
from protocol.manifest import SCHEMA, Manifest

_FILLED_IN = frozenset({"schema", "study", "log", "witnesses"})


def build_manifest(*, study: Study, draft: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of `draft` with the participants' current keys. Not validated.

    Refused: a participant that is no active silo, named twice, or a list that is none.
    """
    content = {name: value for name, value in draft.items() if name not in _FILLED_IN}
    content.setdefault("title", study.title)
    content.setdefault("summary", "")
    silos, participants = _participants(content.get("participants"))
    purpose = content.get("purpose")
    if isinstance(purpose, Mapping) and not purpose.get("countries"):
        content["purpose"] = {**purpose, "countries": sorted({item["country"] for item in participants})}
    limits = content.get("limits")
    if isinstance(limits, Mapping):
        content["limits"] = {"unmask_seconds": 86_400, **limits}
    return {
        **content,
        "schema": SCHEMA,
        "study": study.pk,
        "participants": participants,
        "log": {"vkey": log_vkey()},
        "witnesses": {"vkeys": sorted(silo.witness_vkey for silo in silos if silo.witness_vkey), "false": 0},
    }


def manifest_problems(*, study: Study, draft: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What keeps `draft` from being submitted: (path in the manifest, sentence); empty where nothing does.

    Refused as by `build_manifest`.
    """
    try:
        data = canonical.encode(build_manifest(study=study, draft=draft), floats=True)
        Manifest.model_validate_json(data)
    except canonical.CanonicalError as error:
        return [("", str(error))]
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        return [_place(problem["loc"], problem["msg"]) for problem in found]
    return []


def _place(location: tuple[int | str, ...], message: str) -> tuple[str, str]:
    """A cross-check raises on the part; its sentence then starts with the field's name ("end: the study ..")."""
    path = ".".join(str(step) for step in location)
    sentence = message.removeprefix("Value error, ")
    head, colon, rest = sentence.partition(": ")
    if colon and head.replace("_", "").replace(".", "").isalnum():
        return (f"{path}.{head}" if path else head), rest
    return path, sentence


def _participants(value: Any) -> tuple[list[Silo], list[dict[str, Any]]]:
    if not isinstance(value, list) or not value:
        raise Refused("PARTICIPANTS", "Choose the hospitals that are asked; at least three.", status=422)
    wanted: dict[str, int] = {}
    for item in value:
        name = item.get("silo") if isinstance(item, Mapping) else item
        weight = item.get("weight", 1) if isinstance(item, Mapping) else 1
        if not isinstance(name, str) or name in wanted:
            raise Refused("PARTICIPANTS", "Every participant is the name of a silo, and stands once.", status=422)
        wanted[name] = weight
    silos = list(
        Silo.objects.filter(name__in=wanted, state=SiloState.ACTIVE).select_related("organisation").order_by("name")
    )
    missing = sorted(wanted.keys() - {silo.name for silo in silos})
    if missing:
        raise Refused("PARTICIPANTS", f"These silos are not active: {', '.join(missing)}.", status=422)
    return sorted(silos, key=lambda silo: silo.name), [
        {
            "silo": silo.name,
            "organisation": silo.organisation.name,
            "country": silo.organisation.country,
            "public": b64(silo.public or b""),
            "weight": wanted[silo.name],
        }
        for silo in sorted(silos, key=lambda silo: silo.name)
    ]
