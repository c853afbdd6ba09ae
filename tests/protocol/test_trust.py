"""trust.json: people count, not keys, and each version is signed by the thresholds of both."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import b64, encode
from protocol.signing import MalformedEnvelope, SignatureError, SigningKey, sign_envelope
from protocol.trust import (
    MAX_BYTES,
    TRUST_TYPE,
    TrustError,
    add_signature,
    first_trust,
    freeze_trust,
    open_trust,
)

ANNA, ANNA_TOO, BEN, CARA = (SigningKey.from_bytes(bytes([number]) * 32) for number in (1, 2, 3, 4))
LATER = "2028-01-01T00:00:00Z"
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def entry(key: SigningKey, person: str, **changes: Any) -> dict[str, Any]:
    plain = {"kind": "ed25519", "public": b64(key.public), "role": "steward", "person": person, "not_after": LATER}
    return {**plain, **changes}


def document(version: float, needed: int, *people: tuple[SigningKey, str], **changes: Any) -> dict[str, Any]:
    keys = {key.keyid: entry(key, person) for key, person in people}
    return {"schema": "consilium/trust/1", "version": version, "keys": keys, "roles": {"steward": needed}, **changes}


def signed(content: dict[str, Any], *keys: SigningKey) -> Any:
    envelope = sign_envelope(TRUST_TYPE, encode(content), keys[0])
    for key in keys[1:]:
        envelope = add_signature(envelope, key)
    return envelope


def test_the_first_version_is_signed_by_its_own_steward() -> None:
    trust = open_trust(first_trust(ANNA, person="Anna", not_after=LATER), None, now=NOW)
    assert trust.version == 1 and trust.roles == {"steward": 1}
    assert trust.keys[ANNA.keyid].person == "Anna"
    assert trust.publics() == {ANNA.keyid: ANNA.public}
    assert trust.publics("steward", datetime(2028, 1, 1, tzinfo=UTC)) == {}
    assert trust.publics("admin") == {}


def test_two_keys_of_one_person_are_one_voice() -> None:
    content = document(1, 2, (ANNA, "Anna"), (ANNA_TOO, "Anna"), (BEN, "Ben"))
    with pytest.raises(SignatureError, match="1 of the 2 people"):
        open_trust(signed(content, ANNA, ANNA_TOO), None)
    assert open_trust(signed(content, ANNA, BEN), None).people(frozenset({ANNA.keyid, ANNA_TOO.keyid})) == {"Anna"}


def test_a_new_version_needs_the_old_and_the_new_threshold() -> None:
    first = open_trust(first_trust(ANNA, person="Anna", not_after=LATER), None)
    second = document(2, 2, (BEN, "Ben"), (CARA, "Cara"))
    assert open_trust(signed(second, ANNA, BEN, CARA), first, now=NOW).version == 2
    with pytest.raises(TrustError, match="version 1 have not agreed"):
        open_trust(signed(second, BEN, CARA), first)
    with pytest.raises(SignatureError, match="1 of the 2"):
        open_trust(signed(second, ANNA, BEN), first)


@pytest.mark.parametrize("version", [1, 3])
def test_versions_neither_repeat_nor_skip(version: int) -> None:
    first = open_trust(first_trust(ANNA, person="Anna", not_after=LATER), None)
    with pytest.raises(TrustError, match="only version 2"):
        open_trust(signed(document(version, 1, (ANNA, "Anna")), ANNA), first)


def test_a_key_that_is_over_cannot_change_the_trust() -> None:
    first = open_trust(first_trust(ANNA, person="Anna", not_after="2026-01-01T00:00:00Z"), None)
    second = signed(document(2, 1, (ANNA, "Anna")), ANNA)
    with pytest.raises(TrustError, match="version 1 have not agreed"):
        open_trust(second, first, now=NOW)
    with pytest.raises(SignatureError):
        open_trust(first_trust(ANNA, person="Anna", not_after="2026-01-01T00:00:00Z"), None, now=NOW)


def test_a_stranger_or_another_type_is_refused() -> None:
    content = document(1, 1, (ANNA, "Anna"))
    with pytest.raises(SignatureError):
        open_trust(signed(content, BEN), None)
    with pytest.raises(SignatureError, match="type"):
        open_trust(sign_envelope("application/vnd.consilium.policy+json", encode(content), ANNA), None)


def test_one_changed_byte_is_refused() -> None:
    envelope = first_trust(ANNA, person="Anna", not_after=LATER)
    changed = envelope.payload.replace(b"Anna", b"Anne")
    with pytest.raises(SignatureError):
        open_trust(type(envelope)(envelope.payload_type, changed, envelope.signatures), None)


@pytest.mark.parametrize(
    "content",
    [
        document(1, 1),
        document(0, 1, (ANNA, "Anna")),
        document(1, 0, (ANNA, "Anna")),
        document(1, 2, (ANNA, "Anna"), (ANNA_TOO, "Anna")),
        document(1, 1, (ANNA, "Anna"), more=1),
        document(1, 1, (ANNA, "Anna"), roles={}),
        document(1, 1, (ANNA, "Anna"), roles={"admin": 1}),
        document(1, 1, keys={BEN.keyid: entry(ANNA, "Anna")}),
        document(1, 1, keys={"ab": entry(ANNA, "Anna")}),
        document(1, 1, keys={ANNA.keyid: entry(ANNA, "Anna", kind="webauthn")}),
        document(1, 1, keys={ANNA.keyid: entry(ANNA, "Anna", role="admin")}),
        document(1, 1, keys={ANNA.keyid: entry(ANNA, "", not_after="2028")}),
        document(1.5, 1, (ANNA, "Anna")),
    ],
)
def test_a_document_that_does_not_fit_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(TrustError):
        freeze_trust(content)


def test_size_and_form_are_checked_before_anything_else() -> None:
    for payload in (b" " * (MAX_BYTES + 1), b"{} ", b'{"a":1,"a":1}'):
        with pytest.raises(TrustError) as refused:
            open_trust(sign_envelope(TRUST_TYPE, payload, ANNA), None)
        assert refused.value.code == "TRUST"


@given(st.binary(max_size=100))
def test_no_payload_makes_the_reader_fail_otherwise_than_with_its_own_error(payload: bytes) -> None:
    with pytest.raises(TrustError):
        open_trust(sign_envelope(TRUST_TYPE, payload, ANNA), None)


def test_nobody_signs_twice() -> None:
    with pytest.raises(MalformedEnvelope, match="already"):
        add_signature(first_trust(ANNA, person="Anna", not_after=LATER), ANNA)
