"""A role opens pages, not what belongs to others: a hospital's people reach their hospital's studies and proposals only."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from governance.models import PolicyProposal, Study
from governance.services import policy_propose, review_decide, study_edit, study_submit
from organisations.models import Organisation, Silo, User

pytestmark = pytest.mark.django_db
PAGES = (
    "", "hospitals/", "evidence/", "versions/1.json", "rounds/", "rounds.csv", "rounds/live/", "rounds/0.1/", "results/",
    "results.csv", "report.json", "models/0/", "models/0.safetensors", "first-model/",
    "edit/", "edit/json/", "submit/", "review/approve/",
)  # fmt: skip


@pytest.fixture
def world(make_hospital: Any, make_study: Any, make_user: Any, actor_of: Any) -> Any:
    """Four hospitals; a study, approved by the network, that asks the first three."""
    for number in range(1, 5):
        make_hospital(f"site-{number}")
    study, actor = make_study(["site-1", "site-2", "site-3"])
    study_submit(actor=actor, study=study)
    admin = make_user("admin")
    review_decide(actor=actor_of(admin), reviewer=admin, study=study, decision="approve", reason="Good.")
    study.refresh_from_db()
    return study, actor, admin


def _person(make_user: Any, sign_in: Any, role: str, slug: str) -> Any:
    client = sign_in(make_user(role, Organisation.objects.get(slug=slug)))
    client.raise_request_exception = False
    return client


def _answers(client: Any, study: Study) -> set[int]:
    found = set()
    for page in PAGES:
        for method in ("get", "post"):
            found.add(getattr(client, method)(f"/studies/{study.pk}/{page}").status_code)
    return found


@pytest.mark.parametrize("role", ["steward", "it", "researcher"])
def test_who_was_not_asked_finds_no_page_of_a_study(world, make_user, sign_in, role):
    study, _, _ = world
    client = _person(make_user, sign_in, role, "site-4")
    assert _answers(client, study) <= {403, 404, 405}
    for page in ("/", "/studies/", "/studies.csv"):
        assert study.pk not in b"".join(client.get(page)).decode()


def test_a_study_that_is_not_there_and_one_of_others_look_the_same(world, make_user, sign_in):
    study, _, _ = world
    client = _person(make_user, sign_in, "steward", "site-4")
    for page in PAGES:
        real, made_up = (client.get(f"/studies/{pk}/{page}") for pk in (study.pk, "st-aaaaaaaaaaaaaaaa"))
        # Django masks the CSRF token anew in every answer.
        pages = [re.sub(rb'name="csrfmiddlewaretoken" value="\w+"', b"", each.content) for each in (real, made_up)]
        assert real.status_code == made_up.status_code and pages[0] == pages[1], page


def test_a_hospital_that_the_newest_version_leaves_out_loses_sight_of_the_study(world, make_user, sign_in, actor_of):
    study, actor, admin = world
    client = _person(make_user, sign_in, "steward", "site-3")
    assert client.get(f"/studies/{study.pk}/").status_code == 200
    asked = [{"silo": name, "weight": 1} for name in ("site-1", "site-2", "site-4")]
    study_edit(actor=actor, study=study, title=study.title, draft={**study.draft, "participants": asked})
    study_submit(actor=actor, study=study)
    review_decide(actor=actor_of(admin), reviewer=admin, study=study, decision="approve", reason="Good.")
    assert _answers(client, study) <= {403, 404, 405}
    assert _person(make_user, sign_in, "steward", "site-4").get(f"/studies/{study.pk}/").status_code == 200


def test_a_study_keeps_the_title_that_was_approved(world, make_user, sign_in):
    """Otherwise a hospital would be asked under a title that nobody has approved."""
    study, actor, _ = world
    approved = study.manifest.data
    study_edit(actor=actor, study=study, title="Something else", draft={**study.draft, "title": "Something else"})
    study.refresh_from_db()
    assert study.title == json.loads(approved)["title"] == "Pneumonia on chest X-rays"
    steward = _person(make_user, sign_in, "steward", "site-1")
    assert "Something else" not in steward.get(f"/studies/{study.pk}/").content.decode()
    study_submit(actor=actor, study=study)
    study.refresh_from_db()
    assert study.title == "Something else"


def _policy(make_user: Any, actor_of: Any) -> PolicyProposal:
    steward = make_user("steward", Organisation.objects.get(slug="site-1"))
    silo = Silo.objects.get(name="site-1")
    document = silo.policies.get(current=True).document
    return policy_propose(actor=actor_of(steward), silo=silo, document=document, proposed_by=steward)


@pytest.mark.parametrize("role", ["steward", "it"])
def test_a_proposal_is_read_in_its_own_hospital_only(world, make_user, sign_in, actor_of, role):
    proposal = _policy(make_user, actor_of)
    pages = (f"/policies/proposals/{proposal.pk}/", f"/policies/proposals/{proposal.pk}.json")
    own, other = (_person(make_user, sign_in, role, slug) for slug in ("site-1", "site-2"))
    for page in pages:
        assert own.get(page).status_code == 200
        assert other.get(page).status_code == 404
    assert f"proposals/{proposal.pk}" not in other.get("/policies/").content.decode()
    assert _person(make_user, sign_in, "researcher", "site-1").get(pages[0]).status_code == 403


def test_a_steward_proposes_for_no_other_hospital(world, make_user, sign_in):
    client = _person(make_user, sign_in, "steward", "site-2")
    fields = {
        "silo": "site-1",
        "permission": "DUO:0000042",
        "consent_default": "opt-in",
        "min_known": "0",
        "log_max_age_hours": "24",
    }
    assert client.post("/policies/propose/", fields).status_code == 422
    assert not PolicyProposal.objects.exists()
    assert client.post("/policies/propose/", {**fields, "silo": "site-2"}).status_code == 302


def test_a_role_in_one_hospital_is_no_role_in_another(world, make_user, sign_in):
    """Researcher at site-4 and steward at site-1: as a steward this person sees site-1's studies, and edits none."""
    from organisations.models import Membership

    study, _, _ = world
    user = make_user("researcher", Organisation.objects.get(slug="site-4"))
    Membership.objects.create(user=user, organisation=Organisation.objects.get(slug="site-1"), role="steward")
    client = sign_in(user)
    assert client.get(f"/studies/{study.pk}/").status_code == 200
    assert client.post(f"/studies/{study.pk}/edit/", {"title": "Mine now"}).status_code == 302
    assert client.post(f"/studies/{study.pk}/submit/").status_code == 422
    assert client.post(f"/studies/{study.pk}/withdraw/", {"reason": "Because"}).status_code == 422
    study.refresh_from_db()
    assert (study.title, study.state) == ("Pneumonia on chest X-rays", "approved")
    # Without the second factor the steward's role sleeps, and with it the study.
    assert sign_in(user, second_factor=False).get(f"/studies/{study.pk}/").status_code == 404


def test_people_of_a_hospital_are_named_to_their_own_hospital_and_the_network_only(world, make_user, sign_in):
    User.objects.filter(pk=make_user("it", Organisation.objects.get(slug="site-1")).pk).update(username="dr-secret")
    own, other = (_person(make_user, sign_in, "steward", slug) for slug in ("site-1", "site-2"))
    assert "dr-secret" in own.get("/hospitals/site-1/").content.decode()
    assert "dr-secret" not in other.get("/hospitals/site-1/").content.decode()


def test_private_words_of_an_entry_are_for_admins_and_auditors(world, make_user, sign_in):
    from evidence.models import Entry

    entry = Entry.objects.filter(type="study.approved", private__reason="Good.").get()
    seen = {
        role: "Good." in sign_in(make_user(role)).get(f"/evidence/entries/{entry.pk}/").content.decode()
        for role in ("admin", "auditor")
    }
    assert seen == {"admin": True, "auditor": True}
    for role in ("steward", "researcher", "it"):
        page = _person(make_user, sign_in, role, "site-1").get(f"/evidence/entries/{entry.pk}/").content.decode()
        assert "Good." not in page
