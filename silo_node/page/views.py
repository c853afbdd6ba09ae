"""The pages that show: status, images, policy, consent, budget, what left, the settings check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from protocol.approval import utc_text
from protocol.manifest import study_facts
from protocol.policy import PolicyError, describe_policy, freeze_policy, load_closure, match, parse_policy, policy_facts
from silo_node import documents
from silo_node import status as reports
from silo_node.errors import SiloError
from silo_node.page import checks, reading
from silo_node.page import sent as log
from silo_node.page.asking import Answer, Ask, File, Sent, Shown


def status(asked: Ask) -> Answer:
    """What the silo is doing, and what is wrong."""
    return Shown("status.html", {"report": reports.report(asked.config), "checked": checks.last(asked.config)})


def now(asked: Ask) -> Answer:
    """The changing part of the status page, for the page that stays open."""
    return Shown("_now.html", {"report": reports.report(asked.config)})


def images(asked: Ask) -> Answer:
    """The index in numbers; files by name only for hospital IT."""
    code, page = asked.query.get("problem", "")[:64], page_of(asked.query)
    found = reading.images(asked.config, code=code, page=page, name_files=asked.user.role == "it")
    return Shown(
        "images.html", {"images": found, "code": code, "page": page, "pages": pages(found.found if found else 0)}
    )


def policy(asked: Ask) -> Answer:
    """The policy in force in words, and an editor with a preview."""
    return _policy(asked, None)


def preview(asked: Ask) -> Answer:
    """An edited policy in words, and what it would say to the studies in hand. Nothing is signed or kept."""
    return _policy(asked, asked.form.get("policy", ""))


def _policy(asked: Ask, text: str | None) -> Answer:
    config, problem, in_force = asked.config, None, None
    try:
        in_force = documents.load_policy(config, documents.load_trust(config), now=datetime.now(UTC))[1]
    except SiloError as error:
        problem = error
    held = documents.read_envelope(config.policy)
    values: dict[str, Any] = {
        "problem": problem,
        "policy_words": describe_policy(in_force) if in_force else [],
        "digest": held.digest if held else None,
        "studies": _said(asked, policy_facts(in_force)) if in_force else [],
        "text": text if text is not None else _editable(in_force),
        "error": "",
        "preview": None,
    }
    if text is not None:
        try:
            document = _read_policy(asked, text, in_force.version if in_force else 0)
        except (ValueError, PolicyError) as error:
            return Shown("policy.html", {**values, "error": str(error)}, 400)
        values["preview"] = describe_policy(document)
        values["previewed"] = _said(asked, policy_facts(document))
    return Shown("policy.html", values)


def _read_policy(asked: Ask, text: str, last: int) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"It is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError("It must be one JSON object.")
    held = documents.read_envelope(asked.config.policy)
    organisation = parse_policy(held.payload).organisation if held is not None else asked.config.name
    return parse_policy(
        freeze_policy(
            {
                "silo": asked.config.name,
                "organisation": organisation,
                "version": last + 1,
                "issued": utc_text(datetime.now(UTC)),
                **value,
            }
        )
    )


def _editable(document: Any) -> str:
    """The policy as a steward edits it: without what `silo policy` fills in."""
    if document is None:
        value: dict[str, Any] = {
            "schema": "consilium/policy/1",
            "permission": "DUO:0000006",
            "modifiers": [],
            "diseases": [],
            "limits": {},
            "legal_basis": None,
            "consent_default": "opt-in",
            "share_metrics": False,
            "partners": {"keys": {}, "min_known": 0},
        }
    else:
        value = document.model_dump(mode="json", by_alias=True, exclude={"silo", "organisation", "version", "issued"})
    return json.dumps(value, indent=2, ensure_ascii=False)


def _said(asked: Ask, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a policy says to each study that this silo has a text of."""
    folder, found = asked.config.studies, []
    for name in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []:
        kept = reading.kept_manifest(asked.config, name)
        if kept is not None:
            found.append(
                {"study": name, "title": kept[2].title, "match": match(facts, study_facts(kept[2]), load_closure())}
            )
    return found


def consent(asked: Ask) -> Answer:
    """Counts, source, age and problems of the consent registry."""
    return Shown("consent.html", {"consent": reading.consent(asked.config)})


def budget(asked: Ask) -> Answer:
    """What studies may spend, and have spent."""
    return Shown("budget.html", {"spent": reading.budget(asked.config)})


def sent(asked: Ask) -> Answer:
    """What left this hospital."""
    chosen, page = log.Filter.of(asked.query), page_of(asked.query)
    found = log.listing(asked.config, chosen, page)
    return Shown(
        "sent.html", {"listing": found, "chosen": chosen, "page": page, "pages": pages(found.total if found else 0)}
    )


def sent_file(asked: Ask) -> Answer:
    """The same as CSV."""
    return File(
        f"{asked.config.name}-sent.csv", "text/csv; charset=utf-8", log.as_csv(asked.config, log.Filter.of(asked.query))
    )


def check(asked: Ask) -> Answer:
    """What the last settings check found."""
    return Shown("check.html", {"checked": checks.last(asked.config)})


def check_now(asked: Ask) -> Answer:
    """Check again; a few seconds."""
    checks.run(asked.config)
    return Sent("/check")


def page_of(query: Mapping[str, str]) -> int:
    """Which page of a list; the first where the address says something else."""
    text = query.get("page", "1")
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text) < 1_000_000 else 1


def pages(rows: int) -> int:
    """How many pages a list has."""
    return max(1, -(-rows // reading.PAGE_ROWS))
