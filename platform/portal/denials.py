"""Refused requests in the evidence log, without letting whoever is refused fill it: one a minute for each actor and code."""

from __future__ import annotations

from importlib import import_module

from django.core.cache import cache
from django.db import transaction
from django.http import HttpRequest

from portal.access import Person
from portal.actors import Actor, Subject


def denied(person: Person, view: str, code: str = "ROLE") -> None:
    """A signed-in person asked for a page that their role does not open, or that opens for nobody."""
    role = person.memberships[0].role if person.memberships else "none"
    actor = Actor(str(person.user.pk), role, auth="password+totp" if person.second_factor else "password")
    record_once(actor, Subject("page", view or "unknown"), code)


def hidden(request: HttpRequest, subject: Subject, code: str = "NOT_VISIBLE") -> None:
    """A page of something that is there, asked for by a person (of a role that opens such pages) who may not see it.

    The answer stays the 404 of what is not there. Only for what exists: made-up names would fill the log.
    """
    record_once(request.actor, subject, code)  # type: ignore[attr-defined]


def record_once(actor: Actor, subject: Subject, code: str, *, type: str = "auth.failed") -> None:
    """Write an entry with outcome denied, at most once a minute for the same actor, subject and code."""
    if not cache.add(f"denied:{actor.id}:{subject.kind}:{subject.id}:{code}", 1, timeout=60):
        return
    # By name: portal is below the apps and imports none of them.
    services = import_module("evidence.services")
    with transaction.atomic():
        services.record(type=type, actor=actor, subject=subject, outcome="denied", reasons=(code,))
