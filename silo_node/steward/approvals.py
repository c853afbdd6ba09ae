"""What a steward decides at the hospital: the policy, and one exact study. Signed here with the steward's own key.

Each act is kept in the silo's folder first and sent to the portal after: the silo is the one that must not forget it.
"""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

from protocol.approval import (
    APPROVAL_TYPE,
    ApprovalError,
    ApprovalLimits,
    Statement,
    Trust,
    draft_statement,
    first_trust,
    open_statement,
    open_trust,
    parse_statement,
    utc_text,
)
from protocol.canonical import digest
from protocol.manifest import Manifest, ManifestError, describe, parse_manifest, study_facts
from protocol.policy import (
    POLICY_TYPE,
    Match,
    PolicyDocument,
    PolicyError,
    freeze_policy,
    load_closure,
    match,
    match_digest,
    parse_policy,
    policy_facts,
)
from protocol.signing import (
    Envelope,
    KeyFileError,
    SignatureError,
    SigningKey,
    UnknownKey,
    sign_envelope,
    verify_envelope,
)
from protocol.trust import STEWARD, TrustError
from silo_node import gate, key_history
from silo_node.config import Config
from silo_node.errors import Refused, UsageError
from silo_node.files import write_bytes, write_json
from silo_node.keys import save_new
from silo_node.node import Node
from silo_node.pin import Pin
from silo_node.steward import documents
from silo_node.steward.one_at_a_time import one_at_a_time

Decision = Literal["approve", "reject", "revoke"]
STEWARD_DAYS = 730
"""How long a new steward's key speaks for the hospital."""


@dataclass(frozen=True)
class Proposal:
    """A study as a steward gets to see it before deciding.

    data: the manifest's exact bytes; manifest: digest of them. words: (label, sentence). found: what the policy in force
    says; None where there is no policy yet. known: digests of the statements about it that lay here when it was shown; None
    where a question is asked once only (the page).
    """

    study: str
    data: bytes
    manifest: str
    content: Manifest
    words: list[tuple[str, str]]
    policy: Envelope
    found: Match
    known: frozenset[str] | None = None


def make_steward(config: Config, *, person: str, passphrase: bytes, now: datetime | None = None) -> Trust:
    """Make a steward's key, and the hospital's first trust.json with it. Raises: UsageError where there is one already."""
    now = now or datetime.now(UTC)
    with one_at_a_time(config):
        if config.trust.exists():
            raise UsageError(f"{config.trust} exists: a further steward needs the agreement of those who are in it")
        config.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = SigningKey.generate()
        try:
            envelope = first_trust(key, person=person, not_after=utc_text(now + timedelta(days=STEWARD_DAYS)))
        except TrustError as error:
            raise UsageError(f"--person can't be used as a name in trust.json: {error.sentence}") from None
        save_new(key, steward_key_path(config, key.keyid), passphrase)
        write_json(config.trust, envelope.as_dict())
    return open_trust(envelope, None)


def steward_key_path(config: Config, name: str) -> Path:
    """The file of a steward's key."""
    return config.keys / f"steward-{name[:16]}.key"


def load_steward(
    config: Config,
    people: Trust | Mapping[str, str],
    passphrase: bytes,
    *,
    person: str | None = None,
    but: Collection[str] = (),
) -> SigningKey:
    """The steward's key in this folder that the passphrase opens.

    Parameters: people: trust.json, or keyid -> person. person: None for anybody's. but: keyids that do not count.
    Raises: UsageError.
    """
    if isinstance(people, Trust):
        people = {name: key.person for name, key in people.keys.items() if key.passkey is None}
    names = [name for name, of in people.items() if name not in but and person in (None, of)]
    paths = [path for path in (steward_key_path(config, name) for name in names) if path.exists()]
    if not paths:
        whose = f" of {person}" if person is not None else ""
        more = " that has not signed yet" if but else ""
        raise UsageError(f"no steward's key{whose} of trust.json{more} lies in {config.keys}")
    problem = ""
    for path in paths:
        try:
            return SigningKey.load(path, passphrase)
        except KeyFileError as error:
            problem = str(error)
    raise UsageError(problem if len(paths) == 1 else f"the passphrase opens none of {len(paths)} stewards' keys here")


def policy_draft_path(config: Config) -> Path:
    """A policy that waits for more signatures; it counts for nothing."""
    return config.policy.with_name("policy.draft.json")


def sign_policy(
    node: Node, content: Mapping[str, Any], *, passphrase: bytes, person: str | None = None
) -> tuple[Envelope, PolicyDocument]:
    """Sign a policy and put it in force at this silo; where more people must sign, it waits for them.

    `silo`, `organisation`, `version` and `issued` are filled in where they are missing.
    Returns: the envelope (see `missing_people`) and what it says. Raises: UsageError for a document that is no policy, of
    another silo, or with a version that is not higher.
    """
    config = node.config
    trust = documents.load_trust(config)
    key = load_steward(config, trust, passphrase, person=person)
    payload, policy = draft_policy(node, content)
    return keep_policy(node, sign_envelope(POLICY_TYPE, payload, key)), policy


def draft_policy(node: Node, content: Mapping[str, Any]) -> tuple[bytes, PolicyDocument]:
    """The exact bytes of a policy for a steward to sign, and what they say. Raises: as `sign_policy`."""
    before = documents.read_envelope(node.config.policy)
    return complete_policy(node, content, _version(before) if before is not None else 0)


def complete_policy(node: Node, content: Mapping[str, Any], last: int) -> tuple[bytes, PolicyDocument]:
    """The bytes of a policy, with what is missing filled in; nothing is signed. Parameters: last: version in force, or 0.

    Raises: UsageError.
    """
    config = node.config
    pin = node.pin or (Pin.load(config) if config.pin.exists() else None)  # also where the portal is not asked
    document = {
        "silo": config.name,
        "organisation": pin.organisation if pin is not None else config.name,
        "version": last + 1,
        "issued": utc_text(datetime.now(UTC)),
        **content,
    }
    try:
        payload = freeze_policy(document)
        policy = parse_policy(payload)
    except PolicyError as error:
        raise UsageError(f"the policy can't be used: {error}") from None
    if policy.silo != config.name:
        raise UsageError(f"the policy is for the silo {policy.silo}; this is {config.name}")
    if policy.version <= last:
        raise UsageError(f"the policy in force has version {last}: a new one needs a higher version")
    return payload, policy


def policy_to_sign(config: Config) -> tuple[Envelope, PolicyDocument]:
    """The policy that waits for more signatures; else the one in force, where trust.json asks for more by now.

    Raises: UsageError where there is none.
    """
    now, in_force = datetime.now(UTC), documents.read_envelope(config.policy)
    envelope = documents.read_envelope(policy_draft_path(config))
    if envelope is None and in_force is not None and missing_people(documents.load_trust(config), in_force, now):
        envelope = in_force
    elif envelope is not None and in_force is not None and _version(envelope) <= _version(in_force):
        raise UsageError("the policy that waits for signatures is over, a later one is in force: sign a new one")
    if envelope is None:
        raise UsageError("no policy waits for a signature: give one with --file, or `silo policy edit`")
    return envelope, parse_policy(envelope.payload)


def sign_policy_again(node: Node, *, passphrase: bytes, person: str | None = None) -> tuple[Envelope, PolicyDocument]:
    """Add a signature to `policy_to_sign`. Returns and raises: as `sign_policy`."""
    config, trust = node.config, documents.load_trust(node.config)
    envelope, policy = policy_to_sign(config)
    key = load_steward(config, trust, passphrase, person=person, but={name for name, _ in envelope.signatures})
    return keep_policy(node, sign_envelope(POLICY_TYPE, envelope.payload, key)), policy


def missing_people(trust: Trust, envelope: Envelope, now: datetime) -> int:
    """How many of this hospital's people must still sign a policy. Raises: UsageError where a signature fails."""
    try:
        signed = verify_envelope(envelope, payload_type=POLICY_TYPE, keys=trust.publics(now=now))
    except UnknownKey:
        return trust.roles[STEWARD]
    except SignatureError as error:
        raise UsageError(f"the hospital's policy can't be signed so: {error}") from None
    return max(0, trust.roles[STEWARD] - len(trust.people(signed)))


def keep_policy(node: Node, signed: Envelope) -> Envelope:
    """As `_keep_policy`, one at a time."""
    with one_at_a_time(node.config):
        return _keep_policy(node, signed)


def _keep_policy(node: Node, signed: Envelope) -> Envelope:
    """Take one steward's signature under a policy, of a key or a passkey: put it in force, or keep it until enough people
    have signed the same bytes.

    Verification: 1. the key is valid now and speaks for the hospital; 2. a version that is not in force is a higher one;
    3. every signature (`missing_people`).
    Returns: the envelope with the signatures that it has so far. Raises: UsageError.
    """
    config, now = node.config, datetime.now(UTC)
    trust = documents.load_trust(config)
    ((name, _),) = signed.signatures
    # 1
    if name not in trust.publics():
        raise UsageError(
            "this key does not sign the hospital's policy: trust.json does not name it, or says where only"
        )
    if now >= trust.keys[name].not_after:
        raise UsageError("this steward's key is over: extend it with `silo trust propose --extend`, or use another")
    # 2
    in_force, envelope = documents.read_envelope(config.policy), signed
    if in_force is not None and in_force.payload != signed.payload and _version(signed) <= _version(in_force):
        raise UsageError("a policy with this version or a later one is in force meanwhile: begin again")
    for held in (in_force, documents.read_envelope(policy_draft_path(config))):
        if held is not None and held.payload == signed.payload:
            try:
                envelope = held.joined(signed)
            except SignatureError as error:
                raise UsageError(f"the hospital's policy can't be signed so: {error}") from None
    # 3
    if missing_people(trust, envelope, now):
        write_json(policy_draft_path(config), envelope.as_dict())
        return envelope
    node.evidence.record(
        "policy.changed",
        subject=("policy", config.name, envelope.digest),
        refs={"policy": envelope.digest},
        data={"version": _version(envelope)},
        actor=steward_actor(node, name),
    )
    documents.save_policy(config, envelope)
    policy_draft_path(config).unlink(missing_ok=True)
    return envelope


def _version(envelope: Envelope) -> int:
    return parse_policy(envelope.payload).version


def send_policy(node: Node, envelope: Envelope) -> None:
    """Show the policy to the portal. Raises: PortalError, PortalRefused."""
    node.egress.put_json("/api/v1/silo/policy", envelope.as_dict(), kind="policy")


def read_policy_file(path: Path) -> dict[str, Any]:
    """A policy as a person wrote it: JSON, with comments in lines that begin with //. Raises: UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        value = json.loads("\n".join("" if line.lstrip().startswith("//") else line for line in lines))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: must be one JSON object")
    return value


def fetch(node: Node, study: str) -> Proposal:
    """The study's newest manifest from the portal, and what this hospital's policy says to it.

    Raises: PortalError, PortalRefused, Refused (no policy), UsageError (a manifest that can't be used).
    """
    answer = node.egress.get(f"/api/v1/studies/{study}/manifest", kind="manifest")
    data = answer.body
    try:
        content = parse_manifest(data)
    except ManifestError as error:
        raise UsageError(f"the study's manifest can't be used: {error}") from None
    if content.study != study:
        raise Refused("MANIFEST_DIFFERS", f"The portal sent the manifest of {content.study} instead of {study}.")
    trust = documents.load_trust(node.config)
    envelope, policy = documents.load_policy(node.config, trust, now=datetime.now(UTC))
    found = match(policy_facts(policy), study_facts(content), load_closure())
    manifest = digest(data)
    write_bytes(node.config.studies / study / f"{manifest.removeprefix('sha256:')}.json", data)
    known = frozenset(each.digest for each in documents.load_approvals(node.config, study))
    return Proposal(study, data, manifest, content, list(describe(content)), envelope, found, known)


def decide(
    node: Node,
    proposal: Proposal,
    decision: Decision,
    *,
    passphrase: bytes,
    reason: str,
    max_rounds: int | None = None,
    min_cohort: int | None = None,
    until: date | None = None,
    person: str | None = None,
) -> Envelope:
    """Sign a decision on exactly `proposal` with the steward's key and keep it; it holds at this silo from now on.

    Parameters: max_rounds, min_cohort, until: limits; None for those of the study itself. person: whose key; None for the
    one that the passphrase opens.
    Raises: Refused where the policy denies the study (then only `reject` and `revoke` are possible); UsageError.
    """
    _check_permitted(node.config, proposal, decision, min_cohort)
    key = load_steward(node.config, documents.load_trust(node.config), passphrase, person=person)
    payload = _payload(node.config, proposal, decision, key.keyid, reason, max_rounds, min_cohort, until)
    envelope = sign_envelope(APPROVAL_TYPE, payload, key)
    keep(node, proposal, envelope)
    return envelope


def draft(
    node: Node,
    proposal: Proposal,
    decision: Decision,
    *,
    signer: str,
    reason: str,
    max_rounds: int | None = None,
    min_cohort: int | None = None,
    until: date | None = None,
) -> bytes:
    """The exact bytes of a decision, for the steward with the key `signer` (a keyid of trust.json) to sign.

    Raises: as `decide`.
    """
    _check_permitted(node.config, proposal, decision, min_cohort)
    return _payload(node.config, proposal, decision, signer, reason, max_rounds, min_cohort, until)


def _payload(
    config: Config,
    proposal: Proposal,
    decision: Decision,
    signer: str,
    reason: str,
    max_rounds: int | None,
    min_cohort: int | None,
    until: date | None,
) -> bytes:
    now = datetime.now(UTC)
    content = proposal.content
    end = until or date.fromisoformat(content.dates.end)
    try:
        return draft_statement(
            signer,
            documents.load_trust(config),
            decision=decision,
            reason=unicodedata.normalize("NFC", reason),  # some keyboards send a letter and its accent apart
            silo=config.name,
            study=proposal.study,
            manifest=proposal.manifest,
            policy=proposal.policy.digest,
            match=match_digest(proposal.found),
            limits=ApprovalLimits(
                epsilon_micro=0,
                max_rounds=max_rounds or content.plan.stopping.max_rounds,
                min_cohort=min_cohort or content.cohort.min_patients,
            ),
            not_before=now - timedelta(seconds=1),
            not_after=datetime.combine(end, time(23, 59, 59), UTC),
            now=now,
            after=documents.statements(config, proposal.study),
        )
    except ApprovalError as error:
        raise UsageError(error.sentence, error.code) from None


def keep(node: Node, proposal: Proposal, envelope: Envelope) -> Path:
    """Verify a signed decision on exactly `proposal`, record it and keep it; it holds at this silo from now on.

    Raises: UsageError for one that no steward signed, that is about something else, or that the same steward has made
    meanwhile.
    """
    with one_at_a_time(node.config):
        return _keep(node, proposal, envelope)


def _keep(node: Node, proposal: Proposal, envelope: Envelope) -> Path:
    trust = documents.load_trust(node.config)
    try:
        statement = open_statement(envelope, trust=trust)
    except ApprovalError as error:
        raise UsageError(error.sentence, error.code) from None
    about = (statement.silo, statement.study, statement.manifest, statement.policy)
    if about != (node.config.name, proposal.study, proposal.manifest, proposal.policy.digest):
        raise UsageError("the decision is about another study, version or policy than the one shown")
    _check_not_made_meanwhile(node.config, proposal, statement)
    node.evidence.record(
        "study.approved" if statement.decision == "approve" else "study.rejected",
        subject=("study", proposal.study, proposal.manifest),
        refs={"manifest": proposal.manifest, "approval": envelope.digest, "policy": proposal.policy.digest},
        data={
            "decision": statement.decision,
            "match": proposal.found.decision,
            "on_portal_page": trust.keys[statement.signer.keyid].on_portal_page,
        },
        reasons=_codes(proposal.found.reasons),
        private={"reason": statement.reason},
        actor=steward_actor(node, statement.signer.keyid),
    )
    return documents.save_approval(node.config, proposal.study, envelope)


def _check_not_made_meanwhile(config: Config, proposal: Proposal, statement: Statement) -> None:
    """The same decision of the same steward, made since the study was shown, is not made and logged twice."""
    for other in documents.load_approvals(config, proposal.study) if proposal.known is not None else ():
        with suppress(ApprovalError):  # one that can't be read: the gate says so
            made = parse_statement(other.payload)
            same = (made.signer.keyid, made.decision) == (statement.signer.keyid, statement.decision)
            if same and other.digest not in (proposal.known or ()):
                raise UsageError(
                    f"{made.signer.name} has made this decision ({made.decision} {proposal.study}) meanwhile: nothing more "
                    "was signed. `silo approve --list` shows what is in force"
                )


def _check_permitted(config: Config, proposal: Proposal, decision: Decision, min_cohort: int | None) -> None:
    """What the gate would refuse anyway is said before anybody signs: another key, too few patients, nothing scanned yet."""
    if decision != "approve":
        return
    named = proposal.content.public_keys().get(config.name)
    if named is not None:
        key_history.check_named(config, named)
    if proposal.found.decision == "DENY":
        sentences = " ".join(f"{each.sentence} {each.change}" for each in proposal.found.reasons)
        raise Refused(
            "POLICY_DENY", f"The hospital's own policy denies this study, so it can't be approved. {sentences}"
        )
    now = datetime.now(UTC)
    _, policy = documents.load_policy(config, documents.load_trust(config), now=now)
    gate.cohort_of_today(config, proposal.content, policy, min_cohort or proposal.content.cohort.min_patients, now)


def send(node: Node, study: str, envelope: Envelope) -> None:
    """Show a decision to the portal. Raises: PortalError, PortalRefused."""
    node.egress.put_json(f"/api/v1/studies/{study}/approval", envelope.as_dict(), kind="approval")


def enrol(node: Node, token: str, *, public: bytes | None = None) -> dict[str, Any]:
    """Send this silo's keys with the one-time token; returns the portal's answer, not yet pinned.

    public: the key that is to follow the silo's present one, where it is another; the node's connection signs with it.
    Raises: PortalError, PortalRefused, UsageError.
    """
    from protocol.canonical import b64
    from silo_node import __version__

    trust = documents.read_envelope(node.config.trust)
    if trust is None:
        raise UsageError(
            f"make a steward's key first: `silo steward {shlex.quote(str(node.config.folder))} --person NAME`; the portal has to "
            "know it"
        )
    answer = node.egress.post(
        "/api/v1/silo/enrol",
        {
            "token": token,
            "public": b64(public or node.keys.silo.public),
            "trust": trust.as_dict(),
            "log_vkey": node.keys.log_vkey,
            "witness_vkey": node.keys.witness_vkey,
            "version": __version__,
        },
        kind="enrol",
        repeat=False,
    )
    value: dict[str, Any] = answer.json()
    return value


def _codes(reasons: Sequence[Any]) -> list[str]:
    return [str(reason.code) for reason in reasons]


def steward_actor(node: Node, name: str) -> dict[str, str]:
    """The steward as the actor of a record: by keyid, not by name."""
    organisation = node.pin.organisation if node.pin is not None else ""
    return {"id": name, "role": "steward", "org": organisation, "auth": "signature"}
