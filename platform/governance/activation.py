"""When a study may begin: enough hospitals approve, and either all have decided or somebody starts it."""

from __future__ import annotations

from evidence.services import record, sequence_on_commit
from governance import signals
from governance.decisions import Decision, decisions_of
from governance.models import Manifest, Study, StudyState
from governance.states import move
from portal import events
from portal.actors import SYSTEM, Actor, Subject
from portal.problems import Refused
from protocol.manifest import parse_manifest


def activate(*, study: Study, actor: Actor) -> None:
    """Make a locked study active, tell the federation, publish the log at once. Inside the caller's transaction.

    Refused: the study does not wait for hospitals, or fewer than min_roster of them approve.
    """
    manifest = study.manifest
    if study.state != StudyState.APPROVED or manifest is None:
        raise Refused("OUT_OF_STAGE", "Only a study that the network approved and that waits for hospitals can start.")
    parsed = parse_manifest(manifest.data)
    approving = [item for item in decisions_of(manifest) if item.decision == Decision.APPROVED]
    if len(approving) < parsed.least_roster:
        raise Refused(
            "APPROVALS_TOO_FEW",
            f"{len(approving)} hospitals approve; this study needs {parsed.least_roster}.",
        )
    move(study, StudyState.ACTIVE)
    record(
        type="study.activated",
        actor=actor,
        subject=Subject("study", study.pk, manifest.digest),
        refs={"manifest": manifest.digest},
        data={"silos": [item.silo.name for item in approving]},
    )
    signals.study_activated.send(sender=Study, study=study, manifest=manifest)
    sequence_on_commit()
    events.publish(*(item.silo for item in parsed.participants), study=study.pk)


def activate_when_ready(*, study: Study, manifest: Manifest) -> bool:
    """Activate a locked study once every hospital that was asked has decided and enough approve; whether it did."""
    if study.state != StudyState.APPROVED:
        return False
    decisions = decisions_of(manifest)
    # Who changed its key is waited for as well: once the study has begun no version can name the new one.
    if any(item.decision in (Decision.WAITING, Decision.OTHER_KEY) for item in decisions):
        return False
    approving = sum(item.decision == Decision.APPROVED for item in decisions)
    if approving < parse_manifest(manifest.data).least_roster:
        return False
    activate(study=study, actor=SYSTEM)
    return True
