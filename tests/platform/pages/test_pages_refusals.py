"""Every refusal says why and what would change it, in the portal's look, whoever raises it."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import include, path

from portal.access import public

# The portal with one address more, which fails.
urlpatterns = [path("fails", public(lambda request: 1 / 0)), path("", include("portal.urls"))]


def _is_a_refusal(answer: Any, status: int) -> None:
    page = answer.content.decode()
    assert answer.status_code == status
    assert "What would change it" in page
    assert "consilium.css" in page and page.count("<h1>") == 1


def test_an_address_that_is_none(db: None):
    _is_a_refusal(Client().get("/nothing/here/"), 404)


def test_somebody_elses_study_and_no_study_answer_alike(
    make_user: Any, sign_in: Any, make_study: Any, organisation: Any
):
    study, _ = make_study([])
    client = sign_in(make_user("auditor"))
    theirs, none = client.get(f"/studies/{study.pk}/"), client.get("/studies/st-none/")
    _is_a_refusal(theirs, 404)
    main = [answer.content.decode().partition("<main")[2] for answer in (theirs, none)]
    assert main[0].replace(study.pk, "st-none") == main[1]


def test_a_page_for_another_role(make_user: Any, sign_in: Any, organisation: Any):
    answer = sign_in(make_user("researcher", organisation)).get("/hospitals/new/")
    _is_a_refusal(answer, 403)
    assert "role admin" in answer.content.decode()


def test_a_form_without_its_token(db: None):
    answer = Client(enforce_csrf_checks=True).post("/account/login/", {"login": "x", "password": "y"})
    _is_a_refusal(answer, 403)


@pytest.mark.urls(__name__)
def test_a_fault_of_the_portal_says_no_more_than_it_should(db: None):
    answer = Client(raise_request_exception=False).get("/fails")
    _is_a_refusal(answer, 500)
    assert "ZeroDivision" not in answer.content.decode()


def test_a_host_that_the_portal_does_not_answer_to(db: None):
    _is_a_refusal(Client(headers={"host": "elsewhere.example"}).get("/"), 400)


def test_too_many_wrong_passwords_close_the_account_for_a_while(make_user: Any):
    user = make_user("admin")
    wrong = {"login": user.username, "password": "wrong"}
    answers = [Client().post("/account/login/", wrong) for _ in range(7)]
    said = answers[-1].content.decode()
    assert answers[-1].status_code in (200, 429) and "oo many" in said


def test_an_account_without_a_role_is_told_whom_to_ask(make_user: Any, sign_in: Any):
    page = sign_in(make_user()).get("/").content.decode()
    assert "Your account has no role yet" in page


def test_a_role_without_its_second_factor_is_told_how_to_get_it(make_user: Any, sign_in: Any):
    page = sign_in(make_user("admin"), second_factor=False).get("/").content.decode()
    assert "counts only in a session with a second factor" in page
    assert "/account/2fa/" in page
