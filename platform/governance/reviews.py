"""The network admin's decision on a study: necessary, never sufficient."""

from __future__ import annotations

from evidence.services import acting
from governance.activation import activate_when_ready
from governance.models import Review, Study, StudyState
from governance.states import locked, move
from organisations.models import User
from portal import events
from portal.actors import Actor, Subject
from portal.problems import Refused
from protocol.manifest import parse_manifest


def review_decide(
    *, actor: Actor, reviewer: User, study: Study, decision: str, reason: str, manifest: str | None = None
) -> Review:
    """Approve or reject the newest version of a study.

    Parameters: decision: approve or reject. reason: in the admin's words, shown to the researcher and the hospitals, kept
    outside the log's leaf. manifest: digest of the version that was on the page; another one by now is refused.
    Refused: not an admin, one's own study, no reason, a study that does not wait for this.
    """
    kind = "study.approved" if decision == Review.Decision.APPROVE else "study.rejected"
    with acting(type=kind, actor=actor, subject=Subject("study", study.pk)) as act:
        study = locked(study)
        if actor.role != "admin":
            raise Refused("ROLE", "Only the network's admin reviews studies.")
        if decision not in Review.Decision.values:
            raise Refused("BAD_MESSAGE", "The decision must be approve or reject.")
        if study.owner_id == reviewer.pk or actor.id != str(reviewer.pk):
            raise Refused("OWN_STUDY", "Nobody decides on their own study; another admin has to.")
        if not reason.strip() or len(reason) > 2000:
            raise Refused("REASON", "Give a reason of at most 2,000 characters.", status=422)
        newest = study.manifest
        if study.state != StudyState.SUBMITTED or newest is None:
            raise Refused("OUT_OF_STAGE", "This study does not wait for the network's decision.")
        if manifest is not None and manifest != newest.digest:
            raise Refused("VERSION", "The study was submitted again while you read it; read the new version first.")
        move(study, StudyState.APPROVED if decision == Review.Decision.APPROVE else StudyState.REJECTED)
        entry = act.record(
            subject=Subject("study", study.pk, newest.digest),
            refs={"manifest": newest.digest},
            data={"by": "network", "decision": decision},
            private={"reason": reason.strip()},
        )
        review = Review.objects.create(
            manifest=newest, reviewer=reviewer, decision=decision, reason=reason.strip(), entry=entry
        )
        activate_when_ready(study=study, manifest=newest)
        events.publish(*(item.silo for item in parse_manifest(newest.data).participants), study=study.pk)
    return review
