"""Data-use policies: received signed from the hospital; proposed on the portal, where they mean nothing yet.

Re-exported by `services`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.utils import timezone

from evidence.services import acting
from governance.activation import activate_when_ready
from governance.models import Policy, PolicyProposal
from governance.predictions import predict_open_studies
from governance.states import locked
from organisations.models import Silo, User
from organisations.trust import trust_of
from portal import events
from portal.actors import Actor, Subject, silo_actor
from portal.problems import Refused
from protocol import canonical
from protocol.policy import POLICY_TYPE, PolicyError, parse_policy
from protocol.signing import Envelope, SignatureError


def policy_receive(*, silo: Silo, envelope: Envelope) -> Policy:
    """Take a signed policy and make it the current one. The same again gives the stored one.

    Verification:
      1. enough stewards of the hospital's registered trust.json signed these bytes as a policy;
      2. the bytes are a policy, of this silo and hospital;
      3. its version is higher than that of every earlier one: a portal or a thief can't bring back an old policy.
    Raises Refused (BAD_SIGNATURE, BAD_MESSAGE, VERSION).
    """
    actor = silo_actor(silo.name, silo.organisation.slug)
    with acting(type="policy.changed", actor=actor, subject=Subject("policy", silo.name)) as act:
        silo = Silo.objects.select_for_update().select_related("organisation").get(pk=silo.pk)
        # 1
        trust = trust_of(silo)
        try:
            signers = trust.verify(envelope, payload_type=POLICY_TYPE, now=timezone.now())
        except SignatureError as error:
            raise Refused("BAD_SIGNATURE", f"The policy is not signed by the hospital's stewards: {error}") from error
        # 2
        try:
            document = parse_policy(envelope.payload)
        except PolicyError as error:
            raise Refused("BAD_MESSAGE", f"The policy is not valid: {error}") from error
        if document.silo != silo.name:
            raise Refused("BAD_MESSAGE", "The policy is that of another silo.")
        # 3
        current = Policy.objects.filter(silo=silo, current=True).first()
        if current is not None and current.digest == envelope.digest:
            return current
        if current is not None and document.version <= current.version:
            raise Refused(
                "VERSION", f"The policy in force has version {current.version}; a new one needs a higher version."
            )
        Policy.objects.filter(silo=silo, current=True).update(current=False)
        policy = Policy.objects.create(
            silo=silo,
            version=document.version,
            digest=envelope.digest,
            envelope=envelope.as_dict(),
            document=json.loads(envelope.payload),
        )
        PolicyProposal.objects.filter(silo=silo, state=PolicyProposal.State.OPEN).update(
            state=PolicyProposal.State.ADOPTED
        )
        act.record(
            actor=Actor(min(signers), "steward", silo.organisation.slug, "signature"),
            subject=Subject("policy", silo.name, policy.digest),
            refs={"policy": policy.digest, **({"before": current.digest} if current else {})},
            data={"version": policy.version},
        )
        for manifest in predict_open_studies(silo):
            activate_when_ready(study=locked(manifest.study), manifest=manifest)
            events.publish(silo.name, study=manifest.study_id)
    return policy


def policy_propose(*, actor: Actor, silo: Silo, document: Mapping[str, Any], proposed_by: User) -> PolicyProposal:
    """Keep a policy that somebody wrote on the portal, for the hospital's steward to sign at the hospital's own node.

    The document's silo, organisation and version are filled in. Refused: a document that is no policy.
    """
    with acting(type="policy.proposed", actor=actor, subject=Subject("policy", silo.name)) as act:
        current = Policy.objects.filter(silo=silo, current=True).first()
        content = {
            **document,
            "silo": silo.name,
            "organisation": silo.organisation.name,
            "version": current.version + 1 if current else 1,
        }
        try:
            body = canonical.encode(content)
            parse_policy(body)
        except (canonical.CanonicalError, PolicyError) as error:
            raise Refused("BAD_MESSAGE", f"This is not a policy yet: {error}") from error
        PolicyProposal.objects.filter(silo=silo, state=PolicyProposal.State.OPEN).update(
            state=PolicyProposal.State.REPLACED
        )
        proposal = PolicyProposal.objects.create(silo=silo, document=content, proposed_by=proposed_by)
        act.record(refs={"proposal": canonical.digest(body)}, data={"number": proposal.pk})
    return proposal
