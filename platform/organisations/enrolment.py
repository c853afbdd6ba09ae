"""What a silo sends to enrol, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from portal.problems import Refused
from protocol.canonical import unb64
from protocol.transparency.note import NoteError, parse_vkey

_FIELDS = {"token", "public", "trust", "log_vkey", "witness_vkey", "version"}
_VERSION = re.compile(r"[0-9A-Za-z.+\-]{1,40}")


@dataclass(frozen=True)
class EnrolRequest:
    """token: one-time. public: Ed25519, 32 bytes. trust: DSSE envelope as a dict. vkeys: of the silo's log and witness."""

    token: str
    public: bytes
    trust: dict[str, Any]
    log_vkey: str
    witness_vkey: str
    version: str

    def __repr__(self) -> str:
        return f"EnrolRequest(version={self.version!r})"


def parse_enrol(body: Mapping[str, Any]) -> EnrolRequest:
    """The request's body. Raises Refused(BAD_MESSAGE) naming the field."""
    if set(body) != _FIELDS:
        raise Refused("BAD_MESSAGE", f"The body must have exactly these members: {', '.join(sorted(_FIELDS))}.")
    for name in _FIELDS - {"trust"}:
        if not isinstance(body[name], str):
            raise Refused("BAD_MESSAGE", f"{name} must be text.")
    if not isinstance(body["trust"], dict):
        raise Refused("BAD_MESSAGE", "trust must be a signed envelope.")
    try:
        public = unb64(body["public"])
    except ValueError as error:
        raise Refused("BAD_MESSAGE", "public must be base64.") from error
    if len(public) != 32:
        raise Refused("BAD_MESSAGE", "public must be an Ed25519 key of 32 bytes.")
    for name, kind in (("log_vkey", 1), ("witness_vkey", 4)):
        try:
            if parse_vkey(body[name]).kind != kind:
                raise Refused("BAD_MESSAGE", f"{name} is a key of another kind.")
        except NoteError as error:
            raise Refused("BAD_MESSAGE", f"{name} is no verifier key: {error}") from error
    if len(body["log_vkey"]) > 300 or len(body["witness_vkey"]) > 300:
        raise Refused("BAD_MESSAGE", "A verifier key may have at most 300 characters.")
    if not _VERSION.fullmatch(body["version"]):
        raise Refused("BAD_MESSAGE", "version must be a version number.")
    return EnrolRequest(
        token=body["token"],
        public=public,
        trust=dict(body["trust"]),
        log_vkey=body["log_vkey"],
        witness_vkey=body["witness_vkey"],
        version=body["version"],
    )
