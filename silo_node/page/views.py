"""The pages that show: status, images, policy, consent, budget, what left, the settings check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from silo_node.errors import SiloError, UsageError
from silo_node.health import status as reports
from silo_node.pacs import state
from silo_node.page import checks, reading
from silo_node.page import sent as log
from silo_node.page.asking import Answer, Ask, File, Sent, Shown
from silo_node.page.studies import mine, opened
from silo_node.steward import approvals, documents, policies


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
    shown = {"images": found, "code": code, "page": page, "pages": pages(found.found if found else 0)}
    try:
        kept_out = state.kept_out(state.report(asked.config))
    except SiloError:
        kept_out = []  # a pacs.db that can't be read is a problem on the status page
    return Shown("images.html", {**shown, "kept_out": kept_out})


def policy(asked: Ask) -> Answer:
    """The policy in force in words, and a text to try a change with."""
    return _policy(asked, None)


def preview(asked: Ask) -> Answer:
    """An edited policy in words, and what it would say to the studies in hand. Nothing is signed or kept."""
    return _policy(asked, asked.form.get("policy", ""))


def policy_refused(asked: Ask, text: str | None, error: UsageError) -> Answer:
    """The same page with why nothing was signed, and the text that was edited."""
    return _policy(asked, text, error.sentence)


def _policy(asked: Ask, text: str | None, error: str = "") -> Answer:
    config, problem, in_force = asked.config, None, None
    try:
        in_force = documents.load_policy(config, documents.load_trust(config), now=datetime.now(UTC))[1]
    except SiloError as found:
        problem = found
    held = documents.read_envelope(config.policy)
    values: dict[str, Any] = {
        "problem": problem,
        "digest": held.digest if held else None,
        "in_force": policies.preview(config, in_force) if in_force else None,
        "text": json.dumps(policies.content(config), indent=2, ensure_ascii=False) if text is None else text,
        "error": error,
        "preview": None,
        "waits": _waiting(asked),
        "mine": mine(asked),
    }
    if text is not None and not error:
        try:
            with opened(config) as node:
                values["preview"] = policies.preview(config, policies.checked(node, as_object(text)))
        except UsageError as problem:
            values["error"] = problem.sentence
    return Shown("policy.html", values, 400 if values["error"] else 200)


def _waiting(asked: Ask) -> dict[str, Any] | None:
    """The policy that waits for a further signature, in words; None without one."""
    try:
        envelope, document = approvals.policy_to_sign(asked.config)
    except SiloError:
        return None
    return {"digest": envelope.digest, "version": document.version, **policies.preview(asked.config, document)}


def as_object(text: str) -> dict[str, Any]:
    """The JSON object in a form's text. Raises: UsageError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the text is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError("the text must be one JSON object")
    return value


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
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) else 1


def pages(rows: int) -> int:
    """How many pages a list has."""
    return max(1, -(-rows // reading.PAGE_ROWS))
