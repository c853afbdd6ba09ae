"""What the page says about decisions: whether they hold today, what changed since the last one, and who may sign next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from protocol.approval import ApprovalError, check_approvals
from protocol.manifest_changes import Changes
from protocol.policy import match_digest
from silo_node.config import Config
from silo_node.errors import SiloError
from silo_node.steward import documents, trust_changes
from silo_node.steward.approvals import Proposal
from silo_node.steward.decisions import difference
from silo_node.steward.trust_changes import Draft


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
class Changed:
    """What differs from the version that was decided about last. changes: None where that version's text is gone."""

    since: str
    decision: str
    changes: Changes | None


def changed(config: Config, proposal: Proposal) -> Changed | None:
    """None where nobody has decided about another version before."""
    found = difference(config, proposal)
    return None if found is None else Changed(found[0].time, found[0].decision, found[1])


def propose(config: Config, keyid: str, entry: dict[str, Any]) -> Draft:
    """Put a passkey into the draft of the next trust.json: it counts for nothing before the stewards have signed.

    Raises: UsageError.
    """
    return trust_changes.propose(config, add={keyid: entry})
