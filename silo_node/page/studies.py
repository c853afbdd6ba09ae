"""A study as a steward reads it at the page, and the decision about it in two steps: what is signed, then the passkey.

Between the steps the exact bytes to be signed wait in this process's memory, for one answer of the same person. A study
that changed in between is a new version with another digest: the steward reads again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from protocol.manifest import describe, study_facts
from protocol.policy import load_closure, match, policy_facts
from protocol.trust import TrustedKey, parse_trust
from silo_node.config import Config
from silo_node.errors import PortalError, PortalRefused, Refused, SiloError, UsageError
from silo_node.node import Node
from silo_node.page import reading
from silo_node.page.asking import Ask
from silo_node.pin import Pin
from silo_node.steward import approvals, documents, passkeys
from silo_node.steward.approvals import Proposal
from silo_node.steward.trust_changes import Draft

WAIT_SECONDS: Final = 600.0
MOST_WAITING: Final = 32


@dataclass(frozen=True)
class Seen:
    """A study to read. proposal: None where there is no policy yet. problem: why the portal's newest text is not shown."""

    proposal: Proposal
    problem: SiloError | None


@dataclass(frozen=True)
class Waiting:
    """Something that a browser must answer. what: of which kind. name: the user who may answer. content: for the view."""

    what: str
    name: str
    ends: float
    content: dict[str, Any] = field(repr=False)


class Questions:
    """What waits for an answer of a browser; each is taken once, by who was asked, in time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, Waiting] = {}

    def ask(self, what: str, name: str, **content: Any) -> str:
        """Keep it; the id for the form. The oldest goes where there are too many."""
        with self._lock:
            now = self._clock()
            self._held = {key: each for key, each in self._held.items() if each.ends > now}
            while len(self._held) >= MOST_WAITING:
                del self._held[min(self._held, key=lambda key: self._held[key].ends)]
            number = secrets.token_urlsafe(16)
            self._held[number] = Waiting(what, name, now + WAIT_SECONDS, content)
        return number

    def take(self, what: str, number: str, name: str) -> dict[str, Any]:
        """What was asked. Raises: UsageError."""
        with self._lock:
            found = self._held.get(number)
            if found is not None and (found.what, found.name) == (what, name) and found.ends > self._clock():
                del self._held[number]
                return found.content
        raise UsageError(
            "This question is over or was answered already: begin again. Nothing was signed.", "QUESTION_OVER"
        )


QUESTIONS: Final = Questions()


@contextmanager
def opened(config: Config) -> Iterator[Node]:
    """The silo, for one request to the portal or one record. Raises: UsageError before enrolment."""
    node = Node(config, Pin.load(config))
    try:
        yield node
    finally:
        node.close()


def known(config: Config, live: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every study that waits, was decided, or whose text is here: study, title, state, decision, time.

    Parameters: live: `studies` of the status report.
    """
    found: dict[str, dict[str, Any]] = {
        str(each["study"]): {"title": each.get("title"), "state": each.get("state") or each.get("kind")}
        for each in live
        if each.get("study")
    }
    for folder in (config.studies, config.approvals):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            found.setdefault(path.name, {"title": None, "state": None})
    for study, each in found.items():
        kept = reading.kept_manifest(config, study)
        said = reading.decisions(config, study)
        each["study"] = study
        each["title"] = each["title"] or (kept[2].title if kept else study)
        each["decision"] = said[0].decision if said else None
        each["time"] = said[0].time if said else None
        each["until"] = said[0].not_after if said and said[0].decision == "approve" else None
    return sorted(found.values(), key=lambda each: (each["decision"] is not None, each["title"]))


def read(config: Config, study: str) -> Seen:
    """The newest text from the portal; where it does not answer, the one that is here, and why. Raises: SiloError."""
    try:
        with opened(config) as node:
            return Seen(approvals.fetch(node, study), None)
    except (PortalError, PortalRefused) as error:
        kept = reading.kept_manifest(config, study)
        if kept is None:
            raise
        manifest, data, content = kept
        trust = documents.load_trust(config)
        envelope, policy = documents.load_policy(config, trust, now=datetime.now(UTC))
        said = match(policy_facts(policy), study_facts(content), load_closure())
        return Seen(Proposal(study, data, manifest, content, list(describe(content)), envelope, said), error)


def mine(asked: Ask) -> dict[str, TrustedKey]:
    """The passkeys with which this user can sign at this page, by keyid."""
    trust = reading.trust(asked.config)
    if trust is None or asked.user.role != "steward":
        return {}
    return passkeys.of_person(trust, asked.user.person, asked.config.settings.page.origin)


def mine_of_draft(asked: Ask, draft: Draft) -> dict[str, TrustedKey]:
    """This person's passkeys that may sign the draft and have not: those in force, and those that the draft brings."""
    after = parse_trust(draft.envelope.payload)
    found = {**passkeys.of_person(after, asked.user.person, asked.config.settings.page.origin), **mine(asked)}
    return {name: key for name, key in found.items() if name not in draft.signed}


def checked_name(config: Config, study: str) -> str:
    """A study's id as it may stand in a path. Raises: Refused."""
    plain = study.isascii() and 0 < len(study) <= 70 and all(each.isalnum() or each in "-_" for each in study)
    if not plain:
        raise Refused("NO_SUCH_STUDY", "There is no study of this name.")
    return study
