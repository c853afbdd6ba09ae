"""What a steward signs beside studies: the policy, the resume of a paused study, the next trust.json.

Each in two steps, as a study's decision: the first names exactly what is signed and keeps the bytes (studies.py), the
second takes the passkey's answer. What may be signed is decided by steward/ alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from protocol.policy import POLICY_TYPE, parse_policy
from protocol.secure_aggregation.resume import PAYLOAD_TYPE as RESUME_TYPE
from protocol.secure_aggregation.resume import Resume
from protocol.signing import Envelope
from protocol.trust import TRUST_TYPE, TrustedKey
from silo_node.errors import PortalError, PortalRefused, UsageError
from silo_node.page import views, views_decide
from silo_node.page.asking import Answer, Ask, Shown
from silo_node.page.studies import QUESTIONS, checked_name, mine, mine_of_draft, opened
from silo_node.page.views_decide import response
from silo_node.steward import approvals, documents, policies, resumes, trust_changes
from silo_node.steward import passkeys as keys


class Step(NamedTuple):
    """One kind of signature. what: in the list of questions. does: on the button. back, where: the page one comes from."""

    what: str
    payload_type: str
    does: str
    back: str
    where: str


POLICY: Final = Step("policy", POLICY_TYPE, "Sign the policy", "/policy", "Policy")
RESUME: Final = Step("resume", RESUME_TYPE, "Let it go on", "/studies", "Studies")
TRUST: Final = Step("trust", TRUST_TYPE, "Sign the draft", "/passkeys", "Passkeys and keys")


def policy_step(asked: Ask) -> Answer:
    """The first step: an edited policy, or the one that waits for a further signature."""
    text = asked.form.get("policy", "")
    try:
        if asked.form.get("waiting"):
            payload = approvals.policy_to_sign(asked.config)[0].payload
        else:
            with opened(asked.config) as node:
                payload = approvals.draft_policy(node, views.as_object(text))[0]
        policy = parse_policy(payload)
        said = policies.preview(asked.config, policy)
        facts = {"Version": str(policy.version), "Hospital": policy.silo}
        return _ask(asked, POLICY, f"Sign version {policy.version} of the data-use policy?", payload, facts, said["words"],
                    gone=said["gone"], candidates=mine(asked))  # fmt: skip
    except UsageError as error:
        return views.policy_refused(asked, text or None, error)


def policy_sign(asked: Ask) -> Answer:
    """The passkey's answer: in force here, or kept until enough people have signed; then shown to the portal."""
    envelope = _signed(asked, POLICY, mine(asked))[0]
    with opened(asked.config) as node:
        envelope = approvals.keep_policy(node, envelope)
        missing = approvals.missing_people(documents.load_trust(asked.config), envelope, datetime.now(UTC))
        unsent = None if missing else _sent(lambda: approvals.send_policy(node, envelope))
    now = (
        f"Not in force: {missing} more of this hospital's people must sign the same."
        if missing
        else "It is in force here now."
    )
    return _done(POLICY, "Signed: the policy", envelope, now, unsent, "silo policy --send")


def resume_step(asked: Ask) -> Answer:
    """The first step: a paused study, what letting it go on risks, and why it may."""
    name, form = checked_name(asked.config, asked.path["study"]), dict(asked.form)
    try:
        pause = resumes.waiting(asked.config, name)
        payload = resumes.draft(asked.config, pause, form.get("reason", ""))
        statement = Resume.parse(payload)
        facts = {"Study": name, "Model": statement.model, "Lists signed": str(statement.lists),
                 "Lists unmasked": str(statement.unmasked), "Reason": statement.reason}  # fmt: skip
        return _ask(asked, RESUME._replace(back=f"/studies/{name}", where=name), f"Let {name} go on and bear this risk?",
                    payload, facts, resumes.risk(pause, asked.config.name), candidates=mine(asked), study=name)  # fmt: skip
    except UsageError as error:
        return views_decide.study_refused(asked, error, form)


def resume_sign(asked: Ask) -> Answer:
    """The passkey's answer: kept here; the running silo takes it up with the next round."""
    name = checked_name(asked.config, asked.path["study"])
    envelope, held = _signed(asked, RESUME, mine(asked))
    if held["study"] != name:
        raise UsageError("This question was about another study. Nothing was signed.", "QUESTION_OVER")
    with opened(asked.config) as node:
        envelope, missing = resumes.keep(node, resumes.waiting(asked.config, name), envelope)
    now = (
        f"{missing} more of this hospital's stewards must sign the same."
        if missing
        else "It holds from the next round that the portal announces; no restart."
    )
    return _done(RESUME._replace(back=f"/studies/{name}", where=name), "Signed: the study goes on", envelope, now)


def trust_step(asked: Ask) -> Answer:
    """The first step: what the draft of the next trust.json changes."""
    try:
        draft = _draft(asked)
        version = draft.document["version"]
        changes = trust_changes.differences(documents.load_trust(asked.config), draft.document)
        facts = {"Version": str(version), "People who must agree": str(draft.document["roles"]["steward"])}
        return _ask(asked, TRUST, f"Sign version {version} of who decides?", draft.envelope.payload, facts, changes,
                    candidates=mine_of_draft(asked, draft))  # fmt: skip
    except UsageError as error:
        return views_decide.passkeys_refused(asked, error)


def trust_sign(asked: Ask) -> Answer:
    """The passkey's answer: one more signature under exactly this draft. It is not put in force by that."""
    envelope = _signed(asked, TRUST, mine_of_draft(asked, _draft(asked)))[0]
    draft = trust_changes.add_signature(asked.config, envelope)
    here, there = draft.missing
    now = (
        f"Missing: {here} of the people in force, {there} of the people of the draft (one person may be both)."
        if here or there
        else "Signed by enough people: it can be put in force."
    )
    return _done(TRUST, "Signed: the draft", draft.envelope, now)


def trust_apply(asked: Ask) -> Answer:
    """Put the draft that was shown in force, where enough people have signed it, and show it to the portal."""
    draft = _draft(asked)
    if draft.envelope.digest != asked.form.get("draft"):
        raise UsageError("The draft was changed while you read it: read it again. Nothing was changed.")
    with opened(asked.config) as node:
        trust = trust_changes.apply(node)
        policy = documents.read_envelope(asked.config.policy)
        missing = approvals.missing_people(trust, policy, datetime.now(UTC)) if policy is not None else 0
        unsent = _sent(lambda: trust_changes.send(node))
    now = f"Version {trust.version} is in force."
    if missing:
        now += f" The data-use policy has too few signatures now, so no round runs: {missing} more people must sign it."
    return _done(TRUST, "In force: who decides", draft.envelope, now, unsent, "silo trust send")


def _ask(
    asked: Ask,
    step: Step,
    title: str,
    payload: bytes,
    facts: Mapping[str, str],
    sentences: list[str],
    *,
    candidates: Mapping[str, TrustedKey],
    gone: list[str] | None = None,
    study: str = "",
) -> Answer:
    """The page that names what is signed. Raises: UsageError where this person has no passkey for it."""
    keyid = asked.form.get("key") or next(iter(candidates), "")
    if keyid not in candidates:
        raise UsageError(
            "No passkey of yours can sign this here: the hospital's trust.json names none, or it has signed."
        )
    number = QUESTIONS.ask(step.what, asked.user.name, payload=payload, keyid=keyid, study=study)
    options = keys.assertion_options(candidates[keyid], payload, payload_type=step.payload_type)
    return Shown(
        "sign.html",
        {
            "step": step,
            "title": title,
            "facts": {**facts, "Signed by": f"{asked.user.person}, steward"},
            "digest": Envelope(step.payload_type, payload, ()).digest,
            "sentences": sentences,
            "gone": gone or [],
            "to": f"{asked.address}/sign",
            "question": number,
            "options": json.dumps(options),
        },
    )


def _signed(asked: Ask, step: Step, candidates: Mapping[str, TrustedKey]) -> tuple[Envelope, dict[str, Any]]:
    """Exactly the bytes that were shown, signed by the passkey that was asked for. Raises: UsageError."""
    held = QUESTIONS.take(step.what, asked.form.get("question", ""), asked.user.name)
    key = candidates.get(held["keyid"])
    if key is None:
        raise UsageError("This passkey can't sign this any more. Nothing was signed.")
    return keys.approve(key, held["payload"], response(asked), payload_type=step.payload_type), held


def _done(step: Step, title: str, envelope: Envelope, now: str, unsent: str | None = None, command: str = "") -> Answer:
    values = {"step": step, "title": title, "digest": envelope.digest, "now": now, "unsent": unsent, "command": command}
    return Shown("signed.html", values)


def _sent(send: Any) -> str | None:
    """Show it to the portal; why it was not taken, None where it was."""
    try:
        send()
    except (PortalError, PortalRefused) as error:
        return error.sentence
    return None


def _draft(asked: Ask) -> trust_changes.Draft:
    draft = trust_changes.read_draft(asked.config)
    if draft is None:
        raise UsageError("There is no draft of the next trust.json any more. Nothing was signed.")
    return draft
