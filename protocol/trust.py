"""trust.json: which people's keys speak for a hospital, and how many of them must agree.

A DSSE envelope of type TRUST_TYPE over canonical JSON:

    {"schema": "consilium/trust/1", "version": 1, "roles": {"steward": 1},
     "keys": {keyid: {"kind": "ed25519", "public": base64, "role": "steward", "person": name, "not_after": time},
              keyid: {"kind": "passkey", "alg": "ES256" | "EdDSA", "public": base64, "credential": base64,
                      "rp_id": name, "origin": address, "page": "silo" | "portal", "role", "person", "not_after"}}}

What counts is people, not keys: two keys of one person are one voice. Version n+1 is signed by the thresholds of both n
and n+1, so no single stolen key can change who decides.

page says who serves the page on which a passkey is used. Where it is the portal, the hospital has lowered the bar for
itself: such a key can decide about a study, and the decision says so wherever it is shown; it never counts for
trust.json, a policy or a resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from protocol.canonical import CanonicalError, b64, decode, digest, encode, unb64
from protocol.data_use.document import KeyId, Time, parse_time
from protocol.manifest_fields import Line, Part, PublicKey
from protocol.passkeys import Algorithm, Passkey
from protocol.signing import (
    BadSignature,
    Envelope,
    SignatureError,
    SigningKey,
    keyid,
    sign_envelope,
    verify_envelope,
)

TRUST_TYPE: Final = "application/vnd.consilium.trust+json"
SCHEMA: Final = "consilium/trust/1"
STEWARD: Final = "steward"
MAX_BYTES: Final = 262_144


class ApprovalError(Exception):
    """A refusal: `code` for machines, `sentence` for people (it says what to do where that is not plain)."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class TrustError(ApprovalError):
    """A trust.json that cannot be used; code TRUST."""

    def __init__(self, sentence: str) -> None:
        super().__init__("TRUST", sentence)


class _Person(Part):
    role: Literal["steward"]
    person: Annotated[Line, Field(min_length=1, max_length=200)]
    not_after: Time


class _Key(_Person):
    kind: Literal["ed25519"]
    public: PublicKey

    def trusted(self) -> TrustedKey:
        return TrustedKey(unb64(self.public), self.role, self.person, parse_time(self.not_after))


class _Passkey(_Person):
    kind: Literal["passkey"]
    alg: Algorithm
    public: str = Field(max_length=100)
    credential: str = Field(max_length=2000)
    rp_id: str = Field(max_length=253)
    origin: str = Field(max_length=300)
    page: Literal["silo", "portal"]

    def trusted(self) -> TrustedKey:
        try:
            public, credential = unb64(self.public), unb64(self.credential)
        except CanonicalError as error:
            raise ValueError(f"public and credential must be base64 ({error})") from None
        passkey = Passkey(self.alg, public, credential, self.rp_id, self.origin)
        return TrustedKey(
            public, self.role, self.person, parse_time(self.not_after), passkey, on_portal_page=self.page == "portal"
        )


class _Document(Part):
    schema_: Literal["consilium/trust/1"] = Field(alias="schema")
    version: int = Field(ge=1)
    keys: dict[KeyId, Annotated[_Key | _Passkey, Field(discriminator="kind")]] = Field(min_length=1, max_length=64)
    roles: dict[Literal["steward"], Annotated[int, Field(ge=1)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_keys(self) -> _Document:
        for name, key in self.keys.items():
            try:
                trusted = key.trusted()
            except ValueError as error:
                raise ValueError(f"keys.{name}: {error}") from None
            if trusted.keyid != name:
                raise ValueError(f"keys.{name}: is another key than its name says")
        for role, needed in self.roles.items():
            people = {key.person for key in self.keys.values() if key.role == role}
            if len(people) < needed:
                raise ValueError(f"roles.{role}: {needed} must agree, but only {len(people)} have a key")
        return self


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A person's key: its public bytes, the role it speaks for, and until when (UTC).

    passkey: None for a plain Ed25519 key (32 public bytes). on_portal_page: a passkey that is used on a page which the
    portal serves, so that the portal decides what the person sees.
    """

    public: bytes
    role: str
    person: str
    not_after: datetime
    passkey: Passkey | None = None
    on_portal_page: bool = False

    @property
    def keyid(self) -> str:
        """The key's name in trust.json and in signatures."""
        return keyid(self.public) if self.passkey is None else self.passkey.keyid

    @property
    def verifier(self) -> bytes | Passkey:
        """What `verify_envelope` takes."""
        return self.public if self.passkey is None else self.passkey


@dataclass(frozen=True)
class Trust:
    """A verified trust.json: its version and digest, keys by keyid, and how many people a role needs."""

    version: int
    digest: str
    keys: Mapping[str, TrustedKey]
    roles: Mapping[str, int]

    def publics(
        self, role: str = STEWARD, now: datetime | None = None, *, on_portal_page: bool = False
    ) -> dict[str, bytes | Passkey]:
        """What verifies a role's signatures, by keyid; with `now` only the keys that are valid then.

        Parameters: on_portal_page: also the passkeys that are used on a page of the portal.
        """
        return {
            name: key.verifier
            for name, key in self.keys.items()
            if key.role == role and (now is None or now < key.not_after) and (on_portal_page or not key.on_portal_page)
        }

    def people(self, names: frozenset[str]) -> frozenset[str]:
        """Whose keys these are: two keys of one person are one."""
        return frozenset(self.keys[name].person for name in names)

    def verify(
        self, envelope: Envelope, *, payload_type: str, role: str = STEWARD, now: datetime | None = None
    ) -> frozenset[str]:
        """Who of `role` signed the envelope, at least as many people as the role needs.

        Parameters: now: keys that are over by then do not count; None for an envelope that was accepted in its time.
        Returns: keyids. Raises: SignatureError where a signature fails, or too few people signed.
        """
        names = verify_envelope(envelope, payload_type=payload_type, keys=self.publics(role, now))
        people = len(self.people(names))
        if people < self.roles[role]:
            raise BadSignature(f"signed by {people} of the {self.roles[role]} people that the hospital asks for")
        return names


def open_trust(envelope: Envelope, previous: Trust | None, *, now: datetime | None = None) -> Trust:
    """The trust.json in `envelope`, verified.

    Verification:
      1. The payload is a trust.json, every key filed under its own keyid, enough people for each threshold.
      2. Its own stewards signed it, as many people as it asks for.
      3. It follows `previous`: one version higher, and signed by as many people as `previous` asks for, with their keys
      there.

    Parameters: previous: the version in force; None for the first that is seen, whose fingerprints people must compare.
    now: keys that are over by then do not count; None when reading one that was accepted before.
    Raises: TrustError, SignatureError.
    """
    # 1
    trust = parse_trust(envelope.payload)
    # 2
    trust.verify(envelope, payload_type=TRUST_TYPE, now=now)
    # 3
    if previous is not None:
        if trust.version != previous.version + 1:
            raise TrustError(
                f"This trust.json has version {trust.version}; after version {previous.version} only version "
                f"{previous.version + 1} is taken."
            )
        try:
            previous.verify(envelope, payload_type=TRUST_TYPE, now=now)
        except SignatureError as error:
            raise TrustError(
                f"The stewards of version {previous.version} have not agreed to this change: {error}"
            ) from error
    return trust


def freeze_trust(document: Mapping[str, Any]) -> bytes:
    """The canonical bytes of a trust.json, checked. Raises TrustError."""
    try:
        data = encode(dict(document))
    except CanonicalError as error:
        raise TrustError(f"The trust.json has no canonical form: {error}.") from None
    parse_trust(data)
    return data


def first_trust(key: SigningKey, *, person: str, not_after: str) -> Envelope:
    """Version 1 with one steward. Parameters: not_after: RFC 3339 in UTC, until when the key speaks."""
    entry = {"kind": "ed25519", "public": b64(key.public), "role": STEWARD, "person": person, "not_after": not_after}
    document = {"schema": SCHEMA, "version": 1, "keys": {key.keyid: entry}, "roles": {STEWARD: 1}}
    return sign_envelope(TRUST_TYPE, freeze_trust(document), key)


def add_signature(envelope: Envelope, key: SigningKey) -> Envelope:
    """The envelope with one more signature over the same bytes. Raises MalformedEnvelope where this key has signed."""
    return envelope.joined(sign_envelope(envelope.payload_type, envelope.payload, key))


def parse_trust(payload: bytes) -> Trust:
    """What a trust.json says, whoever signed it: `open_trust` is for what is to count. Raises: TrustError."""
    if len(payload) > MAX_BYTES:
        raise TrustError(f"A trust.json is {MAX_BYTES} bytes at most, this one has {len(payload)}.")
    try:
        decode(payload)
        document = _Document.model_validate_json(payload)
    except CanonicalError as error:
        raise TrustError(f"The trust.json is not canonical JSON: {error}.") from None
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(step) for step in problem['loc']) or 'trust'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise TrustError(f"The trust.json does not fit {SCHEMA}: {'; '.join(problems[:5])}.") from None
    keys = {name: key.trusted() for name, key in document.keys.items()}
    return Trust(
        document.version,
        digest(payload),
        MappingProxyType(keys),
        MappingProxyType({str(role): needed for role, needed in document.roles.items()}),
    )
