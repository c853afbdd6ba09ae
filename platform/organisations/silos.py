"""A silo's life: invited with a one-time token, enrolled with its key, confirmed by two people comparing fingerprints.

Re-exported by `services`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from evidence.services import Act, acting
from organisations import signals
from organisations.enrolment import EnrolRequest
from organisations.models import KeyRotation, Organisation, Silo, SiloState, User
from organisations.trust import read_trust
from portal import events
from portal.actors import ANONYMOUS, Actor, Subject, silo_actor
from portal.denials import record_once
from portal.problems import Refused
from protocol.key_rotation import RotationError, verify_rotation
from protocol.signing import Envelope, keyid
from protocol.signing import fingerprint as fingerprint_of

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_\-]{0,58}[a-z0-9])?")


def silo_invite(*, actor: Actor, organisation: Organisation, name: str) -> tuple[Silo, str]:
    """A silo and the one-time token with which it enrols (shown once; only its hash is kept; ENROLMENT_TOKEN_HOURS).

    Inviting again a silo that is invited, pending or revoked gives a new token and forgets the old key.
    Refused: a malformed name, one that another hospital uses, a silo that is active (revoke it first).
    """
    safe = name if _NAME.fullmatch(name) else "malformed"
    with acting(type="organisation.registered", actor=actor, subject=Subject("silo", safe)) as act:
        if not _NAME.fullmatch(name):
            raise Refused("NAME", "A silo's name may have small letters, digits, hyphens and underscores, at most 60.")
        silo = Silo.objects.select_for_update().filter(name=name).first()
        if silo is None:
            silo = Silo(name=name, organisation=organisation)
        elif silo.organisation_id != organisation.pk:
            raise Refused("NAME_TAKEN", "Another hospital has a silo with this name.")
        elif silo.state == SiloState.ACTIVE:
            raise Refused("SILO_ACTIVE", "This silo is enrolled; revoke its key before you invite it again.")
        token = secrets.token_urlsafe(24)
        silo.token_hash = token_hash(token)
        silo.token_expires_at = timezone.now() + timedelta(hours=settings.ENROLMENT_TOKEN_HOURS)
        silo.state = SiloState.INVITED
        silo.public_key, silo.keyid, silo.enrolled_at = None, "", None
        silo.confirmed_by, silo.confirmed_at, silo.revoked_at = None, None, None
        silo.save()
        act.record(data={"change": "silo-invited", "org": organisation.slug})
    return silo, token


def silo_enrol(*, request: EnrolRequest) -> Silo:
    """Take a silo's key. The caller has verified that the request is signed with `request.public`.

    Sending the same again (a lost answer) is allowed until the admin confirms.
    Refused: a token that is unknown, used or expired; a key that another silo has; a trust.json that does not verify.
    """
    name = Silo.objects.filter(token_hash=token_hash(request.token)).values_list("name", flat=True).first()
    if name is None:
        # Anybody on the network can get here with a key of their own: one entry a minute, or they would fill the log.
        record_once(ANONYMOUS, Subject("silo", "unknown"), "TOKEN", type="key.enrolled")
        raise Refused("TOKEN", "This enrolment token is unknown or was used. Ask the network's admin for a new one.")
    with acting(type="key.enrolled", actor=ANONYMOUS, subject=Subject("silo", name)) as act:
        silo = Silo.objects.select_for_update().select_related("organisation").filter(name=name).first()
        if silo is None or not hmac.compare_digest(silo.token_hash, token_hash(request.token)):
            raise Refused(
                "TOKEN", "This enrolment token is unknown or was used. Ask the network's admin for a new one."
            )
        if silo.token_expires_at is None or silo.token_expires_at < timezone.now():
            raise Refused("TOKEN", "This enrolment token has expired. Ask the network's admin for a new one.")
        number = keyid(request.public)
        if silo.state == SiloState.PENDING and silo.keyid == number:
            return silo
        if silo.state != SiloState.INVITED:
            raise Refused("TOKEN", "This enrolment token was used with another key. Ask the admin for a new one.")
        _take_key(silo, request, number, act)
    return silo


def silo_confirm(*, actor: Actor, user: User, silo: Silo, fingerprint: str) -> Silo:
    """The admin compared the fingerprint with a person at the hospital: the silo is active from now on.

    Parameters: fingerprint: as read out by the hospital; spaces and case do not matter.
    Refused: another fingerprint (nothing changes), a silo that does not wait for this.
    """
    with acting(type="key.enrolled", actor=actor, subject=Subject("silo", silo.name)) as act:
        silo = Silo.objects.select_for_update().select_related("organisation").get(pk=silo.pk)
        if silo.state != SiloState.PENDING or silo.public is None:
            raise Refused("OUT_OF_STAGE", "This silo does not wait for the confirmation of a fingerprint.")
        given = "".join(fingerprint.split()).lower()
        expected = "".join(fingerprint_of(silo.public).split())
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise Refused(
                "FINGERPRINT",
                "This is not the fingerprint of the key that was sent. Read it again, all of it; if it still differs, "
                "somebody else may have used the token: revoke the silo and invite it again.",
            )
        silo.state, silo.confirmed_by, silo.confirmed_at = SiloState.ACTIVE, user, timezone.now()
        silo.token_hash, silo.token_expires_at = "", None
        silo.save()
        act.record(refs={"key": silo.keyid}, data={"change": "confirmed", "org": silo.organisation.slug})
        events.publish(silo.name)
    return silo


def silo_revoke(*, actor: Actor, silo: Silo, reason: str) -> Silo:
    """End a silo's key at once: no request of it is answered any more. `reason` is kept outside the leaf."""
    with acting(type="key.revoked", actor=actor, subject=Subject("silo", silo.name)) as act:
        silo = Silo.objects.select_for_update().get(pk=silo.pk)
        if silo.state == SiloState.REVOKED:
            raise Refused("OUT_OF_STAGE", "This silo's key is revoked already.")
        if not reason.strip():
            raise Refused("REASON", "Say why the key is revoked; an auditor will ask.")
        silo.state, silo.revoked_at, silo.token_hash = SiloState.REVOKED, timezone.now(), ""
        silo.save()
        refs = {"key": silo.keyid} if silo.keyid else {}
        act.record(refs=refs, private={"reason": reason.strip()})
        events.publish(silo.name)
    return silo


def silo_rotate(*, silo: Silo, envelope: Envelope) -> Silo:
    """The silo's key is the one that its present key vouches for; the old one is refused from now on.

    The same again, signed by the new key (an answer was lost), changes nothing. At once, without an overlap: a study names
    the keys of those who take part, so the new key signs no message of a running one and two valid keys would help nobody.
    Refused: a statement that both keys did not sign, of another silo or key, a key that was used before, and while the
    silo takes part in a round (ROUND_OPEN).
    """
    with acting(
        type="key.rotated", actor=silo_actor(silo.name, silo.organisation.slug), subject=Subject("silo", silo.name)
    ) as act:
        row = Silo.objects.select_for_update().get(pk=silo.pk)
        try:
            rotation = verify_rotation(envelope)
        except RotationError as error:
            raise Refused("BAD_MESSAGE", f"The rotation does not hold: {error}") from error
        before, after = keyid(rotation.before), keyid(rotation.after)
        # Under the lock: the key that signed the request may have been followed, or revoked, since it was looked up.
        if rotation.silo != row.name or row.state != SiloState.ACTIVE or silo.keyid != row.keyid:
            raise Refused("OUT_OF_STAGE", "This is not the present key of this silo.")
        if row.keyid == after and KeyRotation.objects.filter(silo=row, before=before, after=after).exists():
            return row
        if row.keyid != before:
            raise Refused("OUT_OF_STAGE", "The statement does not begin with the present key of this silo.")
        if KeyRotation.objects.filter(Q(before=after) | Q(before=before) | Q(after=after)).exists():
            raise Refused("KEY_TAKEN", "A key that was used before does not return; make a new one.")
        signals.key_changing.send(sender=Silo, silo=row)
        row.public_key, row.keyid = rotation.after, after
        try:
            with transaction.atomic():
                row.save(update_fields=("public_key", "keyid"))
                KeyRotation.objects.create(silo=row, before=before, after=after, envelope=envelope.as_dict())
        except IntegrityError as error:
            raise Refused("KEY_TAKEN", "Another silo has this key; every silo makes its own.") from error
        act.record(refs={"before": before, "after": after, "statement": envelope.digest})
        events.publish(row.name)
    return row


def token_hash(token: str) -> str:
    """SHA-256 of a token, hex. Tokens are random (192 bits), so no slow hash is needed."""
    return hashlib.sha256(b"consilium/enrol/v1\n" + token.encode()).hexdigest()


def _take_key(silo: Silo, request: EnrolRequest, number: str, act: Act) -> None:
    if KeyRotation.objects.filter(before=number).exists():
        raise Refused("KEY_TAKEN", "Another key followed this one; every silo makes a new one.")
    trust = read_trust(request.trust)
    silo.public_key, silo.keyid, silo.state = request.public, number, SiloState.PENDING
    silo.trust, silo.enrolled_at = request.trust, timezone.now()
    silo.log_vkey, silo.witness_vkey, silo.version = request.log_vkey, request.witness_vkey, request.version
    try:
        with transaction.atomic():
            silo.save()
    except IntegrityError as error:
        raise Refused("KEY_TAKEN", "Another silo has this key; every silo makes its own.") from error
    data: dict[str, Any] = {"change": "received", "log": silo.log_vkey, "version": silo.version}
    if silo.witness_vkey:
        data["witness"] = silo.witness_vkey
    act.record(
        actor=silo_actor(silo.name, silo.organisation.slug),
        refs={"key": number, "trust": trust.digest},
        data=data,
    )
