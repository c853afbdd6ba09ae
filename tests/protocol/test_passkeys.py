"""Passkeys as stewards' keys: each part of an assertion is checked, without the library that made it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from protocol.approval import ApprovalLimits, check_approvals, draft_statement, open_statement, sign_statement
from protocol.canonical import b64, digest, encode
from protocol.passkeys import (
    MAX_AUTHENTICATOR_DATA,
    MAX_CLIENT_DATA,
    Assertion,
    Passkey,
    challenge_text,
    cose_key,
)
from protocol.signing import (
    BadSignature,
    Envelope,
    MalformedEnvelope,
    SignatureError,
    SigningKey,
    UnknownKey,
    pae,
    sign_envelope,
    verify_envelope,
)
from protocol.statement import APPROVAL_TYPE
from protocol.trust import TRUST_TYPE, Trust, TrustError, add_signature, freeze_trust, open_trust
from tests.protocol.software_passkey import ATTESTED, PRESENT, VERIFIED, SoftwarePasskey, web64

ANNA, BEN = (SigningKey.from_bytes(bytes([number]) * 32) for number in (1, 3))
LATER = "2028-01-01T00:00:00Z"
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
DIGEST = digest(b"whatever is decided about")
TYPE = "application/vnd.consilium.test+json"
MESSAGE = pae(TYPE, b"{}")
EXTENDED = 128


def entry(key: SigningKey, person: str) -> dict[str, Any]:
    return {"kind": "ed25519", "public": b64(key.public), "role": "steward", "person": person, "not_after": LATER}


def document(version: int, needed: int, *people: tuple[SigningKey, str]) -> dict[str, Any]:
    keys = {key.keyid: entry(key, person) for key, person in people}
    return {"schema": "consilium/trust/1", "version": version, "keys": keys, "roles": {"steward": needed}}


def both() -> list[SoftwarePasskey]:
    return [SoftwarePasskey(), SoftwarePasskey(alg="EdDSA")]


def said(key: SoftwarePasskey, client: dict[str, Any] | None = None, **data: Any) -> tuple[bytes, Assertion]:
    """A signature that is good in itself, over an assertion with these changes."""
    told = key.client_data(challenge_text(MESSAGE), **(client or {}))
    assertion = Assertion(key.authenticator_data(**data), told)
    return key.sign(assertion.authenticator_data, told), assertion


@pytest.mark.parametrize("key", both(), ids=lambda key: key.alg)
def test_an_assertion_over_the_message_verifies(key: SoftwarePasskey) -> None:
    key.passkey.verify(*said(key), MESSAGE)
    key.passkey.verify(*said(key, {"other_keys_can_be_added_here": "..."}), MESSAGE)
    key.passkey.verify(*said(key, flags=PRESENT | VERIFIED | EXTENDED, more=b"\xa0"), MESSAGE)


@pytest.mark.parametrize("key", both(), ids=lambda key: key.alg)
@pytest.mark.parametrize(
    ("client", "data", "problem"),
    [
        ({"type": "webauthn.create"}, {}, "not of a signature"),
        ({"challenge": challenge_text(b"another message")}, {}, "something else"),
        ({"challenge": challenge_text(MESSAGE) + "="}, {}, "something else"),
        ({"challenge": None}, {}, "something else"),
        ({"origin": "https://portal.example"}, {}, "another page"),
        ({"origin": "https://silo.example:8443"}, {}, "another page"),
        ({"origin": "https://silo.example/"}, {}, "another page"),
        ({"crossOrigin": True}, {}, "inside another page"),
        ({"crossOrigin": 0}, {}, "inside another page"),
        ({"topOrigin": "https://portal.example"}, {}, "inside another page"),
        ({}, {"rp_id": "portal.example"}, "another name"),
        ({}, {"flags": VERIFIED}, "without verifying"),
        ({}, {"flags": PRESENT}, "without verifying"),
        ({}, {"flags": 0}, "without verifying"),
        ({}, {"more": b"\0"}, "longer than their flags say"),
        (
            {},
            {"flags": PRESENT | VERIFIED | ATTESTED, "more": bytes(MAX_AUTHENTICATOR_DATA)},
            "authenticator data have",
        ),
        ({"padding": "x" * MAX_CLIENT_DATA}, {}, "client data have"),
    ],
)
def test_a_well_signed_assertion_that_says_something_else_is_refused(
    key: SoftwarePasskey, client: dict[str, Any], data: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadSignature, match=problem):
        key.passkey.verify(*said(key, client, **data), MESSAGE)


@pytest.mark.parametrize("key", both(), ids=lambda key: key.alg)
@pytest.mark.parametrize(
    "told",
    [
        lambda good: good[:-1] + b',"origin":"https://silo.example"}',
        lambda good: b"[]",
        lambda good: b"null",
        lambda good: b"",
        lambda good: b"\xff" + good,
        lambda good: b"\xef\xbb\xbf" + good,
        lambda good: b"[" * 4000,
    ],
)
def test_client_data_that_two_readers_could_read_differently_are_refused(key: SoftwarePasskey, told: Any) -> None:
    data = key.authenticator_data()
    changed = told(key.client_data(challenge_text(MESSAGE)))
    with pytest.raises(BadSignature, match="client data are not"):
        key.passkey.verify(key.sign(data, changed), Assertion(data, changed), MESSAGE)


@pytest.mark.parametrize("key", both(), ids=lambda key: key.alg)
def test_a_signature_over_other_bytes_or_of_another_length_is_refused(key: SoftwarePasskey) -> None:
    signature, good = said(key)
    other = SoftwarePasskey(8, key.alg)
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    for wrong in (
        flipped,
        signature[:-1],
        signature + b"\0",
        b"",
        other.sign(good.authenticator_data, good.client_data),
    ):
        with pytest.raises(BadSignature):
            key.passkey.verify(wrong, good, MESSAGE)
    counted = good.authenticator_data[:-1] + b"\1"  # only the signature covers the counter
    with pytest.raises(BadSignature):
        key.passkey.verify(signature, replace(good, authenticator_data=counted), MESSAGE)
    with pytest.raises(BadSignature, match="authenticator data have"):
        key.passkey.verify(signature, replace(good, authenticator_data=good.authenticator_data[:36]), MESSAGE)


def test_a_keyid_is_the_digest_of_the_cose_key() -> None:
    """RFC 9053 sections 2.1, 7.1, 7.2, in CTAP2's canonical form, written out."""
    point, edwards = both()
    x, y = point.public[1:33].hex(), point.public[33:].hex()
    spelled = f"a5 01 02 03 26 20 01 21 5820 {x} 22 5820 {y}".replace(" ", "")
    assert cose_key("ES256", point.public).hex() == spelled
    assert point.passkey.keyid == hashlib.sha256(bytes.fromhex(spelled)).hexdigest()
    assert cose_key("EdDSA", edwards.public).hex() == f"a4010103272006215820{edwards.public.hex()}"
    assert edwards.passkey.keyid != SigningKey.from_bytes(bytes([7]) * 32).keyid


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"alg": "RS256"}, "alg"),
        ({"public": bytes(65)}, "public"),
        ({"public": b"\x04" + bytes(64)}, "public: is no point"),
        ({"public": SoftwarePasskey().public[:-1]}, "public"),
        ({"alg": "EdDSA"}, "public"),
        ({"credential": b""}, "credential"),
        ({"credential": bytes(1024)}, "credential"),
        ({"rp_id": "127.0.0.1"}, "rp_id"),
        ({"rp_id": "Silo.example"}, "rp_id"),
        ({"rp_id": "example"}, "rp_id"),
        ({"rp_id": "other.example"}, "origin"),
        ({"rp_id": "ilo.example"}, "origin"),
        ({"origin": "http://silo.example"}, "origin"),
        ({"origin": "https://silo.example/"}, "origin"),
        ({"origin": "https://silo.example:0"}, "origin"),
        ({"origin": "https://me@silo.example"}, "origin"),
    ],
)
def test_a_passkey_of_another_form_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        replace(SoftwarePasskey().passkey, **changes)


def test_a_passkey_may_be_bound_to_a_domain_or_to_localhost() -> None:
    for origin, rp_id in (
        ("https://silo.clinic.example:8443", "clinic.example"),
        ("http://localhost:8765", "localhost"),
    ):
        key = SoftwarePasskey(origin=origin, rp_id=rp_id)
        key.passkey.verify(*said(key), MESSAGE)


def test_an_envelope_with_a_passkeys_signature_survives_json() -> None:
    key = SoftwarePasskey()
    envelope = add_signature(key.envelope(TYPE, b"{}"), ANNA)
    value = envelope.as_dict()
    assert [set(each) for each in value["signatures"]] == [
        {"keyid", "sig", "authenticator_data", "client_data"},
        {"keyid", "sig"},
    ]
    again = Envelope.from_dict(value)
    assert again == envelope
    known: dict[str, bytes | Passkey] = {key.passkey.keyid: key.passkey, ANNA.keyid: ANNA.public}
    assert verify_envelope(again, payload_type=TYPE, keys=known, threshold=2) == known.keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.pop("authenticator_data"),
        lambda item: item.pop("client_data"),
        lambda item: item.update(more=""),
        lambda item: item.update(client_data=1),
        lambda item: item.update(client_data="*"),
        lambda item: item.update(client_data="A" * 4 * MAX_CLIENT_DATA),
        lambda item: item.update(authenticator_data="A" * 4 * MAX_AUTHENTICATOR_DATA),
    ],
)
def test_an_assertion_of_another_form_is_refused(change: Any) -> None:
    value = SoftwarePasskey().envelope(TYPE, b"{}").as_dict()
    change(value["signatures"][0])
    with pytest.raises(MalformedEnvelope, match=r"signatures\[0\]"):
        Envelope.from_dict(value)


def test_a_passkey_signs_with_an_assertion_and_another_key_without() -> None:
    key = SoftwarePasskey()
    bare = replace(key.envelope(TYPE, b"{}"), assertions=())
    with pytest.raises(BadSignature, match="comes with"):
        verify_envelope(bare, payload_type=TYPE, keys={key.passkey.keyid: key.passkey})
    plain = sign_envelope(TYPE, b"{}", ANNA)
    dressed = replace(plain, assertions=((ANNA.keyid, key.envelope(TYPE, b"{}").assertions[0][1]),))
    with pytest.raises(BadSignature, match="no passkey"):
        verify_envelope(dressed, payload_type=TYPE, keys={ANNA.keyid: ANNA.public})
    with pytest.raises(ValueError, match="another key"):
        verify_envelope(
            key.envelope(TYPE, b"{}"), payload_type=TYPE, keys={key.passkey.keyid: SoftwarePasskey(9).passkey}
        )
    with pytest.raises(UnknownKey):
        verify_envelope(key.envelope(TYPE, b"{}"), payload_type=TYPE, keys={})


def test_signatures_over_other_bytes_are_not_joined() -> None:
    envelope = sign_envelope(TYPE, b"{}", ANNA)
    for other in (sign_envelope(TYPE, b"[]", BEN), sign_envelope(TYPE + "x", b"{}", BEN)):
        with pytest.raises(MalformedEnvelope, match="different things"):
            envelope.joined(other)
    with pytest.raises(MalformedEnvelope, match="signed the envelope already"):
        envelope.joined(envelope)


def trust_of(needed: int, *keys: SoftwarePasskey, portal: bool = False) -> Trust:
    """Anna with a key and these passkeys, Ben with a key."""
    content = document(1, needed, (ANNA, "Anna"), (BEN, "Ben"))
    page = "portal" if portal else "silo"
    content["keys"] |= {key.passkey.keyid: key.entry("Anna", page=page) for key in keys}
    return open_trust(add_signature(sign_envelope(TRUST_TYPE, freeze_trust(content), ANNA), BEN), None)


def decided(trust: Trust, signer: SigningKey | SoftwarePasskey, decision: str = "approve", **client: Any) -> Envelope:
    fields: dict[str, Any] = {
        "decision": decision,
        "reason": "",
        "silo": "site-1",
        "study": "st-1",
        "manifest": DIGEST,
        "policy": DIGEST,
        "match": DIGEST,
        "limits": ApprovalLimits(epsilon_micro=0, max_rounds=5, min_cohort=10),
        "not_before": NOW,
        "not_after": NOW + timedelta(days=30),
        "now": NOW,
    }
    if isinstance(signer, SigningKey):
        return sign_statement(signer, trust, **fields)
    return signer.envelope(APPROVAL_TYPE, draft_statement(signer.passkey.keyid, trust, **fields), **client)


def approved(trust: Trust, *envelopes: Envelope) -> Any:
    return check_approvals(
        envelopes, trust=trust, silo="site-1", study="st-1", manifest=DIGEST, policy=DIGEST, match=DIGEST, now=NOW
    )


def test_an_approval_by_passkey_counts_and_one_made_on_another_page_does_not() -> None:
    key = SoftwarePasskey()
    trust = trust_of(1, key)
    envelope = decided(trust, key)
    assert open_statement(envelope, trust=trust).signer.keyid == key.passkey.keyid
    found = approved(trust, envelope)
    assert found.people == ("Anna",) and found.on_portal_page == ()
    with pytest.raises(Exception, match="another page"):
        approved(trust, decided(trust, key, origin="https://portal.example"))


def test_a_key_and_a_passkey_of_one_person_are_one_voice() -> None:
    key = SoftwarePasskey()
    trust = trust_of(2, key)
    with pytest.raises(Exception, match="1 of the 2 people"):
        approved(trust, decided(trust, key), decided(trust, ANNA))
    assert approved(trust, decided(trust, key), decided(trust, BEN)).people == ("Anna", "Ben")


def test_a_decision_on_the_portals_page_says_so_unless_the_person_signed_elsewhere_too() -> None:
    key = SoftwarePasskey(origin="https://portal.example", rp_id="portal.example")
    trust = trust_of(1, key, portal=True)
    assert trust.keys[key.passkey.keyid].on_portal_page
    assert approved(trust, decided(trust, key)).on_portal_page == ("Anna",)
    assert approved(trust, decided(trust, key), decided(trust, BEN)).on_portal_page == ("Anna",)
    assert approved(trust, decided(trust, key), decided(trust, ANNA)).on_portal_page == ()
    with pytest.raises(Exception, match="taken back"):
        approved(trust, decided(trust, BEN), decided(trust, key, "revoke"))


def test_a_passkey_on_the_portals_page_never_changes_who_decides() -> None:
    own = SoftwarePasskey()
    portals = SoftwarePasskey(8, origin="https://portal.example", rp_id="portal.example")
    for key, counts in ((own, True), (portals, False)):
        first = trust_of(1, key, portal=not counts)
        payload = encode(document(2, 1, (BEN, "Ben")))
        by_page = key.envelope(TRUST_TYPE, payload)
        second = by_page.joined(sign_envelope(TRUST_TYPE, payload, BEN))
        if counts:
            with_own = document(1, 1, (BEN, "Ben"))
            with_own["keys"][key.passkey.keyid] = key.entry("Anna")
            only_anna = open_trust(sign_envelope(TRUST_TYPE, freeze_trust(with_own), BEN), None)
            assert open_trust(second, only_anna).version == 2
            assert first.verify(key.envelope(TYPE, b"{}"), payload_type=TYPE) == {key.passkey.keyid}
        else:
            with pytest.raises(SignatureError):
                first.verify(key.envelope(TYPE, b"{}"), payload_type=TYPE)
            with pytest.raises(SignatureError):
                open_trust(by_page, first)


@pytest.mark.parametrize(
    "changes",
    [
        {"public": "*"},
        {"credential": "*"},
        {"credential": ""},
        {"alg": "RS256"},
        {"alg": "EdDSA"},
        {"origin": "http://silo.example"},
        {"page": "other"},
        {"kind": "ed25519"},
        {"person": "Anna\u202e"},
        {"more": 1},
    ],
)
def test_a_passkey_of_another_form_does_not_get_into_trust_json(changes: dict[str, Any]) -> None:
    key = SoftwarePasskey()
    content = document(1, 1, (ANNA, "Anna"))
    content["keys"][key.passkey.keyid] = key.entry("Anna")
    assert freeze_trust(content)
    content["keys"][key.passkey.keyid] |= changes
    with pytest.raises(TrustError):
        freeze_trust(content)
    content["keys"] = {ANNA.keyid: entry(ANNA, "Anna"), "0" * 64: key.entry("Anna")}
    with pytest.raises(TrustError, match="another key"):
        freeze_trust(content)


def test_web64_of_the_tests_is_the_browsers() -> None:
    assert web64(hashlib.sha256(MESSAGE).digest()) == challenge_text(MESSAGE)
