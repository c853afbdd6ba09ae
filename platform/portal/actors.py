"""Who acts, and on what: the two small values that every service takes and every evidence record names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Actor:
    """Who acts. No field ever holds a person's name.

    id: the random id of a user, `silo:<name>`, a key id, or `portal`. role: admin, steward, researcher, it, auditor, silo
    or system. org: the organisation's slug, or `network`. auth: how the actor proved it (password, password+totp,
    signature, none).
    """

    id: str
    role: str
    org: str = "network"
    auth: str = "none"


@dataclass(frozen=True)
class Subject:
    """What an act is about. kind: study, silo, policy, organisation, user, log, .. ; version: e.g. a manifest's digest."""

    kind: str
    id: str
    version: str | None = None


SYSTEM = Actor(id="portal", role="system")
ANONYMOUS = Actor(id="anonymous", role="none")


def silo_actor(name: str, organisation: str) -> Actor:
    """A silo that signed its request."""
    return Actor(id=f"silo:{name}", role="silo", org=organisation, auth="signature")
