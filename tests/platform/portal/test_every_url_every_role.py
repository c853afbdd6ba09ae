"""Every address of the portal is walked as every role; what a view declares is what happens. New addresses join by
themselves: the resolver is asked for all of them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, include, path
from django.urls.resolvers import RegexPattern

from portal.access import Access, AccessMiddleware, declared, public, role_required

ROLES = ("admin", "steward", "researcher", "it", "auditor")
_VALUES = {"int": "1", "uuid": str(uuid.UUID(int=1)), "slug": "x", "str": "x", "path": "0/000"}


def _patterns(
    resolver: URLResolver | None = None, prefix: str = "/", names: str = ""
) -> Iterator[tuple[str, str, Any]]:
    """(address with made-up values, full name, view) of every pattern."""
    for item in (resolver or get_resolver()).url_patterns:
        address = prefix + _address(item.pattern)
        if isinstance(item, URLResolver):
            space = f"{names}{item.namespace}:" if item.namespace else names
            yield from _patterns(item, address, space)
        elif isinstance(item, URLPattern):
            yield address, f"{names}{item.name or ''}", item.callback


def _address(pattern: Any) -> str:
    """A text that `pattern` (Django's RoutePattern or RegexPattern) matches."""
    if isinstance(pattern, RegexPattern):
        return _sample(re._parser.parse(str(pattern)))
    return re.sub(r"<(?:(\w+):)?\w+>", lambda found: _VALUES[found[1] or "str"], str(pattern))


def _sample(tree: Any) -> str:
    """The first text that a parsed regular expression matches."""
    text = ""
    for name, value in tree:
        match str(name):
            case "LITERAL":
                text += chr(value)
            case "IN":
                text += "x" if str(value[0][0]) == "CATEGORY" else _sample([value[0]])
            case "RANGE":
                text += chr(value[0])
            case "ANY":
                text += "x"
            case "MAX_REPEAT" | "MIN_REPEAT":
                text += _sample(value[2]) * max(value[0], 1)
            case "SUBPATTERN":
                text += _sample(value[3])
            case "BRANCH":
                text += _sample(value[1][0])
            case "AT":
                pass
            case other:
                raise AssertionError(f"teach this test the regular expression part {other}")
    return text


ALL = sorted(set(_patterns()), key=lambda item: item[0])


def _left_alone(response: Any) -> bool:
    """The access check let the call through to the view (which may well find nothing under a made-up id)."""
    return response.status_code not in (401, 403) and not _to_login(response)


def _to_login(response: Any) -> bool:
    return response.status_code == 302 and response.headers["Location"].startswith(("/account/login", "/account/2fa"))


def test_the_walk_finds_addresses():
    assert len(ALL) > 20


@pytest.mark.parametrize(("address", "name", "view"), ALL, ids=lambda value: value if isinstance(value, str) else "")
def test_every_view_declares_its_access_or_stays_shut(address: str, name: str, view: Any):
    access = declared(view, name)
    module = getattr(getattr(view, "view_class", view), "__module__", "")
    assert access is not None or module.startswith("allauth."), f"{address}: {module} declares no roles"


@pytest.mark.parametrize("method", ["get", "post"])
def test_nobody_without_an_account_gets_past_the_public_addresses(db: None, method: str):
    for address, name, view in ALL:
        access = declared(view, name)
        response = getattr(Client(raise_request_exception=False), method)(address)
        if access is None:
            assert response.status_code == 403, f"{method} {address} is open"
        elif access.kind == "node":
            public_reading = address.startswith("/api/v1/log/") and method == "get"
            assert public_reading or response.status_code in (401, 405, 422), (
                f"{method} {address}: {response.status_code}"
            )
        elif access.kind != "public":
            assert _to_login(response) or response.status_code == 401, f"{method} {address} is open to everybody"


@pytest.mark.parametrize("role", [*ROLES, None])
def test_a_page_opens_for_the_roles_it_declares_and_for_no_other(role: str | None, make_user, sign_in, organisation):
    user = make_user(role, organisation if role in ("steward", "researcher", "it") else None)
    for address, name, view in ALL:
        access = declared(view, name)
        if access is None or access.kind in ("public", "node"):
            continue
        client = sign_in(user)
        client.raise_request_exception = False
        response = client.get(address)
        if access.kind == "signed_in":
            assert not (response.status_code == 302 and response.headers["Location"].startswith("/account/login"))
        elif role in access.roles:
            assert _left_alone(response), f"{address} refuses {role}: {response.status_code}"
            assert response.status_code < 500, f"{address} fails for {role}: {response.status_code}"
        else:
            assert response.status_code == 403, f"{address} opens for {role}: {response.status_code}"


@pytest.mark.parametrize("role", ["admin", "steward", "auditor"])
def test_a_role_that_needs_a_second_factor_does_not_count_without_one(role: str, make_user, sign_in, organisation):
    user = make_user(role, organisation if role == "steward" else None)
    client = sign_in(user, second_factor=False)
    walked = 0
    for address, name, view in ALL:
        access = declared(view, name)
        if access and access.kind == "roles" and role in access.roles:
            response = client.get(address)
            assert response.status_code == 302 and "/account/2fa/" in response.headers["Location"], address
            walked += 1
    assert walked or not any((declared(v, n) or Access("x")).kind == "roles" for _, n, v in ALL)


# A portal with two more addresses, one of which forgot to declare its roles (pytest.mark.urls below).
urlpatterns = [
    path("forgot", lambda request: HttpResponse("open"), name="forgot"),
    path("told", public(lambda request: HttpResponse("open")), name="told"),
    path("", include("portal.urls")),
]


@pytest.mark.urls(__name__)
def test_a_view_without_a_declaration_is_refused_even_to_the_admin(make_user, sign_in):
    assert sign_in(make_user("admin")).get("/forgot").status_code == 403
    assert Client().get("/told").content == b"open"


def test_a_refused_person_stands_in_the_log_once_a_minute(make_user, rf: RequestFactory, organisation):
    from evidence.models import Entry

    view = role_required("admin")(lambda request: HttpResponse())
    user = make_user("researcher", organisation)
    for _ in range(3):
        request = rf.get("/")
        request.user = user
        request.session = {}
        request.resolver_match = None
        middleware = AccessMiddleware(lambda request: HttpResponse())
        middleware(request)
        assert middleware.process_view(request, view, (), {}).status_code == 403
    assert Entry.objects.filter(type="auth.failed", outcome="denied", actor_id=str(user.pk)).count() == 1
