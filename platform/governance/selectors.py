"""Reading studies: who may see which, what waits for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.models import Exists, OuterRef, Q, QuerySet

from governance.decisions import Decision, decision_of, decisions_of
from governance.models import Approval, Manifest, MatchPrediction, Policy, Study, StudyState
from governance.states import OPEN
from organisations.models import Silo
from protocol.manifest import parse_manifest

if TYPE_CHECKING:
    from portal.access import Person


def studies_visible(person: Person) -> QuerySet[Study]:
    """The studies that a person may see: admins and auditors all that were submitted, researchers their organisation's,
    stewards and hospital IT those that ask their hospital; everybody their own."""
    if person.has("admin", "auditor"):
        return Study.objects.exclude(~Q(owner=person.user), state=StudyState.DRAFT)
    mine = Q(owner=person.user)
    home = person.organisation_ids("researcher")
    mine |= Q(organisation_id__in=home) & ~Q(state=StudyState.DRAFT)
    hospitals = person.organisation_ids("steward", "it")
    # Only the newest version counts: a hospital that it no longer asks has nothing to do with what came of it.
    newer = Manifest.objects.filter(study=OuterRef("manifest__study"), number__gt=OuterRef("manifest__number"))
    addressed = MatchPrediction.objects.filter(
        ~Exists(newer), manifest__study=OuterRef("pk"), silo__organisation_id__in=hospitals
    )
    asked = Q(Exists(addressed)) & ~Q(state__in=(StudyState.DRAFT, StudyState.SUBMITTED, StudyState.REJECTED))
    return Study.objects.filter(mine | asked)


def current_policy(silo: Silo) -> Policy | None:
    """The policy in force, as the portal knows it."""
    return Policy.objects.filter(silo=silo, current=True).first()


def manifest_for(*, silo: Silo, study_id: str, digest: str | None = None) -> Manifest | None:
    """The newest manifest (or the one with `digest`) of a study that the network approved and that asks `silo`."""
    manifests = Manifest.objects.filter(study_id=study_id).select_related("study").order_by("-number")
    manifest = manifests.filter(digest=digest).first() if digest else manifests.first()
    if manifest is None or not manifest.reviews.filter(decision="approve").exists():
        return None
    if all(item.silo != silo.name for item in parse_manifest(manifest.data).participants):
        return None
    return manifest


def decisions_waiting(silo: Silo) -> list[Manifest]:
    """Manifests on which this hospital still has to decide: the network approved them and they are not over."""
    waiting = []
    studies = Study.objects.filter(state__in=OPEN, manifests__predictions__silo=silo).distinct()
    for study in studies.order_by("submitted_at"):
        manifest = study.manifest
        row = decision_of(manifest, silo) if manifest else None
        if manifest and row and row.decision in (Decision.WAITING, Decision.DENIED):
            waiting.append(manifest)
    return waiting


def newest_approval(*, manifest: Manifest, silo: Silo) -> Approval | None:
    """The hospital's newest complete statement on a manifest (approve, reject or revoke), or None."""
    return (
        Approval.objects.filter(manifest=manifest, silo=silo, complete=True)
        .select_related("entry")
        .order_by("-received_at")
        .first()
    )


def approving_silos(manifest: Manifest) -> list[tuple[Silo, Approval]]:
    """Silos whose standing decision on `manifest` is approve, with the approval (its `entry` is the log's record)."""
    return [
        (row.silo, row.approval)
        for row in decisions_of(manifest)
        if row.decision == Decision.APPROVED and row.approval is not None
    ]
