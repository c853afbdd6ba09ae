"""Every address as every role: a table generated from the routes; a route that has no row here fails."""

from __future__ import annotations

import pytest

from silo_node.page.routes import ROUTES
from tests.silo_node.page.conftest import PageUnderTest

ROLES = ("nobody", "it", "steward")
STUDY = "st-x"
# For each address and method: what nobody, hospital IT and a steward get. A POST is sent with a good form token, and is
# too empty to change anything: 400 says that the view was reached, 403 with a session that the role was refused.
EXPECTED = {
    ("GET", "/sign-in"): (200, 303, 303),
    ("POST", "/sign-in"): (403, 403, 403),
    ("POST", "/sign-out"): (303, 303, 303),
    ("GET", "/password"): (303, 200, 200),
    ("POST", "/password"): (303, 403, 403),
    ("GET", "/"): (303, 200, 200),
    ("GET", "/now"): (401, 200, 200),
    ("GET", "/images"): (303, 200, 200),
    ("GET", "/policy"): (303, 200, 200),
    ("POST", "/policy"): (303, 400, 400),
    ("POST", "/policy/decide"): (303, 403, 400),
    ("POST", "/policy/decide/sign"): (303, 403, 400),
    ("GET", "/consent"): (303, 200, 200),
    ("GET", "/studies"): (303, 200, 200),
    ("GET", "/studies/{study}"): (303, 200, 200),
    ("POST", "/studies/{study}/decide"): (303, 403, 400),
    ("POST", "/studies/{study}/sign"): (303, 403, 400),
    ("POST", "/studies/{study}/resume"): (303, 403, 400),
    ("POST", "/studies/{study}/resume/sign"): (303, 403, 400),
    ("POST", "/passkeys/draft"): (303, 403, 400),
    ("POST", "/passkeys/draft/sign"): (303, 403, 400),
    ("POST", "/passkeys/draft/apply"): (303, 403, 400),
    ("GET", "/passkeys"): (303, 403, 200),
    ("POST", "/passkeys"): (303, 403, 400),
    ("GET", "/budget"): (303, 200, 200),
    ("GET", "/sent"): (303, 200, 200),
    ("GET", "/sent.csv"): (303, 200, 200),
    ("GET", "/check"): (303, 200, 200),
    ("POST", "/check"): (303, 303, 303),
}
METHODS = [
    (method, route.path) for route in ROUTES for method, view in (("GET", route.get), ("POST", route.post)) if view
]


def test_every_route_has_a_row_and_every_row_a_route():
    assert sorted(METHODS) == sorted(EXPECTED)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_opens_what_it_may_and_nothing_else(page: PageUnderTest, role: str, monkeypatch):
    from silo_node.page import checks

    monkeypatch.setattr(checks, "_report", lambda config: [])  # the checks have tests of their own
    page.silo.portal.make_study()
    study = page.silo.portal.manifest.study
    found = {}
    visitor = page.visitor(role)
    for method, path in sorted(METHODS, key=lambda each: each[1] == "/sign-out"):
        visitor.get("/sign-in")  # a form token also for nobody
        address = path.replace("{study}", study)
        answer = visitor.get(address) if method == "GET" else visitor.post(address)
        found[method, path] = answer.status_code
        if answer.status_code == 303 and role == "nobody":
            assert answer.headers["location"].startswith("/sign-in")
    assert found == {key: each[ROLES.index(role)] for key, each in EXPECTED.items()}


@pytest.mark.parametrize("role", ROLES)
def test_an_address_that_is_not_in_the_table_does_not_exist(page: PageUnderTest, role: str):
    visitor = page.visitor(role)
    assert visitor.get("/admin").status_code == 404
    assert visitor.get("/static/../app.py").status_code == 404
    assert visitor.get("/static/%2e%2e/app.py").status_code == 404
    assert visitor.client.request("DELETE", "/policy").status_code == 405
    assert visitor.client.put("/policy").status_code == 405


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_no_get_changes_a_file_of_the_silo(page: PageUnderTest, method: str, path: str):
    """Except what a study's page fetches, the log of that question, and the time of a good reading of the opt-out list."""
    if method != "GET":
        return
    page.silo.portal.make_study()
    visitor = page.visitor("steward")
    passing = ("consent", "egress.db", "page.db", "studies", "silo.log", "silo.lock")

    def state():
        return {
            path.relative_to(page.silo.folder).as_posix(): path.read_bytes()
            for path in page.silo.folder.rglob("*")
            if path.is_file() and not path.relative_to(page.silo.folder).as_posix().startswith(passing)
        }

    before = state()
    assert visitor.get(path.replace("{study}", page.silo.portal.manifest.study)).status_code in (200, 303)
    assert state() == before
