"""A hospital's trust.json: which people's keys speak for it. The portal keeps it as it came and checks with it."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from evidence.services import acting
from organisations.models import Silo
from portal.actors import Subject, silo_actor
from portal.problems import Refused
from protocol.signing import Envelope, SignatureError
from protocol.trust import STEWARD, Trust, TrustError, open_trust

MAX_VERSIONS = 64


def read_trust(value: dict[str, Any]) -> Trust:
    """The trust.json that comes with an enrolment, signed by its own stewards with keys that are valid now.

    Whether these are the right people, the portal can't know: the admin and the hospital compare fingerprints.
    Raises Refused(TRUST).
    """
    try:
        return open_trust(Envelope.from_dict(value), None, now=timezone.now())
    except (TrustError, SignatureError) as error:
        raise Refused("TRUST", f"The hospital's trust.json does not verify: {error}", status=422) from error


def trust_of(silo: Silo) -> Trust:
    """The registered trust of an enrolled silo. Raises Refused(TRUST) where there is none."""
    if not silo.trust:
        raise Refused("TRUST", "This silo has no trust.json registered; enrol it again.")
    try:
        return open_trust(Envelope.from_dict(silo.trust), None)
    except (TrustError, SignatureError) as error:
        raise Refused("TRUST", f"The registered trust.json does not verify any more: {error}") from error


def trust_receive(*, silo: Silo, versions: list[Any]) -> Trust:
    """Take the hospital's later versions of its trust.json, oldest first; those that are known already are passed over.

    Verification: each follows the one before it by one, and is signed by the thresholds of both (protocol.trust).
    Refused: TRUST, BAD_MESSAGE; a gap, or another document under a version that is registered (VERSION).
    """
    if not 1 <= len(versions) <= MAX_VERSIONS:
        raise Refused("BAD_MESSAGE", f"versions must be a list of 1 to {MAX_VERSIONS} signed envelopes.")
    actor = silo_actor(silo.name, silo.organisation.slug)
    with acting(type="role.changed", actor=actor, subject=Subject("silo", silo.name)) as act:
        silo = Silo.objects.select_for_update().select_related("organisation").get(pk=silo.pk)
        trust = trust_of(silo)
        for value in versions:
            try:
                envelope = Envelope.from_dict(value)
                stated = open_trust(envelope, None)
                if stated.version <= trust.version:
                    if stated.version == trust.version and stated.digest != trust.digest:
                        raise Refused("VERSION", f"Another trust.json is registered as version {trust.version}.")
                    continue
                after = open_trust(envelope, trust, now=timezone.now())
            except (TrustError, SignatureError) as error:
                raise Refused("TRUST", f"The hospital's trust.json does not verify: {error}", status=422) from error
            act.record(
                refs={"before": trust.digest, "trust": after.digest},
                data={
                    "change": "trust",
                    "version": after.version,
                    "needed": after.roles[STEWARD],
                    "added": sorted(after.keys.keys() - trust.keys.keys()),
                    "removed": sorted(trust.keys.keys() - after.keys.keys()),
                    "on_portal_page": sorted(name for name, key in after.keys.items() if key.on_portal_page),
                },
            )
            silo.trust, trust = envelope.as_dict(), after
        silo.save(update_fields=["trust"])
    return trust
