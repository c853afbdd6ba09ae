"""A study's life: frozen when submitted, approved by the network and then by hospitals, and never by its own owner."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from evidence.models import Entry
from evidence.sequencer import published
from governance import signals
from governance.decisions import Decision, decisions_of
from governance.drafts import manifest_problems
from governance.models import Manifest, Study, StudyState
from governance.selectors import manifest_for, studies_visible
from governance.services import (
    review_decide,
    study_draft,
    study_edit,
    study_expire,
    study_pause,
    study_resume,
    study_start,
    study_submit,
    study_withdraw,
)
from governance.states import ARROWS, move
from organisations.models import Silo
from portal.actors import SYSTEM, Actor
from portal.keys import log_vkey
from portal.problems import Refused
from protocol.canonical import digest, unb64
from protocol.manifest import parse_manifest

pytestmark = pytest.mark.django_db
SITES = ["site-1", "site-2", "site-3", "site-4"]


@pytest.fixture
def hospitals(make_hospital):
    return {name: make_hospital(name) for name in SITES}


@pytest.fixture
def activated():
    """The studies that the federation would be told of."""
    heard: list[str] = []

    def hear(study: Study, **kwargs: Any) -> None:
        heard.append(study.pk)

    signals.study_activated.connect(hear)
    yield heard
    signals.study_activated.disconnect(hear)


@pytest.fixture
def approve(make_user, actor_of):
    """approve(study): the network's admin approves."""

    def act(study: Study, decision: str = "approve") -> Any:
        admin = make_user("admin")
        return review_decide(actor=actor_of(admin), reviewer=admin, study=study, decision=decision, reason="Sound.")

    return act


def _send(hospital: Any, manifest: Manifest, decision: str = "approve", **changes: Any) -> int:
    envelope = hospital.statement(manifest, decision, **changes)
    path = f"/api/v1/studies/{manifest.study_id}/approval"
    return hospital.node.send("PUT", path, envelope.as_dict()).status_code


def test_submitting_freezes_the_manifest_with_the_silos_current_keys(hospitals, make_study):
    study, owner = make_study(SITES)
    manifest = study_submit(actor=owner, study=study)
    parsed = parse_manifest(manifest.data)
    assert manifest.digest == digest(manifest.data) and parsed.study == study.pk
    assert {item.silo: unb64(item.public) for item in parsed.participants} == {
        name: hospital.key.public for name, hospital in hospitals.items()
    }
    assert parsed.log.vkey == log_vkey() and len(parsed.witnesses.vkeys) == 4
    assert parsed.purpose.countries == ("DE",)
    study.refresh_from_db()
    assert study.state == StudyState.SUBMITTED
    record = json.loads(bytes(Entry.objects.get(type="study.submitted").record))
    assert record["refs"] == {"manifest": manifest.digest} and record["data"]["participants"] == SITES


def test_each_hospitals_decision_is_predicted_with_reasons(hospitals, make_hospital, make_study):
    make_hospital("site-5", policy={"permission": "DUO:0000011"})
    make_hospital("site-6", policy=None)
    study, owner = make_study([*SITES, "site-5", "site-6"])
    manifest = study_submit(actor=owner, study=study)
    rows = {row.silo.name: row for row in decisions_of(manifest)}
    assert rows["site-1"].match == "PERMIT" and rows["site-1"].decision == Decision.WAITING
    assert rows["site-5"].decision == Decision.DENIED and rows["site-5"].reasons[0]["sentence"]
    # A hospital that has not said anything yet has not decided.
    assert rows["site-6"].match == "DENY" and rows["site-6"].decision == Decision.WAITING


def test_the_study_becomes_active_when_all_have_decided(hospitals, make_study, approve, activated):
    study, owner = make_study(SITES)
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    assert [_send(hospitals[name], manifest) for name in SITES[:3]] == [200] * 3
    assert activated == []
    assert _send(hospitals["site-4"], manifest, "reject", reason="No capacity.") == 200
    study.refresh_from_db()
    # The federation, where it listens, has announced the first round by now.
    assert study.state in (StudyState.ACTIVE, StudyState.RUNNING) and study.activated_at
    assert activated == [study.pk]


@pytest.mark.django_db(transaction=True)
def test_activation_publishes_the_approvals_without_waiting_for_the_sequencers_beat(
    hospitals, make_study, approve, activated
):
    study, owner = make_study(SITES[:3])
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES[:3]:
        _send(hospitals[name], manifest)
    assert activated == [study.pk]
    assert not Entry.objects.filter(index__isnull=True).exists()
    assert published().size == Entry.objects.count()


def test_hospitals_whose_policy_denies_are_not_waited_for(hospitals, make_hospital, make_study, approve, activated):
    make_hospital("site-5", policy={"permission": "DUO:0000011"})
    study, owner = make_study([*SITES[:3], "site-5"])
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES[:3]:
        _send(hospitals[name], manifest)
    assert activated == [study.pk]


def test_too_few_approvals_do_not_start_a_study(hospitals, make_study, approve, activated):
    study, owner = make_study(SITES)
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES[:2]:
        _send(hospitals[name], manifest)
    for name in SITES[2:]:
        _send(hospitals[name], manifest, "reject")
    study.refresh_from_db()
    assert (study.state, activated) == (StudyState.APPROVED, [])
    with pytest.raises(Refused, match="APPROVALS_TOO_FEW"):
        study_start(actor=owner, study=study)


def test_start_does_not_wait_for_the_undecided(hospitals, make_study, approve, activated):
    study, owner = make_study(SITES)
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES[:3]:
        _send(hospitals[name], manifest)
    stranger = Actor("someone-else", "researcher", "north", "password")
    with pytest.raises(Refused, match="NOT_OWNER"):
        study_start(actor=stranger, study=study)
    study_start(actor=owner, study=study)
    assert activated == [study.pk]
    with pytest.raises(Refused, match="OUT_OF_STAGE"):
        study_start(actor=owner, study=study)


def test_no_hospital_can_decide_before_the_network_has(hospitals, make_study):
    study, owner = make_study(SITES)
    manifest = study_submit(actor=owner, study=study)
    assert _send(hospitals["site-1"], manifest) == 404
    assert manifest_for(silo=Silo.objects.get(name="site-1"), study_id=study.pk) is None


def test_nobody_decides_on_their_own_study(hospitals, make_study, make_user, actor_of):
    study, owner = make_study(SITES)
    study_submit(actor=owner, study=study)
    as_admin = Actor(owner.id, "admin", "network", "password+totp")
    with pytest.raises(Refused, match="OWN_STUDY"):
        review_decide(actor=as_admin, reviewer=study.owner, study=study, decision="approve", reason="Mine.")
    with pytest.raises(Refused, match="OWN_STUDY"):  # nor under another's name
        review_decide(actor=as_admin, reviewer=make_user("admin"), study=study, decision="approve", reason="Mine.")
    steward = make_user("steward", study.organisation)
    with pytest.raises(Refused, match="ROLE"):
        review_decide(actor=actor_of(steward), reviewer=steward, study=study, decision="approve", reason="Hm.")
    assert Entry.objects.filter(type="study.approved", outcome="denied").count() == 3
    study.refresh_from_db()
    assert study.state == StudyState.SUBMITTED


def test_a_review_needs_a_reason_and_the_version_that_was_read(hospitals, make_study, make_user, actor_of):
    study, owner = make_study(SITES)
    first = study_submit(actor=owner, study=study)
    study_edit(actor=owner, study=study, title=study.title, draft={**study.draft, "summary": "Changed."})
    study_submit(actor=owner, study=Study.objects.get())
    admin = make_user("admin")
    decide = {"actor": actor_of(admin), "reviewer": admin, "study": study, "decision": "approve"}
    with pytest.raises(Refused, match="REASON"):
        review_decide(**decide, reason="  ")
    with pytest.raises(Refused, match="VERSION"):
        review_decide(**decide, reason="Sound.", manifest=first.digest)
    review = review_decide(**decide, reason="Sound, says Dr Example.", manifest=Study.objects.get().manifest.digest)
    assert b"Example" not in bytes(review.entry.record)


def test_a_changed_study_is_a_new_version_that_needs_new_approvals(hospitals, make_study, approve):
    study, owner = make_study(SITES)
    first = study_submit(actor=owner, study=study)
    approve(study)
    _send(hospitals["site-1"], first)
    with pytest.raises(Refused, match="UNCHANGED"):
        study_submit(actor=owner, study=study)
    study_edit(actor=owner, study=study, title=study.title, draft={**study.draft, "summary": "Changed."})
    second = study_submit(actor=owner, study=study)
    assert (first.number, second.number) == (1, 2) and first.digest != second.digest
    study.refresh_from_db()
    assert study.state == StudyState.SUBMITTED
    assert all(row.decision == Decision.WAITING for row in decisions_of(second))
    approve(study)
    later = {"now": timezone.now() + timedelta(seconds=2)}
    assert _send(hospitals["site-1"], first, **later) == 422  # the version of before


def test_a_rejected_study_can_be_changed_and_submitted_again(hospitals, make_study, approve):
    study, owner = make_study(SITES)
    study_submit(actor=owner, study=study)
    approve(study, "reject")
    study.refresh_from_db()
    assert study.state == StudyState.REJECTED
    study_edit(actor=owner, study=study, title="Better", draft={**study.draft, "summary": "Better."})
    assert study_submit(actor=owner, study=study).number == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"participants": []}, "PARTICIPANTS"),
        ({"participants": ["site-1", "site-1", "site-2"]}, "PARTICIPANTS"),
        ({"participants": ["site-1", "site-2", "nowhere"]}, "PARTICIPANTS"),
        ({"participants": ["site-1", "site-2"]}, "MANIFEST"),
        ({"cohort": {"modalities": ["CR"], "min_patients": 0}}, "MANIFEST"),
        ({"invented": 1}, "MANIFEST"),
        ({"dates": {"start": "2020-01-01", "end": "2020-12-31"}}, "DATES"),
    ],
    ids=str,
)
def test_a_draft_that_does_not_fit_is_refused_with_the_field_named(hospitals, make_study, change, code):
    study, owner = make_study(SITES, **change)
    with pytest.raises(Refused, match=code):
        study_submit(actor=owner, study=study)
    assert not Manifest.objects.exists()
    study.refresh_from_db()
    assert study.state == StudyState.DRAFT


def test_problems_of_a_draft_come_with_the_path_of_their_field(hospitals, make_study):
    study, _ = make_study(SITES)
    assert manifest_problems(study=study, draft=study.draft) == []
    wrong = {**study.draft, "cohort": {"modalities": ["CR"], "min_patients": 0}}
    assert [path for path, _ in manifest_problems(study=study, draft=wrong)] == ["cohort.min_patients"]


def test_only_the_owner_edits_and_submits(hospitals, make_study, make_user, actor_of):
    study, _ = make_study(SITES)
    other = make_user("researcher", study.organisation)
    with pytest.raises(Refused, match="NOT_OWNER"):
        study_submit(actor=actor_of(other), study=study)
    with pytest.raises(Refused, match="NOT_OWNER"):
        study_edit(actor=actor_of(other), study=study, title="Mine now", draft={})
    with pytest.raises(Refused, match="NOT_OWNER"):
        study_draft(actor=actor_of(other), owner=study.owner, organisation=study.organisation, title="x", draft={})


def test_pause_resume_withdraw_and_expire(hospitals, make_study, approve, make_user, actor_of):
    study, owner = make_study(SITES[:3])
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES[:3]:
        _send(hospitals[name], manifest)
    admin = actor_of(make_user("admin"))
    study_pause(actor=admin, study=study, reason="A question first.")
    study.refresh_from_db()
    assert study.paused_reason == {"code": "PERSON", "sentence": "A question first.", "by": "admin"}
    assert b"question" not in bytes(Entry.objects.get(type="study.paused").record)
    study_resume(actor=admin, study=study)
    study.refresh_from_db()
    assert study.state == StudyState.RUNNING and study.paused_reason is None
    assert study_expire(study=study) is False
    assert study_expire(study=study, today=date.today() + timedelta(days=91)) is True
    with pytest.raises(Refused, match="OUT_OF_STAGE"):
        study_withdraw(actor=owner, study=study, reason="Too late.")


@pytest.mark.parametrize(
    ("who", "by", "code"), [("admin", "admin", "PERSON"), ("owner", "owner", "PERSON"), ("portal", "portal", "FAILED")]
)
def test_what_an_admin_paused_only_an_admin_resumes(
    hospitals, make_study, approve, make_user, actor_of, sign_in, who, by, code
):
    study, owner = make_study(SITES[:3])
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES[:3]:
        _send(hospitals[name], manifest)
    admin = actor_of(make_user("admin"))
    actors = {"admin": admin, "owner": owner, "portal": SYSTEM}
    study_pause(actor=actors[who], study=study, reason="A question first.", code=code)
    study.refresh_from_db()
    assert study.paused_reason["by"] == by
    page = sign_in(study.owner).get(f"/studies/{study.pk}/").content.decode()
    assert (f"/studies/{study.pk}/resume/" in page) is (who != "admin")
    assert ("only an admin can resume it" in page) is (who == "admin")
    answer = sign_in(study.owner).post(f"/studies/{study.pk}/resume/")
    study.refresh_from_db()
    if who != "admin":
        assert answer.status_code == 302 and study.state == StudyState.RUNNING
        return
    assert answer.status_code == 422 and "only an admin can resume it" in answer.content.decode()
    assert study.state == StudyState.PAUSED
    denied = Entry.objects.get(type="study.resumed", outcome="denied")
    assert (denied.actor_id, json.loads(bytes(denied.record))["reasons"]) == (owner.id, ["PAUSED_BY_ADMIN"])
    study_resume(actor=admin, study=study)
    study.refresh_from_db()
    assert study.state == StudyState.RUNNING


def test_a_revoked_approval_of_a_running_study_is_told_to_the_federation(hospitals, make_study, approve):
    study, owner = make_study(SITES[:3])
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    now = timezone.now()
    for name in SITES[:3]:
        _send(hospitals[name], manifest, now=now)
    heard = []

    def hear(manifest: Manifest, silo: Silo, **kwargs: Any) -> None:
        heard.append(silo.name)

    signals.approval_changed.connect(hear)
    try:
        assert _send(hospitals["site-2"], manifest, "revoke", now=now + timedelta(seconds=1)) == 200
    finally:
        signals.approval_changed.disconnect(hear)
    assert heard == ["site-2"]


def test_every_state_that_is_not_named_by_an_arrow_is_out_of_reach(make_study):
    study, _ = make_study(SITES)
    for before in StudyState.values:
        for after in StudyState.values:
            Study.objects.update(state=before)
            study.state = before
            if after in ARROWS[before]:
                move(study, after)
                assert Study.objects.get().state == after
            else:
                with pytest.raises(Refused, match="OUT_OF_STAGE"):
                    move(study, after)
                assert Study.objects.get().state == before


@pytest.mark.django_db(transaction=True)
def test_of_two_admins_who_decide_at_once_one_wins(hospitals, make_study, make_user, actor_of):
    study, owner = make_study(SITES)
    study_submit(actor=owner, study=study)
    admins = [make_user("admin") for _ in range(6)]

    def decide(place: int) -> str:
        admin = admins[place]
        try:
            review_decide(
                actor=actor_of(admin), reviewer=admin, study=Study.objects.get(), reason="At once.",
                decision="approve" if place % 2 else "reject",
            )  # fmt: skip
            return "won"
        except Refused as refused:
            return refused.code
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(decide, range(6)))
    assert sorted(results) == ["OUT_OF_STAGE"] * 5 + ["won"]


def test_who_sees_which_study(hospitals, make_study, approve, make_user, organisation, sign_in, rf):
    from portal.access import Person

    study, owner = make_study(SITES[:3])

    def sees(user: Any) -> bool:
        client = sign_in(user)
        request = rf.get("/")
        request.user, request.session = user, client.session
        return studies_visible(Person(request)).filter(pk=study.pk).exists()

    silo = Silo.objects.select_related("organisation").get(name="site-1")
    people = {
        "admin": make_user("admin"),
        "auditor": make_user("auditor"),
        "steward": make_user("steward", silo.organisation),
        "other steward": make_user("steward", Silo.objects.get(name="site-4").organisation),
        "colleague": make_user("researcher", organisation),
        "nobody": make_user(None),
    }
    assert sees(study.owner)
    assert not any(sees(person) for person in people.values())
    study_submit(actor=owner, study=study)
    assert [name for name, person in people.items() if sees(person)] == ["admin", "auditor", "colleague"]
    approve(study)
    assert [name for name, person in people.items() if sees(person)] == ["admin", "auditor", "steward", "colleague"]


def test_the_system_may_not_be_mistaken_for_a_person():
    assert SYSTEM.role == "system" and SYSTEM.auth == "none"


def test_a_hospital_that_changed_its_key_is_waited_for_until_a_version_names_the_new_one(
    hospitals, make_study, approve, activated
):
    """Once a study has begun no version can name the new key, so it does not begin by itself without the hospital."""
    study, owner = make_study(SITES)
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES[:3]:
        assert _send(hospitals[name], manifest) == 200
    assert hospitals["site-1"].change_key().status_code == 200
    assert {row.silo.name: row.decision for row in decisions_of(manifest)}["site-1"] == Decision.OTHER_KEY
    assert _send(hospitals["site-4"], manifest) == 200
    assert activated == []
    study.refresh_from_db()
    manifest = study_submit(actor=owner, study=study)
    assert parse_manifest(manifest.data).public_keys()["site-1"] == hospitals["site-1"].key.public
    study.refresh_from_db()
    approve(study)
    for name in SITES:
        assert _send(hospitals[name], manifest) == 200
    assert activated == [study.pk]


def test_the_owner_may_start_without_the_hospital_whose_key_changed(hospitals, make_study, approve, activated):
    study, owner = make_study(SITES)
    manifest = study_submit(actor=owner, study=study)
    approve(study)
    for name in SITES:
        if name == "site-4":
            assert hospitals["site-1"].change_key().status_code == 200
        assert _send(hospitals[name], manifest) == 200
    study.refresh_from_db()
    study_start(actor=owner, study=study)
    record = json.loads(bytes(Entry.objects.get(type="study.activated").record))
    assert record["data"]["silos"] == SITES[1:]
