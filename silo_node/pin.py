"""What a silo pinned at enrolment, FOLDER/portal.json: whose answers it believes, and which audit log it holds to."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from protocol.canonical import CanonicalError, b64, unb64
from protocol.signing import fingerprint
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.files import read_json, write_json


@dataclass(frozen=True)
class Pin:
    """silo, organisation: as the portal knows them. answer_public: 32 bytes. log_vkey: the portal log's verifier key.
    enrolled: when it was first saved, RFC 3339; empty before that, and where an older version saved it."""

    silo: str
    organisation: str
    portal_name: str
    answer_public: bytes
    log_vkey: str
    enrolled: str = ""

    @property
    def fingerprint(self) -> str:
        """Of the portal's answer key, for a person to compare."""
        return fingerprint(self.answer_public)

    @classmethod
    def from_answer(cls, value: Any) -> Pin:
        """From the portal's answer to an enrolment. Raises: UsageError."""
        try:
            portal = value["portal"]
            pin = cls(
                silo=str(value["silo"]),
                organisation=str(value["organisation"]),
                portal_name=str(portal["name"]),
                answer_public=unb64(portal["answer_public"]),
                log_vkey=str(portal["log_vkey"]),
                enrolled=str(value.get("enrolled", "")),
            )
        except (KeyError, TypeError, AttributeError, CanonicalError) as error:
            raise UsageError(
                f"the portal's keys can't be read ({type(error).__name__}): is it of another version?"
            ) from None
        if len(pin.answer_public) != 32:
            raise UsageError("the portal's answer key must be 32 bytes")
        return pin

    def save(self, config: Config) -> None:
        """Write FOLDER/portal.json."""
        write_json(
            config.pin,
            {
                "silo": self.silo,
                "organisation": self.organisation,
                "enrolled": self.enrolled or datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "portal": {
                    "name": self.portal_name,
                    "answer_public": b64(self.answer_public),
                    "log_vkey": self.log_vkey,
                },
            },
        )

    @classmethod
    def load(cls, config: Config) -> Pin:
        """Raises: UsageError, `NOT_ENROLLED` where the silo is not enrolled."""
        value = read_json(config.pin)
        if value is None:
            raise UsageError(
                f"this silo is not enrolled: `silo enrol {shlex.quote(str(config.folder))} --token ...` (the "
                "portal's admin has the token)",
                "NOT_ENROLLED",
            )
        return cls.from_answer(value)
