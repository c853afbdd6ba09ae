"""Who looks at the log, exports it, or asks for a page that is not theirs stands in the log, and can't fill it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path

from evidence.models import Entry
from evidence.services import acting
from governance.models import PolicyProposal
from portal.access import role_required
from portal.actors import Subject
from portal.problems import Refused


def _refuses(request: Any) -> HttpResponse:
    raise Refused("ROLE", "Not for you.")


def _acts(request: Any) -> HttpResponse:
    with acting(type="study.paused", actor=request.actor, subject=Subject("study", "st-x")):
        raise Refused("NOT_OWNER", "Not yours.", status=403)


# The portal with more addresses: one that declares nothing, one whose view refuses, one whose service does.
urlpatterns = [
    path("forgot", lambda request: HttpResponse("open"), name="forgot"),
    path("refuses", role_required("researcher")(_refuses), name="refuses"),
    path("acts", role_required("researcher")(_acts), name="acts"),
    path("", include("portal.urls")),
]


def _denied(user: Any) -> list[tuple[str, str, list[str]]]:
    """(kind of subject, its id, codes) of the refusals of a person."""
    rows = Entry.objects.filter(outcome="denied", actor_id=str(user.pk), type="auth.failed").order_by("id")
    return [(row.subject_kind, row.subject_id, json.loads(bytes(row.record))["reasons"]) for row in rows]


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(
    ("address", "name", "code"),
    [
        ("/hospitals/new/", "organisations:hospital_new", "ROLE"),
        ("/forgot", "forgot", "UNDECLARED"),
        ("/refuses", "refuses", "ROLE"),
    ],
)
def test_a_refused_page_is_an_entry_once_a_minute(make_user, sign_in, organisation, address, name, code):
    user = make_user("researcher", organisation)
    client = sign_in(user)
    for _ in range(3):
        assert client.get(address).status_code == 403
    assert _denied(user) == [("page", name, [code])]
    assert Client().get(address).status_code in (302, 403)
    assert Entry.objects.filter(outcome="denied").count() == 1, "nobody is signed in: there is nobody to name"


@pytest.mark.parametrize("page", ["", "rounds/", "results/", "report.json", "evidence/", "edit/", "models/0/"])
def test_asking_for_somebody_elses_study_is_an_entry_once_a_minute(make_user, sign_in, make_study, organisation, page):
    from organisations.models import Organisation

    study, _ = make_study([])
    user = make_user("researcher", Organisation.objects.create(slug="south", name="South", country="DE"))
    client = sign_in(user)
    for _ in range(3):
        assert client.get(f"/studies/{study.pk}/{page}").status_code == 404
    assert _denied(user) == [("study", study.pk, ["NOT_VISIBLE"])]


def test_names_that_nobody_has_do_not_fill_the_log(make_user, sign_in, organisation):
    user = make_user("researcher", organisation)
    client = sign_in(user)
    for number in range(5):
        assert client.get(f"/studies/st-madeup{number}/").status_code == 404
    assert _denied(user) == []


def test_a_proposal_of_another_hospital_is_an_entry_too(make_user, sign_in, make_hospital):
    from organisations.models import Organisation, Silo

    make_hospital("site-1")
    make_hospital("site-2")
    owner = make_user("steward", Organisation.objects.get(slug="site-1"))
    made = PolicyProposal.objects.create(silo=Silo.objects.get(name="site-1"), document={}, proposed_by=owner)
    user = make_user("steward", Organisation.objects.get(slug="site-2"))
    assert sign_in(user).get(f"/policies/proposals/{made.pk}/").status_code == 404
    assert _denied(user) == [("proposal", str(made.pk), ["NOT_VISIBLE"])]


@pytest.mark.urls(__name__)
def test_an_act_that_is_refused_is_recorded_once(make_user, sign_in, organisation):
    """The act's own entry says more than the page's would; there are not two."""
    user = make_user("researcher", organisation)
    assert sign_in(user).get("/acts").status_code == 403
    (entry,) = Entry.objects.filter(outcome="denied", actor_id=str(user.pk))
    assert (entry.type, entry.subject_id) == ("study.paused", "st-x")


@pytest.mark.parametrize("page", ["/evidence/", "/evidence/entries/{}/", "/evidence/entries/{}/record.json"])
def test_every_way_to_look_at_the_log_is_an_entry(make_user, sign_in, make_study, page):
    make_study([])
    user = make_user("auditor")
    client = sign_in(user)
    for _ in range(2):
        assert client.get(page.format(Entry.objects.first().pk)).status_code == 200
    assert Entry.objects.filter(type="audit.viewed", actor_id=str(user.pk)).count() == 1


def test_the_entries_of_one_study_are_a_part_of_the_log(make_user, sign_in, make_study):
    study, _ = make_study([])
    assert sign_in(study.owner).get(f"/studies/{study.pk}/evidence/").status_code == 200
    assert Entry.objects.filter(type="audit.viewed", actor_id=str(study.owner.pk)).count() == 1


def test_the_list_as_a_file_is_an_export(make_user, sign_in, make_study):
    make_study([])
    user = make_user("auditor")
    assert sign_in(user).get("/evidence/entries.csv").status_code == 200
    assert Entry.objects.filter(type="audit.exported", actor_id=str(user.pk)).count() == 1
