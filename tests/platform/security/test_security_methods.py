"""What is closed for GET and POST is closed for every other method too, for everybody."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from evidence.models import Entry
from portal.access import declared

OTHERS = ("HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "XYZ")
SHUT = (401, 403, 404, 405)
pytestmark = pytest.mark.django_db


def _shut(response: Any) -> bool:
    to_login = response.status_code == 302 and response.headers["Location"].startswith("/account/login")
    return response.status_code in SHUT or to_login


@pytest.mark.parametrize("method", OTHERS)
def test_no_method_leads_past_the_sign_in(addresses: Any, method: str):
    for address, name, view in addresses:
        access = declared(view, name)
        if access is not None and access.kind == "public":
            continue
        if address.startswith("/api/v1/log/") and method == "HEAD":
            continue  # the log is public to read
        response = Client(raise_request_exception=False).generic(method, address)
        assert _shut(response), f"{method} {address}: {response.status_code}"


@pytest.mark.parametrize("method", OTHERS)
def test_no_method_opens_a_page_to_a_role_that_it_does_not_declare(
    addresses: Any, method: str, make_user, sign_in, organisation
):
    client = sign_in(make_user("researcher", organisation))
    client.raise_request_exception = False
    for address, name, view in addresses:
        access = declared(view, name)
        if access is None or (access.kind == "roles" and "researcher" not in access.roles):
            assert client.generic(method, address).status_code == 403, f"{method} {address}"


@pytest.mark.parametrize("method", OTHERS)
def test_no_other_method_acts_even_for_the_admin(addresses: Any, method: str, make_user, sign_in):
    client = sign_in(make_user("admin"))
    client.raise_request_exception = False
    for address, name, view in addresses:
        access = declared(view, name)
        if access is not None and access.kind == "roles":
            response = client.generic(method, address)
            assert response.status_code in SHUT, f"{method} {address}: {response.status_code}"
    assert not Entry.objects.exclude(type__in=("auth.login", "auth.failed")).exists()


def test_a_header_can_not_change_the_method(make_user, sign_in, organisation):
    client = sign_in(make_user("admin"))
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert client.get("/evidence/verify/export.zip", headers={header: "POST"}).status_code == 405
    assert client.post("/studies/", {"_method": "GET"}).status_code == 405
