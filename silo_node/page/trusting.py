"""What the page says about decisions: whether they hold today, what changed since the last one, and a new key's proposal."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from protocol.approval import ApprovalError, Trust, check_approvals
from protocol.manifest import ManifestError, describe, parse_manifest
from protocol.policy import match_digest
from silo_node import documents
from silo_node.approvals import Proposal
from silo_node.config import Config
from silo_node.errors import SiloError
from silo_node.files import write_json
from silo_node.page import reading


@dataclass(frozen=True)
class Standing:
    """Whether the approvals hold for the version shown, now. sentence: why not, or until when and by whom."""

    holds: bool
    sentence: str


def standing(config: Config, study: str, proposal: Proposal) -> Standing:
    """The gate's own check of the approvals, for the version in hand."""
    try:
        found = check_approvals(
            documents.load_approvals(config, study),
            trust=documents.load_trust(config),
            silo=config.name,
            study=study,
            manifest=proposal.manifest,
            policy=proposal.policy.digest,
            match=match_digest(proposal.found),
            now=datetime.now(UTC),
        )
    except ApprovalError as error:
        return Standing(False, error.sentence)
    except SiloError as error:
        return Standing(False, error.sentence)
    return Standing(True, f"Approved by {', '.join(found.people)}, until {found.not_after:%Y-%m-%d %H:%M} UTC.")


@dataclass(frozen=True)
class Changes:
    """What differs from the version that was decided about last: (label, before, now); before or now "" where there is none."""

    since: str
    lines: list[tuple[str, str, str]]


def changes(config: Config, study: str, proposal: Proposal) -> Changes | None:
    """None where nobody has decided about another version before, or its text is not here any more."""
    earlier = [said for said in reading.decisions(config, study) if said.manifest != proposal.manifest]
    if not earlier:
        return None
    path = config.studies / study / f"{earlier[0].manifest.removeprefix('sha256:')}.json"
    try:
        before = dict(describe(parse_manifest(path.read_bytes())))
    except (OSError, ManifestError):
        return None
    now = dict(proposal.words)
    lines = [
        (label, before.get(label, ""), now.get(label, ""))
        for label in [*now, *(label for label in before if label not in now)]
        if before.get(label) != now.get(label)
    ]
    return Changes(earlier[0].time, lines)


@dataclass(frozen=True)
class Proposed:
    """A key that waits for the stewards' signatures. path: the proposal. command: what a steward types next."""

    keyid: str
    person: str
    command: str


def propose(config: Config, trust: Trust, keyid: str, entry: dict[str, Any]) -> Proposed:
    """Leave a passkey's entry for `silo trust`: it counts for nothing before the stewards have signed."""
    path = config.folder / "proposals" / f"passkey-{keyid[:16]}.json"
    write_json(path, {keyid: entry})
    return Proposed(keyid, str(entry["person"]), f"silo trust propose {shlex.quote(str(config.folder))} --add {shlex.quote(str(path))}")
