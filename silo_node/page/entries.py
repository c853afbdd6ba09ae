"""What the page and `silo page user` note in the silo's own audit log: who came in, who was kept out, who may.

The log holds an account's random id; the name that somebody types, and the person, stay outside as erasable payload.

| type         | when                                                                                                    |
|--------------|---------------------------------------------------------------------------------------------------------|
| auth.login   | a session begins                                                                                        |
| auth.logout  | somebody signs out                                                                                      |
| auth.failed  | wrong passwords are followed by a pause of this account, or (subject: page) by the slow-down of all; not |
|              | each try: whoever guesses would fill the disk. A name without an account is noted nowhere: it may be a   |
|              | password that went into the wrong field.                                                                 |
| role.changed | an account is added or removed, or has a new password (data.change)                                      |
"""

from __future__ import annotations

from silo_node.config import Config
from silo_node.node import Node
from silo_node.page.accounts import Accounts, Event
from silo_node.pin import Pin


def opened(config: Config) -> Accounts:
    """The silo's accounts, whose events become entries of its log."""
    return Accounts(config.folder, note=lambda event: record(config, event))


def record(config: Config, event: Event) -> None:
    """On disk when this returns. Raises: DiskFull, UsageError where the silo has no keys: then what it is about is not done."""
    node = Node(config, Pin.load(config) if config.pin.exists() else None)
    user = event.user
    try:
        organisation = node.pin.organisation if node.pin is not None else ""
        by = event.by
        node.evidence.record(
            event.kind,
            subject=("user", user.id, None) if user is not None else ("page", config.name, None),
            outcome="denied" if event.kind == "auth.failed" else "success",
            reasons=["SIGN_IN_PAUSED" if user is not None else "SIGN_IN_SLOWED"] if event.kind == "auth.failed" else [],
            data={"change": event.change, "role": user.role} if event.change and user is not None else {},
            private={"name": user.name, "person": user.person} if user is not None else None,
            actor=None if by is None else {"id": by.id, "role": by.role, "org": organisation, "auth": "password"},
        )
    finally:
        node.close()
