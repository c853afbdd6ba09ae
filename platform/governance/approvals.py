"""Receiving a hospital's decision on a study: verified against the hospital's own trust.json, stored, logged.

The portal holds none of these keys. It checks what the silo checks, so that what it shows is what the silo will say.
Re-exported by `services`.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.utils import timezone

from evidence.services import acting
from governance import signals
from governance.activation import activate_when_ready
from governance.models import Approval, Manifest, Policy, Study
from governance.predictions import match_for
from governance.selectors import manifest_for
from governance.states import OPEN, locked
from organisations.models import Silo
from organisations.trust import trust_of
from portal import events
from portal.actors import Actor, Subject, silo_actor
from portal.problems import Refused
from protocol.approval import ApprovalError, Statement, check_approvals, open_statement
from protocol.policy import match_digest
from protocol.signing import Envelope


@dataclass(frozen=True)
class _Received:
    """A verified statement and what it is about."""

    statement: Statement
    manifest: Manifest
    complete: bool
    on_portal_page: bool


def approval_receive(*, silo: Silo, study: Study, envelope: Envelope) -> Approval:
    """Take an approval, rejection or revocation signed at the hospital. The same again gives the stored one.

    Verification:
      1. the study waits for hospitals or runs, and asks this silo;
      2. a steward of the hospital's registered trust.json signed these bytes as an approval;
      3. the statement is about this silo, study and a manifest that the network approved;
      4. an approval holds by `protocol.approval.check_approvals`, with the policy and the match as they are now; with
         too few signers yet (k of n) it is kept and does not count.
    Raises Refused: NOT_YOUR_STUDY, OUT_OF_STAGE, POLICY_DENIES, or the code of protocol.approval.
    """
    kind = "study.approved"
    actor = silo_actor(silo.name, silo.organisation.slug)
    with acting(type=kind, actor=actor, subject=Subject("study", study.pk)) as act:
        # 1
        study = locked(study)
        if manifest_for(silo=silo, study_id=study.pk) is None:
            raise Refused("NOT_YOUR_STUDY", "There is no such study for this silo.")
        stored = Approval.objects.filter(digest=envelope.digest, silo=silo).first()
        if stored is not None:
            return stored
        if study.state not in OPEN:
            raise Refused("OUT_OF_STAGE", "This study is over or does not wait for hospitals.")
        received = _verify(silo, study, envelope)
        statement, manifest = received.statement, received.manifest
        entry = act.record(
            type="study.approved" if statement.decision == "approve" else "study.rejected",
            actor=Actor(statement.signer.keyid, statement.signer.role, silo.organisation.slug, "signature"),
            subject=Subject("study", study.pk, manifest.digest),
            refs={
                "manifest": manifest.digest,
                "approval": envelope.digest,
                "policy": statement.policy,
                "match": statement.match,
            },
            data={
                "by": "hospital",
                "silo": silo.name,
                "decision": statement.decision,
                "complete": received.complete,
                **({"on_portal_page": True} if received.on_portal_page else {}),
                "not_before": statement.not_before,
                "not_after": statement.not_after,
            },
            private={"reason": statement.reason, "signer": statement.signer.name},
        )
        approval = Approval.objects.create(
            manifest=manifest,
            silo=silo,
            decision=statement.decision,
            envelope=envelope.as_dict(),
            digest=envelope.digest,
            reason=statement.reason,
            complete=received.complete,
            entry=entry,
        )
        if not activate_when_ready(study=study, manifest=manifest):
            signals.approval_changed.send(sender=Approval, manifest=manifest, silo=silo)
        events.publish(silo.name, study=study.pk)
    return approval


def envelopes_of(*, manifest: Manifest, silo: Silo) -> list[Envelope]:
    """Everything that a hospital stated about a manifest, as it came: what `check_approvals` takes."""
    stored = Approval.objects.filter(manifest=manifest, silo=silo).order_by("received_at")
    return [Envelope.from_dict(value) for value in stored.values_list("envelope", flat=True)]


def _verify(silo: Silo, study: Study, envelope: Envelope) -> _Received:
    # 2
    trust = trust_of(silo)
    try:
        statement = open_statement(envelope, trust=trust)
    except ApprovalError as error:
        raise Refused(error.code, error.sentence, status=422) from error
    # 3
    if statement.silo != silo.name or statement.study != study.pk:
        raise Refused("APPROVAL_OTHER_SILO", "The statement is about another silo or study.", status=422)
    manifest = manifest_for(silo=silo, study_id=study.pk, digest=statement.manifest)
    if manifest is None:
        raise Refused("APPROVAL_OTHER_MANIFEST", "The statement is about another version of the study.", status=422)
    on_page = trust.keys[statement.signer.keyid].on_portal_page
    # 4
    if statement.decision != "approve":
        return _Received(statement, manifest, True, on_page)
    if manifest.pk != (study.manifest or manifest).pk:
        raise Refused("APPROVAL_OTHER_MANIFEST", "The study has a newer version; decide on that one.", status=422)
    policy = Policy.objects.filter(silo=silo, current=True).first()
    if policy is None:
        raise Refused("APPROVAL_OTHER_POLICY", "Send the hospital's policy first (`silo policy --send`).", status=422)
    found = match_for(policy=policy, manifest=manifest)
    if found.decision == "DENY":
        sentences = " ".join(reason.sentence for reason in found.reasons)
        raise Refused("POLICY_DENIES", f"The hospital's own policy denies this study. {sentences}")
    try:
        check_approvals(
            [*envelopes_of(manifest=manifest, silo=silo), envelope],
            trust=trust,
            silo=silo.name,
            study=study.pk,
            manifest=manifest.digest,
            policy=policy.digest,
            match=match_digest(found),
            now=timezone.now(),
        )
    except ApprovalError as error:
        if error.code == "APPROVAL_THRESHOLD":
            return _Received(statement, manifest, False, on_page)
        raise Refused(error.code, error.sentence, status=422) from error
    return _Received(statement, manifest, True, on_page)
