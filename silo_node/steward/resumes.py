"""What a steward signs to let a paused study go on, and what must be known before: `silo resume`.

Signed here with the steward's own key, kept in the silo's folder; the running silo takes it up by itself (pauses.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from protocol.canonical import CanonicalError, is_digest
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import MAX_LISTS
from protocol.secure_aggregation.resume import PAYLOAD_TYPE, Resume
from protocol.signing import Envelope, SignatureError, sign_envelope, verify_envelope
from protocol.trust import STEWARD, Trust
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.files import write_json
from silo_node.node import Node
from silo_node.steward import documents, pauses
from silo_node.steward.approvals import load_steward, steward_actor
from silo_node.steward.one_at_a_time import one_at_a_time
from silo_node.steward.pauses import Pause


def waiting(config: Config, study: str) -> Pause:
    """The pause of a study. Raises: UsageError where there is nothing to resume."""
    pause = pauses.read(config, study) if study in {each.study for each in pauses.every(config)} else None
    if pause is None:
        raise UsageError(f"{study} is not paused at this silo: there is nothing to resume (`silo status` shows why)")
    if pause.model is None:
        raise UsageError(
            f"studies/{study}/paused.json does not say for which model the study is paused: remove it; the journal still "
            "refuses, and `silo run` writes the note anew with the next round"
        )
    return pause


def risk(pause: Pause, silo: str) -> list[str]:
    """What a steward must know before signing, as sentences."""
    if pause.made is not None:
        return _risk_of_going_back(pause, silo)
    said = [
        f"For one model state ({pause.model}) this silo has signed {pause.lists} lists of hospitals and helped to unmask "
        f"{pause.unmasked} of them, and no new model came of it."
    ]
    # With many silos a list is signed by its root: this silo never saw whom it names.
    by_root = any(is_digest(name) for row in pause.signed for name in row["members"])
    said += [f"Round {row['round']}: {', '.join(row['members'])}." for row in pause.signed]
    said.append(
        "Each unmasked list gives the portal one sum. Two sums for the same model that differ by one hospital give away "
        "that hospital's update: it is their difference. An update can tell things about single patients."
    )
    if by_root:
        same = len({tuple(row["members"]) for row in pause.signed}) == 1
        said.append(
            "All of these lists name the same hospitals."
            if same
            else "With so many hospitals this silo knows a list by its root only. It can't say by whom two of them differ: it "
            "may be one hospital."
        )
    else:
        said += _apart(pause, silo) or ["No two of these lists differ by one hospital only; the next one may."]
    said += [
        "Rounds fail for honest reasons: a network, a full disk, a hospital that went away. A portal that plays false makes "
        "them fail until it has two such sums. Ask its admin and the other hospitals what happened before you sign.",
        f"A resume lets this silo sign up to {MAX_LISTS} further lists for this model, also of other hospitals than before. "
        "Without it the study stays where it is at this hospital, and nothing more is revealed.",
    ]
    return said


def _risk_of_going_back(pause: Pause, silo: str) -> list[str]:
    made = (pause.made or (0, 0))[0]
    said = [
        f"Round {pause.asked} is to start again from an older model, {pause.model}, which round {made} made. What "
        f"{pause.lost} made since is thrown away."
    ]
    said += [f"This silo signed a list for that model before. Round {row['round']}: {', '.join(row['members'])}."
             for row in pause.signed] or ["This silo has signed no list of hospitals for that model before."]  # fmt: skip
    said += [
        f"It helped to unmask {pause.unmasked} of them: each unmasked list gives the portal one sum."
        if pause.signed
        else "A later list gives the portal one more sum."
    ]
    said += [
        "Training again from the same model gives nearly the same updates again, so the new sum is close to the earlier one. "
        "Where the two are over different hospitals, their difference is, nearly, the update of those that are in one only: "
        "if that is one hospital, its update alone. An update can tell things about single patients. Over the same hospitals "
        "the difference is mostly chance.",
        "So ask which hospitals go along before you sign: where one that was in the earlier sum stays away, the rest give "
        "away nearly what that one sent; where yours is the only new one, yours.",
        "A model gets worse for honest reasons, and for false scores of one hospital. A portal that plays false can say it "
        "without any. The figures, the rounds between and who decided are on the study's results page; ask the network's admin "
        "and the other hospitals.",
    ]
    said += _apart(pause, silo)
    said += [
        "A resume lets the study go back to exactly this model at this silo, once, and lets the silo sign up to "
        f"{MAX_LISTS} further lists for it, also of other hospitals than before. It counts as a round of training towards "
        "the limit that was approved. Without it no further round of this study runs at this hospital."
    ]
    return said


def _apart(pause: Pause, silo: str) -> list[str]:
    """Which two lists differ by one silo only, as sentences."""
    return [
        f"The lists of rounds {one['round']} and {other['round']} differ by one hospital only: {name}"
        + (", which is this one." if name == silo else ".")
        for one, other in combinations(pause.signed, 2)
        for name in _only_difference(one, other)
    ]


def pending(config: Config, pause: Pause, now: datetime) -> tuple[Envelope, Resume, frozenset[str]] | None:
    """(envelope, statement, people) of a resume that a trusted steward has signed for this pause already; None without."""
    trust = documents.load_trust(config)
    for envelope in pauses.signed_for(config, pause):
        try:
            people = _people(trust, envelope, now)
        except SignatureError:
            continue  # by nobody whom trust.json names now: as if it were not there
        return envelope, Resume.parse(envelope.payload), people
    return None


def sign(
    node: Node, pause: Pause, *, passphrase: bytes, reason: str, now: datetime | None = None
) -> tuple[Envelope, int]:
    """Sign the resume of exactly this pause, record it and keep it. Where a colleague has signed it, add a signature to
    the same words.

    Returns: the envelope, and how many people must still sign. Raises: UsageError, Refused (TRUST).
    """
    now = now or datetime.now(UTC)
    payload = draft(node.config, pause, reason, now)
    key = load_steward(node.config, documents.load_trust(node.config), passphrase)
    return keep(node, pause, sign_envelope(PAYLOAD_TYPE, payload, key), now=now)


def draft(config: Config, pause: Pause, reason: str, now: datetime | None = None) -> bytes:
    """The exact bytes of a resume for a steward to sign: those that a colleague has signed, else new ones.

    Raises: UsageError, without a reason or with another than the colleague's.
    """
    before = pending(config, pause, now or datetime.now(UTC))
    text = unicodedata.normalize("NFC", reason.strip())
    if before is not None:
        if text not in ("", before[1].reason):
            raise UsageError("a colleague has signed a resume with another reason: sign the same one, without --reason")
        return before[0].payload
    if not text:
        raise UsageError("a reason is needed to resume: --reason TEXT")
    try:
        payload = _statement(config, pause, text).to_payload()
        Resume.parse(payload)
    except (CanonicalError, ProtocolViolation) as error:
        raise UsageError(f"the resume can't be signed: {getattr(error, 'sentence', error)}") from None
    return payload


def keep(node: Node, pause: Pause, signed: Envelope, *, now: datetime | None = None) -> tuple[Envelope, int]:
    """Take one steward's signature under the resume of exactly this pause, of a key or a passkey; record it and keep it.

    Verification: 1. it is about this pause as it stands; 2. where a colleague has signed, the same bytes; 3. every
    signature, and that the one who signs now counts today.
    Returns: as `sign`. Raises: UsageError, Refused (TRUST).
    """
    with one_at_a_time(node.config):
        return _keep(node, pause, signed, now or datetime.now(UTC))


def _keep(node: Node, pause: Pause, signed: Envelope, now: datetime) -> tuple[Envelope, int]:
    config, trust = node.config, documents.load_trust(node.config)
    ((name, _),) = signed.signatures
    try:
        # 1
        statement = Resume.parse(signed.payload)
        if statement.silo != config.name or not waiting(config, pause.study).covered_by(statement):
            raise UsageError("the pause is another one by now: read it again, nothing was signed")
        # 2
        before = pending(config, pause, now)
        envelope = signed if before is None else before[0].joined(signed)
        # 3
        people = _people(trust, envelope, now)
    except (CanonicalError, ProtocolViolation, SignatureError) as error:
        raise UsageError(f"the resume can't be signed: {getattr(error, 'sentence', error)}") from None
    if name not in trust.publics(now=now):
        raise UsageError("this steward's key is over: trust.json says until when; another steward can sign")
    missing = max(0, trust.roles[STEWARD] - len(people))
    node.evidence.record(
        "study.resumed",
        subject=("study", pause.study, None),
        refs={"model": str(pause.model), "resume": envelope.digest},
        data={"step": "signed", "lists": pause.lists, "unmasked": pause.unmasked, "missing": missing},
        private={"reason": statement.reason},
        actor=steward_actor(node, name),
    )
    write_json(config.resumes / pause.study / f"{envelope.digest.removeprefix('sha256:')}.json", envelope.as_dict())
    return envelope, missing


def _statement(config: Config, pause: Pause, reason: str) -> Resume:
    return Resume(
        silo=config.name,
        study=pause.study,
        model=str(pause.model),
        lists=pause.lists,
        unmasked=pause.unmasked,
        back=pause.back,
        reason=reason,
    )


def _people(trust: Trust, envelope: Envelope, now: datetime) -> frozenset[str]:
    """Who of today's stewards signed. Raises: SignatureError where it is nobody, or a signature fails."""
    return trust.people(verify_envelope(envelope, payload_type=PAYLOAD_TYPE, keys=trust.publics(now=now)))


def _only_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The one silo by which two lists differ; nothing where it is none or more."""
    apart = sorted(set(one["members"]) ^ set(other["members"]))
    return apart if len(apart) == 1 else []
