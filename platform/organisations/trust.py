"""A hospital's trust.json: which people's keys speak for it. The portal keeps it as it came and checks with it."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from organisations.models import Silo
from portal.problems import Refused
from protocol.signing import Envelope, SignatureError
from protocol.trust import Trust, TrustError, open_trust


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
