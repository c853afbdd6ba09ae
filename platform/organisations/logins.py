"""Sign-ins and failed sign-ins in the evidence log; never which name was typed."""

from __future__ import annotations

from django.db import transaction

from evidence.services import record
from organisations.models import User
from portal.actors import Actor, Subject
from portal.denials import record_once


def login_record(*, user: User, second_factor: bool) -> None:
    """A person signed in."""
    actor = _actor(user, "password+totp" if second_factor else "password")
    with transaction.atomic():
        record(type="auth.login", actor=actor, subject=Subject("user", str(user.pk)))


def login_failed_record(*, user: User | None) -> None:
    """A sign-in failed: of a known account, or (user None) under a name that has none. At most one entry a minute each."""
    if user is None:
        record_once(Actor("anonymous", "none"), Subject("user", "unknown"), "NO_ACCOUNT")
    else:
        record_once(_actor(user, "none"), Subject("user", str(user.pk)), "CREDENTIALS")


def _actor(user: User, auth: str) -> Actor:
    membership = user.memberships.select_related("organisation").order_by("pk").first()
    if membership is None:
        return Actor(str(user.pk), "none", auth=auth)
    org = membership.organisation.slug if membership.organisation else "network"
    return Actor(str(user.pk), membership.role, org, auth)
