"""Studies to read and to decide about, and the stewards' passkeys."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

from protocol.approval import parse_statement
from silo_node.errors import PortalError, PortalRefused, SiloError, UsageError
from silo_node.health import status as reports
from silo_node.page import reading, trusting
from silo_node.page.asking import Answer, Ask, Shown
from silo_node.page.studies import QUESTIONS, checked_name, known, mine, mine_of_draft, opened, read
from silo_node.steward import approvals, resumes, trust_changes
from silo_node.steward import passkeys as keys

DECISIONS = ("approve", "reject", "revoke")


def studies(asked: Ask) -> Answer:
    """Every study that this silo knows, those that wait for a decision first."""
    report = reports.report(asked.config)
    return Shown("studies.html", {"studies": known(asked.config, report["studies"]), "running": report["running"]})


def study(asked: Ask) -> Answer:
    """One study in words, what the policy says, what was decided; for a steward the form."""
    return _study(asked, "", {})


def _study(asked: Ask, error: str, form: dict[str, str], status: int = 200) -> Answer:
    name = checked_name(asked.config, asked.path["study"])
    seen = read(asked.config, name)
    trust = reading.trust(asked.config)
    my = mine(asked)
    said = reading.decisions(asked.config, name)
    return Shown(
        "study.html",
        {
            "study": name,
            "proposal": seen.proposal,
            "content": seen.proposal.content,
            "problem": seen.problem,
            "changed": trusting.changed(asked.config, seen.proposal),
            "said": said,
            "pause": _pause(asked, name),
            "in_force": trusting.standing(asked.config, name, seen.proposal),
            "trust": trust,
            "mine": my,
            "error": error,
            "form": form,
            "decided": form.get("decision") or ("revoke" if said and said[0].decision == "approve" else "approve"),
        },
        status,
    )


def study_refused(asked: Ask, error: UsageError, form: dict[str, str]) -> Answer:
    """The study's page with why nothing was signed."""
    return _study(asked, error.sentence, form, 400)


def _pause(asked: Ask, name: str) -> dict[str, Any] | None:
    """Why the study waits here, what letting it go on risks, and who has signed that already; None where it does not."""
    try:
        pause = resumes.waiting(asked.config, name)
        before = resumes.pending(asked.config, pause, datetime.now(UTC))
    except SiloError:
        return None
    people = sorted(before[2]) if before is not None else []
    reason = before[1].reason if before is not None else ""
    return {
        "sentence": pause.sentence,
        "risk": resumes.risk(pause, asked.config.name),
        "people": people,
        "reason": reason,
    }


def second_step(asked: Ask) -> Answer:
    """Names exactly what will be signed, and asks for the passkey. Nothing is signed yet."""
    name, form = checked_name(asked.config, asked.path["study"]), dict(asked.form)
    try:
        decision = form.get("decision", "")
        if decision not in DECISIONS:
            raise UsageError("Choose what you decide.")
        reason = form.get("reason", "").strip()
        if decision != "approve" and not reason:
            raise UsageError("A reason is needed to reject a study or to take an approval back.")
        my = mine(asked)
        keyid = form.get("key") or next(iter(my), "")
        if keyid not in my:
            raise UsageError("No passkey of yours is in the hospital's trust.json: decide with the command below.")
        with opened(asked.config) as node:
            proposal = approvals.fetch(node, name)
            if proposal.manifest != form.get("manifest"):
                raise UsageError("The study was changed while you read it: this is the new version, read it again.")
            payload = approvals.draft(
                node, proposal, decision, signer=keyid, reason=reason,
                max_rounds=_number(form, "max_rounds"), min_cohort=_number(form, "min_cohort"), until=_day(form),
            )  # fmt: skip
    except UsageError as error:
        return _study(asked, error.sentence, form, 400)
    number = QUESTIONS.ask("decision", asked.user.name, study=name, proposal=proposal, payload=payload, keyid=keyid)
    options = keys.assertion_options(my[keyid], payload)
    return Shown(
        "decide.html",
        {
            "study": name,
            "proposal": proposal,
            "statement": parse_statement(payload),
            "question": number,
            "options": json.dumps(options),
        },
    )


def sign(asked: Ask) -> Answer:
    """The passkey's answer: verified, kept and in force here, then shown to the portal."""
    name = checked_name(asked.config, asked.path["study"])
    held = QUESTIONS.take("decision", asked.form.get("question", ""), asked.user.name)
    if held["study"] != name:
        raise UsageError("This question was about another study. Nothing was signed.", "QUESTION_OVER")
    key = mine(asked).get(held["keyid"])
    if key is None:
        raise UsageError("This passkey is no longer in the hospital's trust.json. Nothing was signed.")
    envelope = keys.approve(key, held["payload"], response(asked))
    unsent: str | None = None
    with opened(asked.config) as node:
        approvals.keep(node, held["proposal"], envelope)
        try:
            approvals.send(node, name, envelope)
        except (PortalError, PortalRefused) as error:
            unsent = error.sentence
    statement = parse_statement(envelope.payload)
    values = {"study": name, "statement": statement, "digest": envelope.digest, "unsent": unsent,
              "in_force": trusting.standing(asked.config, name, held["proposal"])}  # fmt: skip
    return Shown("decided.html", values)


def passkeys(asked: Ask) -> Answer:
    """The keys that speak for this hospital, and a form for one more passkey."""
    return _passkeys(asked, "")


def passkeys_refused(asked: Ask, error: UsageError) -> Answer:
    """The page of keys with why nothing was signed."""
    return _passkeys(asked, error.sentence, 400)


def _passkeys(asked: Ask, error: str, status: int = 200, proposed: str | None = None) -> Answer:
    config, user = asked.config, asked.user
    trust = reading.trust(config)
    draft = trust_changes.read_draft(config) if trust is not None else None
    values: dict[str, Any] = {
        "trust": trust,
        "draft": draft,
        "changes": trust_changes.differences(trust, draft.document) if trust is not None and draft is not None else [],
        "draft_keys": mine_of_draft(asked, draft) if draft is not None else {},
        "error": error,
        "proposed": proposed,
        "options": None,
        "question": "",
        "now": datetime.now(UTC),
    }
    if trust is not None and proposed is None:
        page = keys.Page(config.settings.page.origin)
        try:
            options, state = keys.registration_options(page, trust, user.person)
            values["options"] = json.dumps(options)
            values["question"] = QUESTIONS.ask("passkey", user.name, state=state)
        except UsageError as problem:
            values["error"] = error or problem.sentence
    return Shown("passkeys.html", values, status)


def register(asked: Ask) -> Answer:
    """The browser's new passkey: a proposal for the next trust.json. It counts for nothing until the stewards sign it."""
    held = QUESTIONS.take("passkey", asked.form.get("question", ""), asked.user.name)
    page = keys.Page(asked.config.settings.page.origin)
    try:
        keyid, entry = keys.register(page, held["state"], response(asked))
        trusting.propose(asked.config, keyid, entry)
    except UsageError as error:
        return _passkeys(asked, error.sentence, 400)
    return _passkeys(asked, "", proposed=keyid)


def response(asked: Ask) -> dict[str, Any]:
    """What the browser's authenticator answered. Raises: UsageError."""
    try:
        value = json.loads(asked.form.get("response", ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError("The browser sent no answer of a passkey. Nothing was signed.", "PASSKEY_NOT_VALID")
    return value


def _number(form: dict[str, str], name: str) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or int(text) == 0:
        raise UsageError(f"{name.replace('_', ' ')}: must be a whole number above zero")
    return int(text)


def _day(form: dict[str, str]) -> date | None:
    text = form.get("until", "").strip()
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise UsageError("until: must be a day, YYYY-MM-DD") from None
