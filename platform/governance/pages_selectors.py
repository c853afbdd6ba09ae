"""Studies, decisions and policies as their pages show them, and who may see which."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from evidence.models import Entry
from governance.models import Approval, Manifest, MatchPrediction, Policy, Review, Study, StudyState
from governance.selectors import studies_visible
from organisations.models import Silo
from portal.access import Person
from protocol.manifest import Manifest as ManifestContent
from protocol.manifest import parse_manifest
from protocol.manifest_changes import Difference, differences

# The way of a study that goes well; a study that left it has no path on its page.
PATH = ("draft", "submitted", "approved", "active", "running", "completed", "released")


def visible_studies(person: Person) -> QuerySet[Study]:
    """`selectors.studies_visible` with what every page shows of a study."""
    return studies_visible(person).select_related("organisation", "owner")


def manifest_content(manifest: Manifest) -> ManifestContent:
    """The manifest as the protocol reads it."""
    return parse_manifest(manifest.data)


@dataclass(frozen=True)
class Decision:
    """What a hospital signed. Times are aware; `signer` is the role and key, never more than the envelope says.

    on_portal_page: as the log's entry says, by the hospital's trust.json of that time.
    """

    id: UUID
    decision: str
    meaning: str
    reason: str
    person: str
    role: str
    keyid: str
    not_before: datetime | None
    not_after: datetime | None
    limits: Mapping[str, Any]
    received_at: datetime
    digest: str
    entry: Entry
    complete: bool
    on_portal_page: bool = False

    @property
    def state(self) -> str:
        """A state of words.py: an approval whose time is over has lapsed."""
        if self.decision == "approve" and self.not_after is not None and self.not_after < timezone.now():
            return "lapsed"
        return self.decision


@dataclass(frozen=True)
class HospitalRow:
    """One hospital that a study asks: what its policy says (with reasons), and what it decided.

    other_key: whether its silo has another key now than this version names, so that it takes no part in it (KEY_ROTATED).
    """

    silo_name: str
    organisation: str
    country: str
    weight: int
    silo: Silo | None
    match: str
    reasons: Sequence[Mapping[str, str]]
    policy: Policy | None
    decisions: Sequence[Decision] = field(default=())
    other_key: bool = False

    @property
    def newest(self) -> Decision | None:
        return self.decisions[-1] if self.decisions else None

    @property
    def approves(self) -> bool:
        """Whether the newest complete decision approves and has not lapsed: the portal's view; the silo decides."""
        complete = [each for each in self.decisions if each.complete and not self.other_key]
        return bool(complete) and complete[-1].state == "approve"


def hospital_rows(manifest: Manifest) -> list[HospitalRow]:
    """The hospitals of a manifest, in its order."""
    predictions = {each.silo.name: each for each in manifest.predictions.select_related("silo", "policy")}
    silos = {each.name: each for each in Silo.objects.select_related("organisation")}
    decisions: dict[str, list[Decision]] = {}
    for approval in manifest.approvals.select_related("silo", "entry").order_by("received_at", "pk"):
        decisions.setdefault(approval.silo.name, []).append(read_decision(approval))
    rows = []
    content = manifest_content(manifest)
    named = content.public_keys()
    for each in content.participants:
        silo = silos.get(each.silo)
        prediction: MatchPrediction | None = predictions.get(each.silo)
        rows.append(
            HospitalRow(
                silo_name=each.silo,
                organisation=each.organisation,
                country=each.country,
                weight=each.weight,
                silo=silo,
                match=prediction.decision if prediction and prediction.policy_id else "NONE",
                reasons=prediction.reasons if prediction else (),
                policy=prediction.policy if prediction else None,
                decisions=tuple(decisions.get(each.silo, ())),
                other_key=silo is not None and silo.public is not None and silo.public != named[each.silo],
            )
        )
    return rows


def read_decision(approval: Approval) -> Decision:
    """The statement inside an approval's envelope, which was verified when it was received."""
    statement = json.loads(base64.b64decode(approval.envelope["payload"]))
    signer = statement.get("signer") or {}
    return Decision(
        id=approval.pk,
        decision=approval.decision,
        meaning=statement.get("meaning", ""),
        reason=approval.reason or statement.get("reason", ""),
        person=signer.get("name", ""),
        role=signer.get("role", ""),
        keyid=signer.get("keyid", ""),
        not_before=_moment(statement.get("not_before")),
        not_after=_moment(statement.get("not_after")),
        limits=statement.get("limits") or {},
        received_at=approval.received_at,
        digest=approval.digest,
        entry=approval.entry,
        complete=approval.complete,
        on_portal_page=json.loads(bytes(approval.entry.record))["data"].get("on_portal_page", False),
    )


def newest_review(manifest: Manifest) -> Review | None:
    """The network's last decision on this version."""
    return manifest.reviews.select_related("reviewer", "entry").order_by("-created_at").first()


def changes_since_last(manifest: Manifest) -> list[Difference] | None:
    """What differs from the version before; None for a first version."""
    before = manifest.study.manifests.filter(number__lt=manifest.number).order_by("-number").first()
    if before is None:
        return None
    return differences(json.loads(before.data), json.loads(manifest.data))


def study_entries(study: Study) -> QuerySet[Entry]:
    """Entries of the log about a study or one of its rounds."""
    about = Q(subject_kind="study", subject_id=study.pk) | Q(subject_id__startswith=f"{study.pk}.")
    return Entry.objects.filter(about)


def waiting_for_steward(person: Person) -> list[tuple[Study, list[HospitalRow]]]:
    """Studies that wait for a decision of one of the person's hospitals, each with the silos that have not decided."""
    organisations = person.organisation_ids("steward")
    states = (StudyState.APPROVED, StudyState.ACTIVE, StudyState.RUNNING, StudyState.PAUSED)
    found = []
    for study in visible_studies(person).filter(state__in=states):
        manifest = study.manifest
        if manifest is None:
            continue
        rows = [
            row
            for row in hospital_rows(manifest)
            if row.silo
            and row.silo.organisation_id in organisations
            and not row.other_key
            and (row.newest is None or row.newest.state == "lapsed")
        ]
        if rows:
            found.append((study, rows))
    return found


def silos_of(person: Person, *roles: str) -> QuerySet[Silo]:
    """The silos of the hospitals in which the person has one of `roles`."""
    return Silo.objects.filter(organisation__in=person.organisation_ids(*roles)).select_related("organisation")


def current_policies() -> QuerySet[Policy]:
    """The policy in force of every silo that has one."""
    return Policy.objects.filter(current=True).select_related("silo__organisation")


def _moment(text: str | None) -> datetime | None:
    return parse_datetime(text) if text else None
