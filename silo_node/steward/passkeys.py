"""Passkeys on the silo's own page: what a browser is asked for, and what comes of its answer.

    registration:  options, state = registration_options(page, trust, person)
                   entry = register(page, state, response)               for a proposal of the next trust.json
    a decision:    payload = approvals.draft(node, proposal, "approve", signer=keyid, ...)
                   options = assertion_options(key, payload)
                   envelope = approve(key, payload, response)            then approvals.keep, approvals.send
    a policy, a resume, a draft of trust.json: the same with their own `payload_type`, then approvals.keep_policy,
                   resumes.keep, trust_changes.add_signature

Each answer is checked twice, by the fido2 library and by `protocol.passkeys`, which auditors use and which knows no fido2.
Options and answers are WebAuthn's JSON forms (`PublicKeyCredential.parse...OptionsFromJSON`, `credential.toJSON()`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from protocol.approval import APPROVAL_TYPE, Trust, utc_text
from protocol.canonical import b64
from protocol.passkeys import Assertion, Passkey, challenge
from protocol.signing import Envelope, SignatureError, pae, verify_envelope
from protocol.trust import STEWARD, TrustedKey
from silo_node.errors import UsageError

if TYPE_CHECKING:
    from fido2.server import Fido2Server

PASSKEY_DAYS: Final = 730
"""How long a new passkey speaks for the hospital."""
_ES256, _EDDSA = -7, -8


@dataclass(frozen=True)
class Page:
    """The page on which passkeys are used.

    origin: as the browser writes it: https://NAME[:PORT], or http://localhost[:PORT]. An address in numbers has no
    passkeys. served_by: "portal" where the portal serves it; decisions made there say so.
    """

    origin: str
    served_by: Literal["silo", "portal"] = "silo"

    @property
    def rp_id(self) -> str:
        """The name that a passkey is bound to: the page's host."""
        return urlsplit(self.origin).hostname or ""


def registration_options(page: Page, trust: Trust, person: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the browser is given to make a passkey for `person`, and the state for `register`.

    The state is kept by the server, for one answer. Raises: UsageError for a page that can't have passkeys.
    """
    person = person.strip()
    if not person:
        raise UsageError("name the person whom the passkey is for")
    there = [key.passkey.credential for key in trust.keys.values() if key.passkey is not None]
    options, state = _server(page.rp_id, page.origin).register_begin(
        {"id": sha256(person.encode()).digest(), "name": person, "displayName": person},  # type: ignore[arg-type]
        credentials=_descriptors(there),
        user_verification=_required(),
    )
    return dict(options)["publicKey"], {**state, "person": person}


def register(
    page: Page, state: Mapping[str, Any], response: Mapping[str, Any], *, now: datetime | None = None
) -> tuple[str, dict[str, Any]]:
    """The (keyid, entry) for the next trust.json of the passkey that the browser made.

    It counts for nothing until the stewards have signed a trust.json that holds it (`silo trust`).
    Raises: UsageError where the answer does not verify.
    """
    try:
        if _registration(response).response.client_data.cross_origin is not False:
            raise ValueError("it was made inside another page")
        found = _server(page.rp_id, page.origin).register_complete(
            {name: state[name] for name in ("challenge", "user_verification")}, response
        )
        if found.credential_data is None:
            raise ValueError("there is no key in it")
        alg, public = _plain(dict(found.credential_data.public_key))
        passkey = Passkey(alg, public, found.credential_data.credential_id, page.rp_id, page.origin)
    except (ValueError, TypeError, KeyError, IndexError, SignatureError) as error:
        raise UsageError(f"the passkey can't be taken: {error}", "PASSKEY_NOT_VALID") from None
    until = (now or datetime.now(UTC)) + timedelta(days=PASSKEY_DAYS)
    return passkey.keyid, {
        "kind": "passkey",
        "alg": alg,
        "public": b64(public),
        "credential": b64(passkey.credential),
        "rp_id": passkey.rp_id,
        "origin": passkey.origin,
        "page": page.served_by,
        "role": STEWARD,
        "person": state["person"],
        "not_after": utc_text(until),
    }


def of_person(trust: Trust, person: str, origin: str, now: datetime | None = None) -> dict[str, TrustedKey]:
    """The passkeys of a person that are valid now and belong to the page `origin`, by keyid."""
    now = now or datetime.now(UTC)
    return {
        name: key
        for name, key in trust.keys.items()
        if key.passkey is not None and key.person == person and key.passkey.origin == origin and now < key.not_after
    }


def assertion_options(key: TrustedKey, payload: bytes, *, payload_type: str = APPROVAL_TYPE) -> dict[str, Any]:
    """What the browser is given to sign exactly `payload` with this passkey: the challenge is SHA-256 of its PAE."""
    passkey = _passkey(key)
    options, _ = _server(passkey.rp_id, passkey.origin).authenticate_begin(
        credentials=_descriptors([passkey.credential]),
        user_verification=_required(),
        challenge=challenge(pae(payload_type, payload)),
    )
    found: dict[str, Any] = dict(options)["publicKey"]
    return found


def approve(
    key: TrustedKey, payload: bytes, response: Mapping[str, Any], *, payload_type: str = APPROVAL_TYPE
) -> Envelope:
    """`payload` signed by this passkey.

    Verification: 1. by the fido2 library, user verification required; 2. as everybody else will, offline.
    Raises: UsageError where the answer does not verify: nothing is signed then.
    """
    passkey = _passkey(key)
    message = pae(payload_type, payload)
    try:
        # 1
        answer = _authentication(response)
        _server(passkey.rp_id, passkey.origin).authenticate_complete(
            {"challenge": _websafe(challenge(message)), "user_verification": "required"},
            [_credential(passkey)],
            answer,
        )
        # 2
        said = answer.response
        envelope = Envelope(
            payload_type,
            payload,
            ((passkey.keyid, bytes(said.signature)),),
            ((passkey.keyid, Assertion(bytes(said.authenticator_data), bytes(said.client_data))),),
        )
        verify_envelope(envelope, payload_type=payload_type, keys={passkey.keyid: passkey})
        return Envelope.from_dict(envelope.as_dict())
    except (ValueError, TypeError, KeyError, IndexError, SignatureError) as error:
        raise UsageError(f"the passkey's signature can't be taken: {error}", "PASSKEY_NOT_VALID") from None


def _passkey(key: TrustedKey) -> Passkey:
    if key.passkey is None:
        raise UsageError("this key is no passkey: sign with `silo approve`")
    return key.passkey


def _server(rp_id: str, origin: str) -> Fido2Server:
    from fido2.server import Fido2Server
    from fido2.webauthn import (
        AttestationConveyancePreference,
        PublicKeyCredentialParameters,
        PublicKeyCredentialRpEntity,
        PublicKeyCredentialType,
    )

    if not _names_a_page(rp_id, origin):
        raise UsageError(
            "passkeys need a page with a name: open it as http://localhost:PORT, or set a certificate for its https name"
        )
    server = Fido2Server(
        PublicKeyCredentialRpEntity(name="Consilium silo", id=rp_id),
        attestation=AttestationConveyancePreference.NONE,
        verify_origin=lambda told: told == origin,
    )
    server.allowed_algorithms = [
        PublicKeyCredentialParameters(type=PublicKeyCredentialType.PUBLIC_KEY, alg=alg) for alg in (_ES256, _EDDSA)
    ]
    return server


def _names_a_page(rp_id: str, origin: str) -> bool:
    try:
        Passkey("EdDSA", bytes(32), b"-", rp_id, origin)
    except ValueError:
        return False
    return True


def _required() -> Any:
    from fido2.webauthn import UserVerificationRequirement

    return UserVerificationRequirement.REQUIRED


def _descriptors(credentials: list[bytes]) -> Any:
    from fido2.webauthn import PublicKeyCredentialDescriptor, PublicKeyCredentialType

    return [PublicKeyCredentialDescriptor(type=PublicKeyCredentialType.PUBLIC_KEY, id=each) for each in credentials]


def _authentication(response: Mapping[str, Any]) -> Any:
    from fido2.webauthn import AuthenticationResponse

    return AuthenticationResponse.from_dict(response)


def _registration(response: Mapping[str, Any]) -> Any:
    from fido2.webauthn import RegistrationResponse

    return RegistrationResponse.from_dict(response)


def _credential(passkey: Passkey) -> Any:
    from fido2.cose import CoseKey
    from fido2.webauthn import Aaguid, AttestedCredentialData

    public = passkey.public
    cose: dict[int, Any] = (
        {1: 1, 3: _EDDSA, -1: 6, -2: public}
        if passkey.alg == "EdDSA"
        else {1: 2, 3: _ES256, -1: 1, -2: public[1:33], -3: public[33:]}
    )
    return AttestedCredentialData.create(Aaguid.NONE, passkey.credential, CoseKey.parse(cose))


def _websafe(data: bytes) -> str:
    from fido2.utils import websafe_encode

    return websafe_encode(data)


def _plain(cose: Mapping[int, Any]) -> tuple[Literal["ES256", "EdDSA"], bytes]:
    """{alg, public} of a COSE key. Raises: ValueError for other kinds and other shapes."""
    if set(cose) == {1, 3, -1, -2} and (cose[1], cose[3], cose[-1]) == (1, _EDDSA, 6):
        return "EdDSA", bytes(cose[-2])
    if set(cose) == {1, 3, -1, -2, -3} and (cose[1], cose[3], cose[-1]) == (2, _ES256, 1):
        x, y = bytes(cose[-2]), bytes(cose[-3])
        if len(x) == len(y) == 32:
            return "ES256", b"\x04" + x + y
    raise ValueError("the passkey's key is neither ES256 nor EdDSA")
