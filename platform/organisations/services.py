"""Hospitals, accounts and roles; silos have their own module (`silos`), re-exported here."""

from __future__ import annotations

import re

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction

from evidence.services import acting
from organisations.logins import login_failed_record, login_record
from organisations.models import Membership, Organisation, Role, User
from organisations.silos import silo_confirm, silo_enrol, silo_invite, silo_revoke, silo_rotate
from portal.actors import Actor, Subject
from portal.ids import uuid7
from portal.problems import Refused
from protocol.plain_text import first_unsafe

__all__ = [
    "account_create",
    "login_failed_record",
    "login_record",
    "organisation_register",
    "role_grant",
    "role_remove",
    "silo_confirm",
    "silo_enrol",
    "silo_invite",
    "silo_revoke",
    "silo_rotate",
]
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9\-]{0,58}[a-z0-9])?")
_NETWORK_ROLES = (Role.ADMIN, Role.AUDITOR)


def organisation_register(
    *, actor: Actor, slug: str, name: str, country: str, non_profit: bool = True, contact_email: str = ""
) -> Organisation:
    """Register a hospital. Refused: a slug that is taken or malformed, no name, a country that is no ISO code."""
    with acting(type="organisation.registered", actor=actor, subject=Subject("organisation", _safe(slug))) as act:
        if not _SLUG.fullmatch(slug):
            raise Refused("SLUG", "The short name may have small letters, digits and hyphens, at most 60.")
        if not name.strip() or len(name) > 200:
            raise Refused("NAME", "The hospital needs a name of at most 200 characters.")
        if first_unsafe(name.strip()) is not None:
            raise Refused("NAME", "The name holds a control or direction character; type it anew.")
        if not re.fullmatch("[A-Z]{2}", country):
            raise Refused("COUNTRY", "The country is two capital letters (ISO 3166-1), such as DE.")
        if contact_email:
            try:
                validate_email(contact_email)
            except ValidationError as error:
                raise Refused("EMAIL", "The contact is not an e-mail address.") from error
        if Organisation.objects.filter(slug=slug).exists():
            raise Refused("SLUG_TAKEN", f"A hospital with the short name {slug} is registered already.")
        organisation = Organisation.objects.create(
            slug=slug, name=name.strip(), country=country, non_profit=non_profit, contact_email=contact_email
        )
        act.record(data={"country": country, "non_profit": non_profit})
    return organisation


def account_create(*, actor: Actor, username: str, password: str, email: str = "", totp_secret: str = "") -> User:
    """Make an account (nobody signs up by themselves). With `totp_secret` (base32) its second factor is active at once.

    Refused: a name that is taken, a password that the validators reject, a secret that is not base32 of 20 bytes or more.
    """
    number = uuid7()
    with acting(type="role.changed", actor=actor, subject=Subject("user", str(number))) as act:
        user = User(id=number, username=username, email=email)
        try:
            user.full_clean(exclude=["password"])
            validate_password(password, user)
        except ValidationError as error:
            raise Refused("ACCOUNT", " ".join(error.messages)) from error
        user.set_password(password)
        user.save(force_insert=True)
        if totp_secret:
            _activate_totp(user, totp_secret)
        act.record(data={"change": "account", "second_factor": bool(totp_secret)})
    return user


def role_grant(*, actor: Actor, user: User, role: str, organisation: Organisation | None = None) -> Membership:
    """Give a person a role; admin and auditor belong to the network, the others to one organisation.

    Refused: an unknown role, a missing or superfluous organisation, a role to oneself, a role that is held already.
    """
    with acting(type="role.changed", actor=actor, subject=Subject("user", str(user.pk))) as act:
        if role not in Role.values:
            raise Refused("ROLE_UNKNOWN", f"The role must be one of {', '.join(Role.values)}.")
        if (organisation is None) != (role in _NETWORK_ROLES):
            raise Refused("ROLE_PLACE", "Admin and auditor belong to the network, every other role to one hospital.")
        if actor.id == str(user.pk):
            raise Refused("OWN_ROLE", "Nobody gives a role to themselves; ask another admin.", status=403)
        try:
            with transaction.atomic():
                membership = Membership.objects.create(user=user, organisation=organisation, role=role)
        except IntegrityError as error:
            raise Refused("ROLE_HELD", "This person has this role already.") from error
        act.record(data={"change": "granted", "role": role, "org": organisation.slug if organisation else "network"})
    return membership


def role_remove(*, actor: Actor, membership: Membership) -> None:
    """Take a role away. Refused: the last admin's."""
    with acting(type="role.changed", actor=actor, subject=Subject("user", str(membership.user_id))) as act:
        last = not Membership.objects.filter(role=Role.ADMIN).exclude(pk=membership.pk).exists()
        if membership.role == Role.ADMIN and last:
            raise Refused("LAST_ADMIN", "This is the last admin; make another one first.")
        org = membership.organisation.slug if membership.organisation else "network"
        act.record(data={"change": "removed", "role": membership.role, "org": org})
        membership.delete()


def _activate_totp(user: User, secret: str) -> None:
    import base64
    import binascii

    from allauth.mfa.totp.internal.auth import TOTP

    try:
        size = len(base64.b32decode(secret))
    except binascii.Error as error:
        raise Refused("TOTP", "The second factor's secret is not base32.") from error
    if size < 20:
        raise Refused("TOTP", "The second factor's secret must have at least 20 bytes.")
    TOTP.activate(user, secret)


def _safe(slug: str) -> str:
    """The slug for the record of a refusal: what someone typed may be free text."""
    return slug if _SLUG.fullmatch(slug) else "malformed"
