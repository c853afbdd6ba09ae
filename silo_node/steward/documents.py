"""The hospital's signed documents in the silo's folder: trust.json, policy.json, approvals/STUDY/*.json.

Each is a DSSE envelope as JSON. The bytes in it are verified whenever they are read; nothing is believed because it lies
here, since another process or a backup may have put it there.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from protocol.approval import ON_PORTAL_PAGE, ApprovalError, Statement, Trust, open_trust, parse_statement
from protocol.policy import POLICY_TYPE, PolicyDocument, PolicyError, parse_policy
from protocol.signing import Envelope, SignatureError
from silo_node.config import Config
from silo_node.errors import Refused, UsageError
from silo_node.files import read_json, write_json


def read_envelope(path: Path) -> Envelope | None:
    """The envelope in a file, None where there is no file. Raises: UsageError for a file that is no envelope."""
    value = read_json(path)
    if value is None:
        return None
    try:
        return Envelope.from_dict(value)
    except SignatureError as error:
        raise UsageError(f"{path}: {error}; restore it from a backup") from None


def load_trust(config: Config) -> Trust:
    """Who this hospital's stewards are.

    The file is as safe as the folder that it lies in; a new version is taken by `silo` commands only, which check that
    the stewards of the old one agreed. Raises: Refused (TRUST_MISSING, TRUST).
    """
    envelope = read_envelope(config.trust)
    if envelope is None:
        raise Refused("TRUST_MISSING", "This silo has no trust.json: make a steward's key with `silo steward`.")
    try:
        return open_trust(envelope, None)
    except (ApprovalError, SignatureError) as error:
        raise Refused("TRUST", f"The hospital's trust.json does not verify: {error}") from None


def load_policy(config: Config, trust: Trust, *, now: datetime) -> tuple[Envelope, PolicyDocument]:
    """The policy in force: 1. there is one, 2. the stewards signed it, 3. it is this silo's, 4. it is not over.

    Raises: Refused.
    """
    # 1
    envelope = read_envelope(config.policy)
    if envelope is None:
        raise Refused("POLICY_MISSING", "This hospital has signed no data-use policy: `silo policy` does it.")
    # 2
    try:
        trust.verify(envelope, payload_type=POLICY_TYPE)
        policy = parse_policy(envelope.payload)
    except SignatureError as error:
        raise Refused(
            "POLICY_SIGNATURE", f"The data-use policy is not signed by this hospital's stewards: {error}."
        ) from None
    except PolicyError as error:
        raise Refused("POLICY_NOT_VALID", f"The data-use policy can't be used: {error}") from None
    # 3
    if policy.silo != config.name:
        raise Refused("POLICY_OTHER_SILO", f"The data-use policy is for the silo {policy.silo}, this is {config.name}.")
    # 4
    expires = policy.limits.expires
    if expires is not None and now.date().isoformat() > expires:
        raise Refused(
            "POLICY_EXPIRED", f"The data-use policy was in force until {expires}; a steward can sign a new one."
        )
    return envelope, policy


def save_policy(config: Config, envelope: Envelope) -> None:
    """Put a policy in force."""
    write_json(config.policy, envelope.as_dict())


def load_approvals(config: Config, study: str) -> list[Envelope]:
    """Every statement of the stewards about a study, in the order of their file names; none is verified here."""
    folder = config.approvals / study
    if not folder.is_dir():
        return []
    found = [read_envelope(path) for path in sorted(folder.glob("*.json"))]
    return [envelope for envelope in found if envelope is not None]


def save_approval(config: Config, study: str, envelope: Envelope) -> Path:
    """Keep a statement beside the others; none is ever overwritten, because a revocation must not get lost."""
    path = config.approvals / study / f"{envelope.digest.removeprefix('sha256:')}.json"
    write_json(path, envelope.as_dict())
    return path


def statements(config: Config, study: str) -> list[Statement]:
    """The content of all statements about a study, unverified: to be dated after them, and to be shown."""
    return [parse_statement(envelope.payload) for envelope in load_approvals(config, study)]


def is_over(config: Config, study: str, now: datetime) -> bool:
    """Whether every version of the study that lies here has ended by its own dates."""
    ends = []
    for path in (config.studies / study).glob("*.json"):
        if path.name == "paused.json":
            continue
        try:
            ends.append(str(json.loads(path.read_bytes())["dates"]["end"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the gate fetches it anew and says what is wrong with it
    return bool(ends) and max(ends) < now.date().isoformat()


def summary(envelope: Envelope, trust: Trust | None = None) -> dict[str, Any]:
    """What a statement says, for display; remark: with `trust`, that it was made on a page of the portal."""
    try:
        statement = parse_statement(envelope.payload)
    except ApprovalError as error:
        return {"decision": "unreadable", "sentence": error.sentence}
    key = trust.keys.get(statement.signer.keyid) if trust is not None else None
    return {
        "decision": statement.decision,
        "by": statement.signer.name,
        "time": statement.time,
        "not_after": statement.not_after,
        "manifest": statement.manifest,
        "remark": ON_PORTAL_PAGE if key is not None and key.on_portal_page else None,
    }
