"""What a steward looks at before deciding: which studies wait, and what differs from the version decided about last.

And what ends soon: an approval, the policy, a steward's key.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from protocol.approval import ON_PORTAL_PAGE, ApprovalError, Statement, Trust, open_statement
from protocol.canonical import decode, digest
from protocol.data_use.document import parse_time
from protocol.manifest import ManifestError, parse_manifest
from protocol.manifest_changes import Changes, changes
from protocol.trust import STEWARD
from silo_node.config import Config
from silo_node.errors import Refused
from silo_node.steward import documents

if TYPE_CHECKING:
    from silo_node.node import Node
    from silo_node.steward.approvals import Proposal

REMIND: Final = timedelta(days=14)
"""How long before something is over `silo status` says so."""


def last_decision(config: Config, proposal: Proposal) -> Statement | None:
    """This hospital's newest decision on another version of the study, by a steward of today; None without one."""
    held = _verified(config, proposal.study, documents.load_trust(config))
    others = [each for each in held if each.manifest != proposal.manifest]
    return max(others, key=lambda each: parse_time(each.time), default=None)


def difference(config: Config, proposal: Proposal) -> tuple[Statement, Changes | None] | None:
    """The newest decision on another version, and what changed since; None for the second where those bytes are gone."""
    last = last_decision(config, proposal)
    if last is None:
        return None
    path = config.studies / proposal.study / f"{last.manifest.removeprefix('sha256:')}.json"
    try:
        data = path.read_bytes()
        if digest(data) != last.manifest:
            return last, None
        return last, changes(
            parse_manifest(data), proposal.content, decode(data, floats=True), decode(proposal.data, floats=True)
        )
    except (FileNotFoundError, ManifestError):
        return last, None


def missing(config: Config, proposal: Proposal) -> int:
    """How many people must still approve this version."""
    trust = documents.load_trust(config)
    return _missing(trust, _about(config, proposal.study, proposal.manifest, trust), datetime.now(UTC))


def waiting(node: Node) -> list[dict[str, Any]]:
    """The studies that the portal has for this hospital, with what was decided here.

    decision: of the newest statement about the version shown: approve, reject, revoke, or None. missing: how many people
    must still approve it. Raises: PortalError, PortalRefused, Refused (TRUST_MISSING).
    """
    answer = node.egress.get("/api/v1/silo/assignments", kind="poll", query={"wait": 0})
    trust, now = documents.load_trust(node.config), datetime.now(UTC)
    found = []
    for item in answer.json()["assignments"]:
        if item.get("kind") != "study":
            continue
        held = _about(node.config, str(item["study"]), str(item["manifest"]), trust)
        newest = max(held, key=lambda each: parse_time(each.time), default=None)
        found.append(
            {
                "study": item["study"],
                "title": item.get("title"),
                "manifest": item["manifest"],
                "decision": newest.decision if newest is not None else None,
                "missing": _missing(trust, held, now),
                "remark": _remark(trust, held),
            }
        )
    return found


def reminders(config: Config, now: datetime | None = None) -> list[dict[str, str]]:
    """What is over or ends within REMIND: (what, until, sentence). Raises: Refused where trust.json can't be used."""
    now = now or datetime.now(UTC)
    trust = documents.load_trust(config)
    found = []
    for name, key in sorted(trust.keys.items(), key=lambda item: item[1].not_after):
        if key.not_after - now < REMIND:
            found.append(
                reminder(
                    f"the {'passkey' if key.passkey else 'key'} {name[:16]} of a steward",
                    key.not_after,
                    now,
                    f"`silo trust propose --extend {name[:16]}`, then `silo trust sign` and `apply`"
                    if now < key.not_after
                    else "`silo trust show`",
                )
            )
    try:
        _, policy = documents.load_policy(config, trust, now=now)
    except Refused:
        pass  # the report says so already
    else:
        if policy.limits.expires is not None:
            end = parse_time(f"{policy.limits.expires}T23:59:59Z")
            if end - now < REMIND:
                found.append(reminder("the data-use policy", end, now, "`silo policy edit`"))
    for study in sorted(path.name for path in config.approvals.iterdir()) if config.approvals.is_dir() else []:
        if documents.is_over(config, study, now):
            continue  # nobody has to approve again what has ended
        newest = max(_verified(config, study, trust), key=lambda each: parse_time(each.time), default=None)
        if newest is not None and newest.decision == "approve":
            end = parse_time(newest.not_after)
            if end - now < REMIND:
                found.append(reminder(f"the approval of {study}", end, now, f"`silo approve {study}`"))
    return found


def reminder(what: str, end: datetime, now: datetime, remedy: str) -> dict[str, str]:
    """As `reminders` has them."""
    until = end.date().isoformat()
    days = (end - now).days
    when = f"was over on {until}" if end <= now else f"ends on {until}, in {days} day{'' if days == 1 else 's'}"
    return {"what": what, "until": until, "sentence": f"{what[0].upper()}{what[1:]} {when}: {remedy}."}


def _about(config: Config, study: str, manifest: str, trust: Trust) -> list[Statement]:
    return [each for each in _verified(config, study, trust) if each.manifest == manifest]


def _missing(trust: Trust, held: list[Statement], now: datetime) -> int:
    ends = [parse_time(each.time) for each in held if each.decision != "approve"]
    people = {
        each.signer.name
        for each in held
        if each.decision == "approve"
        and (not ends or parse_time(each.time) > max(ends))
        and now < parse_time(each.not_after)
        and now < trust.keys[each.signer.keyid].not_after
    }
    return max(0, trust.roles[STEWARD] - len(people))


def _verified(config: Config, study: str, trust: Trust) -> list[Statement]:
    found = []
    for envelope in documents.load_approvals(config, study):
        try:
            found.append(open_statement(envelope, trust=trust))
        except ApprovalError:
            continue  # the gate says what is wrong with it
    return found


def _remark(trust: Trust, held: list[Statement]) -> str | None:
    on_page = [each for each in held if trust.keys[each.signer.keyid].on_portal_page]
    return ON_PORTAL_PAGE if on_page else None
