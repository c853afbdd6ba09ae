"""Who may call what. Every view declares it; the middleware refuses a view that does not (default deny).

    @public                         anyone
    @signed_in                      anyone with an account
    @role_required("admin", ..)     a person with one of these roles; admin, steward and auditor need a second factor
    node_view (portal.answers)      a silo that signed its request

The views of allauth that we use are listed in THIRD_PARTY, by name; its others (sign-up, e-mail) stay shut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlencode

import structlog
from allauth.account.authentication import get_authentication_records
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template import TemplateDoesNotExist
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import escape

from portal.actors import Actor
from portal.problems import Refused

log = structlog.get_logger(__name__)
View = TypeVar("View", bound=Callable[..., Any])
ROLES = ("admin", "steward", "researcher", "it", "auditor")


@dataclass(frozen=True)
class Access:
    """What a view declared. kind: public, signed_in, roles or node; roles: only for the third."""

    kind: str
    roles: tuple[str, ...] = ()


PUBLIC, SIGNED_IN, NODE = Access("public"), Access("signed_in"), Access("node")
THIRD_PARTY = {
    "account_login": PUBLIC,
    "account_logout": PUBLIC,
    "account_inactive": PUBLIC,
    "account_reauthenticate": SIGNED_IN,
    "account_change_password": SIGNED_IN,
    "mfa_authenticate": PUBLIC,
    "mfa_reauthenticate": SIGNED_IN,
    "mfa_index": SIGNED_IN,
    "mfa_activate_totp": SIGNED_IN,
    "mfa_generate_recovery_codes": SIGNED_IN,
    "mfa_view_recovery_codes": SIGNED_IN,
    "mfa_download_recovery_codes": SIGNED_IN,
}


def public(view: View) -> View:
    """Declare that anyone may call `view`."""
    return _declare(view, PUBLIC)


def signed_in(view: View) -> View:
    """Declare that anyone with an account may call `view`, whatever their role."""
    return _declare(view, SIGNED_IN)


def node(view: View) -> View:
    """Declare that `view` checks the signature of a silo itself (portal.answers.node_view does)."""
    return _declare(view, NODE)


def role_required(*roles: str) -> Callable[[View], View]:
    """Declare that only people with one of `roles` may call the view. Raises ValueError for no or an unknown role."""
    if not roles or set(roles) - set(ROLES):
        raise ValueError(f"role_required takes roles out of {', '.join(ROLES)}, not {roles!r}")
    return lambda view: _declare(view, Access("roles", roles))


def _declare(view: View, access: Access) -> View:
    if getattr(view, "access", access) != access:
        raise ValueError(f"{getattr(view, '__qualname__', view)} declares its access twice")
    view.access = access  # type: ignore[attr-defined]
    return view


def declared(view: Callable[..., Any], name: str | None) -> Access | None:
    """What `view` (reached under the URL name `name`) declared, or None."""
    access = getattr(view, "access", None)
    if isinstance(access, Access):
        return access
    module = getattr(getattr(view, "view_class", view), "__module__", "")
    if module.startswith("allauth."):
        return THIRD_PARTY.get(name or "")
    return None


class Person:
    """The signed-in user with roles; roles that need a second factor count only in a session that has one."""

    def __init__(self, request: HttpRequest) -> None:
        self.user = request.user
        self._request = request

    @cached_property
    def memberships(self) -> list[Any]:
        """All memberships, effective or not."""
        return list(self.user.memberships.select_related("organisation")) if self.user.is_authenticated else []

    @cached_property
    def second_factor(self) -> bool:
        """Whether this session was opened with a second factor."""
        records = get_authentication_records(self._request, self.user)
        return any(record.get("method") == "mfa" for record in records)

    @cached_property
    def roles(self) -> frozenset[str]:
        """The roles that count in this session."""
        return frozenset(m.role for m in self.memberships if self.second_factor or m.role not in settings.MFA_ROLES)

    def has(self, *roles: str) -> bool:
        """Whether one of `roles` counts in this session."""
        return not self.roles.isdisjoint(roles)

    def organisation_ids(self, *roles: str) -> set[Any]:
        """Ids of the organisations in which this person has one of `roles` (any role, where none is given)."""
        wanted = self.roles & set(roles) if roles else self.roles
        return {m.organisation_id for m in self.memberships if m.role in wanted and m.organisation_id is not None}

    def actor(self, *roles: str) -> Actor:
        """This person as the actor of a record, in the first of `roles` that counts (in any, where none is given).

        Raises Refused(ROLE) where the person has none of them.
        """
        for role in roles or ROLES:
            for membership in self.memberships:
                if membership.role == role and role in self.roles:
                    org = membership.organisation.slug if membership.organisation_id else "network"
                    return Actor(str(self.user.pk), role, org, "password+totp" if self.second_factor else "password")
        raise Refused("ROLE", f"This needs one of these roles: {', '.join(roles or ROLES)}.")


class AccessMiddleware:
    """Enforces what views declare. Sets `request.person`, and `request.actor` on views that need a role."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Nothing to do before the view is known."""
        request.person = Person(request)  # type: ignore[attr-defined]
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Iterable[Any], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """None lets the call through."""
        match = request.resolver_match
        name = match.view_name if match else None
        access = declared(view, name)
        if access is None:
            log.warning("access.undeclared", view=name or getattr(view, "__qualname__", "?"))
            self._note(request, name or "", "UNDECLARED")
            return refusal_page(request, Refused("ROLE", "This address is not open to anyone."))
        if access.kind in ("public", "node"):
            return None
        person: Person = request.person  # type: ignore[attr-defined]
        if not person.user.is_authenticated:
            return redirect_to_login(request.get_full_path(), reverse(settings.LOGIN_URL))
        if access.kind == "signed_in":
            return None
        if person.has(*access.roles):
            request.actor = person.actor(*access.roles)  # type: ignore[attr-defined]
            return None
        if any(m.role in access.roles for m in person.memberships):
            return _to_second_factor(request, person)
        self._note(request, name or "", "ROLE")
        needed = " or ".join(access.roles)
        return refusal_page(request, Refused("ROLE", f"This page is for people with the role {needed}."))

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """A refusal that a page's view did not handle is shown as such; the node API has its own answers."""
        if isinstance(error, Refused) and not request.path.startswith("/api/"):
            if error.status == 403 and not error.recorded:
                match = request.resolver_match
                self._note(request, match.view_name if match else "", error.code)
            return refusal_page(request, error)
        return None

    def _note(self, request: HttpRequest, name: str, code: str) -> None:
        """The refusal in the evidence log, where somebody is signed in."""
        from portal.denials import denied

        person: Person = request.person  # type: ignore[attr-defined]
        if person.user.is_authenticated:
            denied(person, name, code)


def _to_second_factor(request: HttpRequest, person: Person) -> HttpResponse:
    target = "mfa_reauthenticate" if is_mfa_enabled(person.user) else "mfa_activate_totp"
    return HttpResponseRedirect(f"{reverse(target)}?{urlencode({'next': request.get_full_path()})}")


def refusal_page(request: HttpRequest, refused: Refused) -> HttpResponse:
    """The refusal in the portal's look (template `refused.html`), or in plain HTML where that can't be drawn."""
    try:
        body = render_to_string("refused.html", {"refused": refused}, request)
    except TemplateDoesNotExist:
        body = f"<!doctype html><title>Refused</title><h1>Refused</h1><p>{escape(refused.sentence)}</p>"
    return HttpResponse(body, status=refused.status)
