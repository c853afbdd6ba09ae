"""Passkeys on the silo's own page: made for a person, used for one decision, refused where anything is off."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from protocol.approval import check_approvals, open_statement, open_trust
from protocol.canonical import decode, encode
from protocol.policy import match_digest
from protocol.signing import Envelope, SigningKey, sign_envelope
from protocol.trust import TRUST_TYPE, Trust, first_trust, freeze_trust
from silo_node.errors import UsageError
from silo_node.files import write_json
from silo_node.steward import approvals, documents, passkeys
from tests.protocol.software_passkey import ATTESTED, PRESENT, VERIFIED, SoftwarePasskey, web64

ANNA = SigningKey.from_bytes(bytes([1]) * 32)
LOCAL = passkeys.Page("http://localhost:8765")


def authenticator(**options: Any) -> SoftwarePasskey:
    return SoftwarePasskey(**{"origin": LOCAL.origin, "rp_id": "localhost", **options})


def with_passkey(entry: tuple[str, dict[str, Any]]) -> Trust:
    first = first_trust(ANNA, person="Anna", not_after="2029-01-01T00:00:00Z")
    document = decode(first.payload)
    document["keys"][entry[0]] = entry[1]
    return open_trust(sign_envelope(TRUST_TYPE, freeze_trust(document), ANNA), None)


def registered(key: SoftwarePasskey, page: passkeys.Page = LOCAL) -> tuple[str, dict[str, Any]]:
    trust = open_trust(first_trust(ANNA, person="Anna", not_after="2029-01-01T00:00:00Z"), None)
    options, state = passkeys.registration_options(page, trust, "Ben Example")
    return passkeys.register(page, json.loads(json.dumps(state)), key.create(json.loads(json.dumps(options))))


@pytest.mark.parametrize("alg", ["ES256", "EdDSA"])
def test_a_passkey_is_registered_and_signs_one_decision(alg: Any) -> None:
    key = authenticator(alg=alg)
    name, entry = registered(key)
    assert (name, entry["public"], entry["person"]) == (key.passkey.keyid, key.entry("")["public"], "Ben Example")
    trusted = with_passkey((name, entry)).keys[name]
    payload = encode({"decision": "approve"})
    options = json.loads(json.dumps(passkeys.assertion_options(trusted, payload)))
    assert options["userVerification"] == "required" and options["rpId"] == "localhost"
    assert [each["id"] for each in options["allowCredentials"]] == [web64(key.credential)]
    envelope = passkeys.approve(trusted, payload, key.get(options))
    assert envelope == Envelope.from_dict(json.loads(json.dumps(envelope.as_dict())))
    with pytest.raises(UsageError, match="challenge"):
        passkeys.approve(trusted, encode({"decision": "reject"}), key.get(options))


def test_registration_asks_for_verification_and_names_the_passkeys_that_are_there() -> None:
    trust = with_passkey(registered(authenticator()))
    options, _ = passkeys.registration_options(LOCAL, trust, "Cara")
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["rp"]["id"] == "localhost" and options["attestation"] == "none"
    assert [each["alg"] for each in options["pubKeyCredParams"]] == [-7, -8]
    assert [each["id"] for each in options["excludeCredentials"]] == [web64(authenticator().credential)]
    with pytest.raises(UsageError, match="name the person"):
        passkeys.registration_options(LOCAL, trust, " ")


@pytest.mark.parametrize(
    ("flags", "client"),
    [
        (PRESENT | ATTESTED, {}),
        (VERIFIED | ATTESTED, {}),
        (PRESENT | VERIFIED, {}),
        (PRESENT | VERIFIED | ATTESTED, {"origin": "http://localhost:8766"}),
        (PRESENT | VERIFIED | ATTESTED, {"origin": "https://portal.example"}),
        (PRESENT | VERIFIED | ATTESTED, {"type": "webauthn.get"}),
        (PRESENT | VERIFIED | ATTESTED, {"crossOrigin": True}),
        (PRESENT | VERIFIED | ATTESTED, {"challenge": web64(bytes(32))}),
    ],
)
def test_a_registration_that_says_something_else_is_refused(flags: int, client: dict[str, Any]) -> None:
    trust = open_trust(first_trust(ANNA, person="Anna", not_after="2029-01-01T00:00:00Z"), None)
    options, state = passkeys.registration_options(LOCAL, trust, "Ben")
    with pytest.raises(UsageError) as caught:
        passkeys.register(LOCAL, state, authenticator().create(dict(options), flags=flags, **client))
    assert caught.value.code == "PASSKEY_NOT_VALID"


@pytest.mark.parametrize("answer", [{}, {"id": "x"}, {"id": "x", "rawId": "y", "response": {}}, {"rawId": 1}])
def test_an_answer_that_is_none_is_refused(answer: dict[str, Any]) -> None:
    trust = open_trust(first_trust(ANNA, person="Anna", not_after="2029-01-01T00:00:00Z"), None)
    _, state = passkeys.registration_options(LOCAL, trust, "Ben")
    name, entry = registered(authenticator())
    for call in (
        lambda: passkeys.register(LOCAL, state, answer),
        lambda: passkeys.approve(with_passkey((name, entry)).keys[name], b"{}", answer),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "PASSKEY_NOT_VALID"


@pytest.mark.parametrize(
    ("flags", "client"),
    [
        (PRESENT, {}),
        (VERIFIED, {}),
        (PRESENT | VERIFIED, {"origin": "http://localhost:8766"}),
        (PRESENT | VERIFIED, {"crossOrigin": True}),
        (PRESENT | VERIFIED, {"type": "webauthn.create"}),
    ],
)
def test_an_assertion_that_says_something_else_signs_nothing(flags: int, client: dict[str, Any]) -> None:
    name, entry = registered(authenticator())
    trusted = with_passkey((name, entry)).keys[name]
    options = passkeys.assertion_options(trusted, b"{}")
    with pytest.raises(UsageError) as caught:
        passkeys.approve(trusted, b"{}", authenticator().get(dict(options), flags=flags, **client))
    assert caught.value.code == "PASSKEY_NOT_VALID"


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8765", "http://silo.example", "https://[::1]:1"])
def test_a_page_that_can_have_no_passkeys_says_what_to_do(origin: str) -> None:
    trust = open_trust(first_trust(ANNA, person="Anna", not_after="2029-01-01T00:00:00Z"), None)
    with pytest.raises(UsageError, match="localhost"):
        passkeys.registration_options(passkeys.Page(origin), trust, "Ben")


def test_a_persons_passkeys_are_found_by_page() -> None:
    name, entry = registered(authenticator())
    trust = with_passkey((name, entry))
    assert passkeys.of_person(trust, "Ben Example", LOCAL.origin).keys() == {name}
    assert passkeys.of_person(trust, "Ben Example", "http://localhost:1") == {}
    assert passkeys.of_person(trust, "Anna", LOCAL.origin) == {}
    with pytest.raises(UsageError, match="no passkey"):
        passkeys.assertion_options(trust.keys[ANNA.keyid], b"{}")


def test_a_decision_by_passkey_holds_at_the_silo(ready: Any, portal: Any) -> None:
    """The page's way from the study to the decision, with the real node's folder."""
    key = authenticator()
    name, entry = registered(key)
    config = ready.config
    trust = documents.load_trust(config)
    first = documents.read_envelope(config.trust)
    assert first is not None
    steward = approvals.load_steward(config, trust, b"correct horse battery staple")
    document = {**decode(first.payload), "version": 2}
    document["keys"][name] = entry
    write_json(config.trust, sign_envelope(TRUST_TYPE, freeze_trust(document), steward).as_dict())
    trust = documents.load_trust(config)
    node = ready.node()
    try:
        proposal = approvals.fetch(node, portal.manifest.study)
        payload = approvals.draft(node, proposal, "reject", signer=name, reason="not now")
        options = passkeys.assertion_options(trust.keys[name], payload)
        envelope = passkeys.approve(trust.keys[name], payload, key.get(options))
        assert approvals.keep(node, proposal, envelope).exists()
        assert open_statement(envelope, trust=trust).signer.name == "Ben Example"
        with pytest.raises(Exception, match="rejected"):
            check_approvals(
                documents.load_approvals(config, proposal.study),
                trust=trust,
                silo=config.name,
                study=proposal.study,
                manifest=proposal.manifest,
                policy=proposal.policy.digest,
                match=match_digest(proposal.found),
                now=datetime.now(UTC),
            )
        stranger = authenticator(number=9)
        with pytest.raises(UsageError, match=r"trust\.json"):
            approvals.draft(node, proposal, "reject", signer=stranger.passkey.keyid, reason="x")
        with pytest.raises(UsageError, match=r"trust\.json"):
            approvals.keep(node, proposal, stranger.envelope(envelope.payload_type, payload))
    finally:
        node.close()
