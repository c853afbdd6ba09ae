"""What each hospital's policy will say: the portal computes the same match as the silo, and only predicts with it."""

from __future__ import annotations

from evidence.services import record
from governance.models import Manifest, MatchPrediction, Policy
from governance.states import OPEN
from organisations.models import Silo
from portal.actors import SYSTEM, Subject
from protocol.duo import load_closure
from protocol.manifest import parse_manifest, study_facts
from protocol.policy import Match, match, parse_policy, policy_facts
from protocol.policy import match_digest as digest_of_match
from protocol.signing import Envelope

NO_POLICY = {
    "code": "POLICY",
    "sentence": "This hospital has not sent a data-use policy yet.",
    "change": "The hospital's steward signs a policy at its own node (`silo policy`).",
}


def match_for(*, policy: Policy, manifest: Manifest) -> Match:
    """The decision of `policy` on `manifest` with the pinned disease hierarchy, the same that the silo computes."""
    # From the bytes that the steward signed, not from the copy for display.
    document = parse_policy(Envelope.from_dict(policy.envelope).payload)
    return match(policy_facts(document), study_facts(parse_manifest(manifest.data)), load_closure().ancestors)


def match_digest_for(*, policy: Policy, manifest: Manifest) -> str:
    """The digest that an approval must name."""
    return digest_of_match(match_for(policy=policy, manifest=manifest))


def predict(manifest: Manifest, *, only: Silo | None = None) -> None:
    """Refresh the predictions of a manifest (of one silo) and record those that changed. In the caller's transaction."""
    participants = {item.silo for item in parse_manifest(manifest.data).participants}
    silos = Silo.objects.filter(name__in=participants).order_by("name")
    for silo in silos if only is None else silos.filter(pk=only.pk):
        policy = Policy.objects.filter(silo=silo, current=True).first()
        if policy is None:
            decision, reasons = "DENY", [NO_POLICY]
        else:
            found = match_for(policy=policy, manifest=manifest)
            decision = str(found.decision)
            reasons = [{"code": item.code, "sentence": item.sentence, "change": item.change} for item in found.reasons]
        before = MatchPrediction.objects.filter(manifest=manifest, silo=silo).first()
        if before and (before.decision, before.reasons, before.policy_id) == (decision, reasons, policy and policy.pk):
            continue
        MatchPrediction.objects.update_or_create(
            manifest=manifest, silo=silo, defaults={"decision": decision, "reasons": reasons, "policy": policy}
        )
        record(
            type="match.decided",
            actor=SYSTEM,
            subject=Subject("study", manifest.study_id, manifest.digest),
            reasons=[item["code"] or "NONE" for item in reasons],
            refs={"manifest": manifest.digest, **({"policy": policy.digest} if policy else {})},
            data={"silo": silo.name, "decision": decision},
        )


def predict_open_studies(silo: Silo) -> list[Manifest]:
    """Refresh what `silo` will say to every study that is not over; the manifests that it takes part in."""
    touched = []
    newest: dict[str, Manifest] = {}
    states = {*OPEN, "submitted"}
    for manifest in Manifest.objects.filter(study__state__in=states).select_related("study").order_by("number"):
        newest[manifest.study_id] = manifest
    for manifest in newest.values():
        if any(item.silo == silo.name for item in parse_manifest(manifest.data).participants):
            predict(manifest, only=silo)
            touched.append(manifest)
    return touched
