"""May this round run? One function, all checks, before any image is opened; it either permits or says why not.

Each check is by bytes that this silo verified itself; nothing that the portal merely says counts. The numbers are those
of the blocks in `check`:

     1. Nothing has stopped the silo: it is enrolled, its disk has room, the study is not paused here, no new key waits
        (a round that was joined before goes on).
     2. The manifest's bytes have the announced digest, are well formed, and are of this study.
     3. This silo takes part, under its own key; the partners' keys are those that the hospital pinned.
     4. The manifest names the log that was pinned at enrolment.
     5. Rounds and attempts only grow.
     6. The study's dates include today.
     7. A policy of this hospital is there, signed by its stewards, in force.
     8. The policy, matched afresh, does not deny the study.
     9. The stewards' approvals hold: who, how many, for this manifest, policy and match, now, not revoked.
    10. The portal's log holds the approval, in a checkpoint that continues the last one seen here.
    11. Limits: rounds, networks, participants, the hours in which this machine may train.
    12. The model that goes in carries enough of the participants' signatures, and is none that came before another one,
        unless the stewards have signed that the study may go back to it.
    13. The opt-out list and the consents were loaded freshly, and the cohort of today is large enough.

Each refusal is a code and a sentence that a person understands; both go to the portal, so neither names a patient or an
exact count.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from protocol import canonical
from protocol.approval import ApprovalError, Approved, check_approvals
from protocol.manifest import Manifest, ManifestError, parse_manifest, study_facts
from protocol.messages import MessageError, State
from protocol.policy import PolicyDocument, load_closure, match, match_digest, policy_facts
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import StudyLedger
from protocol.secure_aggregation.parameters import threshold
from protocol.signing import Envelope, SignatureError, keyid, verify_envelope
from silo_node import key_history
from silo_node.config import Config
from silo_node.consent import changes as consent_changes
from silo_node.consent import registry as consents
from silo_node.consent.registry import Registry
from silo_node.errors import Refused
from silo_node.evidence import portal_log
from silo_node.files import read_json
from silo_node.node import Node
from silo_node.rounds.announcement import Announcement, context
from silo_node.rounds.runs import Run
from silo_node.service.hours import Window
from silo_node.steward import documents, pauses

if TYPE_CHECKING:
    from silo_node.imaging.cohort import Cohort

CONSTANT: Final = "constant"


@dataclass(frozen=True)
class Permission:
    """What a round may do, as the gate found it.

    manifest: verified. cohort: the pictures that may be opened; None where no image is. opt_out: digest of the registry
    in force, list and consents. approvals: digests of the statements that permit it. known_partners, min_known:
    for the sets of the round.
    """

    manifest: Manifest
    cohort: Cohort | None = field(repr=False)
    opt_out: str | None
    approvals: tuple[str, ...]
    policy: str
    match: str
    known_partners: frozenset[str]
    min_known: int
    share_metrics: bool
    withdrawn: tuple[str, ...] = field(default=(), repr=False)


def check(announcement: Announcement, manifest_bytes: bytes, *, node: Node, now: datetime | None = None) -> Permission:
    """Every check of the module's list, in its order.

    Parameters: manifest_bytes: as fetched, unchecked. now: None for the clock's.
    Raises: Refused. PortalError where the log's tiles can't be fetched: then nothing is decided, and it is tried again.
    """
    now = now or datetime.now(UTC)
    config = node.config
    # 1
    if node.pin is None:
        raise Refused("NOT_ENROLLED", "This silo is not enrolled.")
    free = shutil.disk_usage(config.folder).free // 1_000_000
    if free < config.settings.limits.free_mb:
        raise Refused("SILO_DISK_FULL", f"Less than {config.settings.limits.free_mb} MB are free on the silo's disk.")
    paused = pauses.read(config, announcement.study)
    if paused is not None and paused.code != pauses.OTHER_LIST:
        raise Refused(pauses.PAUSED, f"This hospital has paused the study: {paused.sentence}")
    waiting = key_history.waiting(config)
    if waiting is not None and Run(config.runs, announcement.id).read("announce") is None:
        raise waiting
    # 2
    manifest = _manifest(announcement, manifest_bytes)
    # 3
    _own_place(manifest, node)
    # 4
    if manifest.log.vkey != node.pin.log_vkey:
        raise Refused("OTHER_LOG", "The study names another audit log than the one pinned at this silo's enrolment.")
    # 5
    newest = StudyLedger(node.journal, manifest.study).newest()
    if newest is not None and newest > (announcement.number, announcement.attempt):
        raise Refused("OLD_ROUND", "This silo has already joined a newer round or attempt of the study.")
    # 6
    today = now.date().isoformat()
    if not manifest.dates.start <= today <= manifest.dates.end:
        raise Refused(
            "OUTSIDE_DATES", f"The study runs from {manifest.dates.start} to {manifest.dates.end}; today is {today}."
        )
    # 7
    trust = documents.load_trust(config)
    envelope, policy = documents.load_policy(config, trust, now=now)
    # 8
    found = match(policy_facts(policy), study_facts(manifest), load_closure())
    if found.decision == "DENY":
        raise Refused(
            "POLICY_DENY", "This hospital's data-use policy does not allow the study: " + words_of(found.reasons)
        )
    # 9
    approvals = documents.load_approvals(config, manifest.study)
    try:
        approved = check_approvals(
            approvals,
            trust=trust,
            silo=config.name,
            study=manifest.study,
            manifest=announcement.manifest,
            policy=envelope.digest,
            match=match_digest(found),
            now=now,
        )
    except ApprovalError as error:
        raise Refused(error.code, error.sentence) from None
    # 10
    _logged(announcement, approved, node)
    # 11
    _limits(announcement, manifest, approved, node)
    _hours(announcement, config, now)
    _partners(manifest, policy.partners.keys)
    # 12
    if announcement.model is not None:
        _signed_model(announcement, manifest, node)
        _not_older(announcement, node)
    # 13
    registry = consents.load(config, now, consents.default_of(policy))
    consent_changes.note(node, registry)
    cohort, opt_out = _cohort_of(config, manifest, policy, approved.limits.min_cohort, registry)
    return Permission(
        manifest=manifest,
        cohort=cohort,
        opt_out=opt_out,
        approvals=tuple(approved.digests),
        policy=envelope.digest,
        match=match_digest(found),
        known_partners=frozenset(policy.partners.keys.values()),
        min_known=policy.partners.min_known,
        share_metrics=policy.share_metrics,
        withdrawn=cohort.withdrawn if cohort is not None else (),
    )


def cohort_of_today(
    config: Config, manifest: Manifest, policy: PolicyDocument, least: int, now: datetime
) -> tuple[Cohort | None, str | None]:
    """(the pictures that a round of today may open, None where it opens none; digest of the registry, None without).

    least: the fewest patients that the approval asks for; the policy may ask for more. Raises Refused, such as
    COHORT_TOO_SMALL.
    """
    return _cohort_of(config, manifest, policy, least, consents.load(config, now, consents.default_of(policy)))


def _cohort_of(
    config: Config, manifest: Manifest, policy: PolicyDocument, least: int, registry: Registry
) -> tuple[Cohort | None, str | None]:
    minimum = max(policy.limits.min_cohort or 0, least)
    cohort = None if manifest.plan.network.name == CONSTANT else _cohort(config, manifest, registry, minimum)
    return cohort, registry.digest


def trained_key(study: str, model: str) -> str:
    """The journal's note that this silo has trained on a model."""
    return f"trained/{study}/{model}"


def evaluated_key(study: str, model: str) -> str:
    """The journal's note that this silo has joined a round that only evaluates a model."""
    return f"evaluated/{study}/{model}"


def words_of(reasons: object) -> str:
    """The reasons of a match as sentences in a row."""
    return " ".join(reason.sentence for reason in reasons)  # type: ignore[attr-defined]


def _manifest(announcement: Announcement, data: bytes) -> Manifest:
    if canonical.digest(data) != announcement.manifest:
        raise Refused("MANIFEST_DIFFERS", "The manifest that the portal sent is not the one that it announced.")
    try:
        manifest = _parse(data)
    except ManifestError as error:
        raise Refused("MANIFEST_NOT_VALID", f"The study's manifest can't be used: {error}") from None
    if manifest.study != announcement.study:
        raise Refused("MANIFEST_DIFFERS", "The manifest is of another study than the announcement.")
    return manifest


@lru_cache(maxsize=8)
def _parse(data: bytes) -> Manifest:
    """The same bytes give the same manifest, round after round."""
    return parse_manifest(data)


def _own_place(manifest: Manifest, node: Node) -> None:
    try:
        mine = manifest.public_keys()[node.config.name]
    except KeyError:
        raise Refused("NOT_A_PARTICIPANT", "The approved study does not name this silo.") from None
    key_history.check_named(node.config, mine)


def _partners(manifest: Manifest, pinned: Mapping[str, str]) -> None:
    for silo, public in manifest.public_keys().items():
        if silo in pinned and pinned[silo] != keyid(public):
            raise Refused(
                "PARTNER_KEY_DIFFERS", f"The study names another key for {silo} than the one this hospital has pinned."
            )


def _logged(announcement: Announcement, approved: Approved, node: Node) -> None:
    """The record that the proof is about is that of one of the approvals in force, and the log holds it."""
    try:
        record = canonical.decode(announcement.record)
        kind, outcome, refs = record["type"], record["outcome"], dict(record["refs"])
    except (ValueError, KeyError, TypeError):
        raise Refused("LOG_RECORD", "The record of this hospital's approval can't be read.") from None
    if kind != "study.approved" or outcome != "success" or refs.get("manifest") != announcement.manifest:
        raise Refused("LOG_RECORD", "The portal's record is not that of this hospital's approval of this study.")
    if refs.get("approval") not in approved.digests:
        raise Refused("LOG_RECORD", "The portal's record is of another approval than the one in force here.")
    portal_log.check_proof(node, announcement.record, announcement.proof)


def _limits(announcement: Announcement, manifest: Manifest, approved: Approved, node: Node) -> None:
    config = node.config
    rounds = min(manifest.plan.stopping.max_rounds, approved.limits.max_rounds)
    if announcement.purpose == "train":
        # Counted are the models that this silo has trained on: a round that failed is done again on the same model.
        trained = set(node.journal.keys(trained_key(manifest.study, "")))
        trained.add(trained_key(manifest.study, announcement.model or ""))
        # Going back to a model trains on it once more.
        returns = (StudyLedger(node.journal, manifest.study).front() or {"returns": 0})["returns"]
        if len(trained) + returns > rounds:
            raise Refused("LIMIT_MAX_ROUNDS", f"{rounds} rounds of training are approved here, and all are done.")
    if announcement.purpose == "evaluate":
        # The steward was told of one such round; when it failed it is done again on the same model.
        evaluated = set(node.journal.keys(evaluated_key(manifest.study, "")))
        if evaluated - {evaluated_key(manifest.study, announcement.model or "")}:
            raise Refused(
                "LIMIT_EVALUATIONS", "One round that only evaluates is approved here, and it was held on another model."
            )
    network = manifest.plan.network.name
    if network == CONSTANT and not config.settings.training.allow_constant:
        raise Refused(
            "NETWORK_NOT_ALLOWED",
            "The network 'constant' trains nothing and is for benchmarks; it is not allowed here.",
        )
    allowlist = config.settings.training.networks
    if allowlist and network not in allowlist:
        raise Refused("NETWORK_NOT_ALLOWED", f"This hospital does not allow the network '{network}'.")


def _hours(announcement: Announcement, config: Config, now: datetime) -> None:
    """A round has no stage in which it waits for hours: it goes on without this silo, which joins the next one in time."""
    window = Window.parse(config.settings.hours.train) if config.settings.hours.train else None
    if window is not None and announcement.purpose != "initial" and not window.holds(now):
        again = window.next_start(now).isoformat(timespec="minutes")
        raise Refused("NIGHT_ONLY", f"This hospital trains between {window} only, and takes part again from {again}.")


def _signed_model(announcement: Announcement, manifest: Manifest, node: Node) -> None:
    """At least t participants signed this model's digest, all in one earlier round of this study."""
    keys = {keyid(public): silo for silo, public in manifest.public_keys().items()}
    publics = {keyid(public): public for public in manifest.public_keys().values()}
    signers: set[str] = set()
    rounds: set[tuple[str, str | None]] = set()
    for envelope in announcement.states:
        signers |= _signers(envelope, announcement, keys, publics, rounds)
    if len(rounds) > 1:
        raise Refused("MODEL_NOT_SIGNED", "The signatures on the model are of different rounds.")
    _made_in(announcement, {ctx for ctx, _ in rounds})
    kept = read_json(node.config.models / f"{(announcement.model or '').removeprefix('sha256:')}.json")
    # Who was in that round knows its roster; for another the smallest roster that the manifest allows is what is sure.
    # With many silos it is t of all participants: a silo sees no roster whole.
    smallest = len(manifest.participants) if manifest.sparse else manifest.aggregation.min_roster
    needed = int(kept["signers"]) if kept is not None else threshold(smallest)
    if len(signers) < needed:
        raise Refused(
            "MODEL_NOT_SIGNED", f"The model is signed by {len(signers)} participants; at least {needed} are needed."
        )


def _made_in(announcement: Announcement, contexts: set[str]) -> None:
    """The signatures were given in the round of which the portal says that it made the model, and that is one of this
    study: hospitals that share another study must not find its models here."""
    origin = announcement.origin
    if origin is None or origin.number >= announcement.number:
        raise Refused("MODEL_NOT_SIGNED", "The portal does not say in which earlier round the model was made.")
    made = context(announcement.study, origin.manifest, origin.number, origin.attempt, origin.model)
    if contexts - {made}:
        raise Refused("MODEL_NOT_SIGNED", "The model was signed in another study, or in another round than is said.")


def _not_older(announcement: Announcement, node: Node) -> None:
    """A study's model only goes forward, unless a steward has signed that it goes back to exactly this one. Raises: Refused
    (MODEL_OLDER), for which the study waits here (pauses.py)."""
    origin = announcement.origin
    if origin is None or announcement.model is None:
        return
    try:
        StudyLedger(node.journal, announcement.study).check_age(announcement.model, origin.number, origin.attempt)
    except ProtocolViolation as error:
        raise Refused(
            error.code,
            f"The model that round {origin.number} made is older than one on which this silo has already worked in this "
            "study. Only a steward of this hospital can let the study go back to it (`silo resume`).",
        ) from error


def _signers(
    envelope: Envelope,
    announcement: Announcement,
    names: Mapping[str, str],
    publics: Mapping[str, bytes],
    rounds: set[tuple[str, str | None]],
) -> set[str]:
    try:
        verified = verify_envelope(envelope, payload_type=State.payload_type(), keys=publics)
        message = State.parse(envelope.payload)
    except (SignatureError, MessageError) as error:
        raise Refused("MODEL_NOT_SIGNED", f"A signature on the model does not hold: {error}.") from None
    found = {names[name] for name in verified}
    if message.state != announcement.model or message.silo not in found:
        raise Refused("MODEL_NOT_SIGNED", "A signature is on another model than the one announced.")
    rounds.add((message.ctx, message.roster))
    return found


def _cohort(config: Config, manifest: Manifest, registry: Registry, minimum: int) -> Cohort:
    consents.usable(registry)
    # Loaded here: benchmarks of the constant trainer never need the imaging code.
    from silo_node.imaging import cohort, label_sources
    from silo_node.imaging.errors import DataError

    try:
        return cohort.build(
            manifest,
            config.index_db,
            label_sources.of(config, registry.opt_out),
            registry.opt_out,
            registry.now,
            min_patients=minimum,
            consented=registry.permits,
            withdrawn=registry.withdrawn,
        )
    except DataError as error:
        raise Refused(error.code, error.sentence) from None
