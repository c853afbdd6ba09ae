"""What the steward signs is what runs: each way in which an approval does not hold is refused, by its own code."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.approval import (
    APPROVAL_TYPE,
    ApprovalError,
    ApprovalLimits,
    Approved,
    Trust,
    check_approvals,
    first_trust,
    freeze_trust,
    open_statement,
    open_trust,
    parse_statement,
    sign_statement,
    utc_text,
)
from protocol.canonical import b64, decode, digest, encode
from protocol.signing import Envelope, SigningKey, sign_envelope
from protocol.statement import MAX_BYTES
from protocol.trust import TRUST_TYPE, add_signature

ANNA, ANNA_TOO, BEN, CARA, STRANGER = (SigningKey.from_bytes(bytes([number]) * 32) for number in (1, 2, 3, 4, 5))
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
DAY = timedelta(days=1)
MANIFEST, POLICY, MATCH = (digest(name) for name in (b"manifest", b"policy", b"match"))
LIMITS = ApprovalLimits(epsilon_micro=8_000_000, max_rounds=25, min_cohort=20)


def trust_of(needed: int = 1, *, anna_until: str = "2028-01-01T00:00:00Z") -> Trust:
    people = [(ANNA, "Anna"), (ANNA_TOO, "Anna"), (BEN, "Ben"), (CARA, "Cara")]
    keys = {
        key.keyid: {
            "kind": "ed25519",
            "public": b64(key.public),
            "role": "steward",
            "person": person,
            "not_after": anna_until if person == "Anna" else "2028-01-01T00:00:00Z",
        }
        for key, person in people
    }
    payload = freeze_trust({"schema": "consilium/trust/1", "version": 1, "keys": keys, "roles": {"steward": needed}})
    envelope = sign_envelope(TRUST_TYPE, payload, ANNA)
    for key in (BEN, CARA):
        envelope = add_signature(envelope, key)
    return open_trust(envelope, None)


TRUST = trust_of()


def sign(key: SigningKey = ANNA, decision: Any = "approve", **changes: Any) -> Envelope:
    arguments: dict[str, Any] = {
        "decision": decision,
        "reason": "as discussed",
        "silo": "site-1",
        "study": "st-abc",
        "manifest": MANIFEST,
        "policy": POLICY,
        "match": MATCH,
        "limits": LIMITS,
        "not_before": NOW,
        "not_after": NOW + 30 * DAY,
        "now": NOW,
        **changes,
    }
    return sign_statement(key, TRUST, **arguments)


def check(*envelopes: Envelope, **changes: Any) -> Approved:
    arguments: dict[str, Any] = {
        "trust": TRUST,
        "silo": "site-1",
        "study": "st-abc",
        "manifest": MANIFEST,
        "policy": POLICY,
        "match": MATCH,
        "now": NOW + DAY,
        **changes,
    }
    return check_approvals(envelopes, **arguments)


def refused(code: str, *envelopes: Envelope, **changes: Any) -> str:
    with pytest.raises(ApprovalError) as error:
        check(*envelopes, **changes)
    assert error.value.code == code
    assert error.value.sentence == str(error.value) and error.value.sentence.endswith(".")
    return error.value.sentence


def forged(changes: dict[str, Any], key: SigningKey = ANNA) -> Envelope:
    """A statement that says something else than sign_statement would, properly signed."""
    return sign_envelope(APPROVAL_TYPE, encode({**decode(sign().payload), **changes}), key)


def test_an_approval_allows_what_it_says() -> None:
    envelope = sign()
    approved = check(envelope)
    assert approved.limits == LIMITS
    assert approved.not_before == NOW and approved.not_after == NOW + 30 * DAY
    assert approved.digests == (envelope.digest,) and approved.people == ("Anna",)


def test_no_statement_is_no_approval() -> None:
    assert "yet" in refused("APPROVAL_MISSING")


def test_an_expired_approval_is_refused() -> None:
    envelope = sign(not_after=NOW + DAY)
    refused("APPROVAL_EXPIRED", envelope, now=NOW + DAY)
    refused("APPROVAL_EXPIRED", envelope, now=NOW + 400 * DAY)
    assert check(envelope, now=NOW + DAY - timedelta(seconds=1))


def test_an_approval_for_later_is_refused_until_then() -> None:
    envelope = sign(not_before=NOW + 2 * DAY)
    assert "2026-11-25" in refused("APPROVAL_NOT_YET", envelope)
    assert check(envelope, now=NOW + 2 * DAY)


def test_an_approval_dated_in_the_future_is_refused() -> None:
    envelope = sign(now=NOW + 2 * DAY)
    refused("APPROVAL_NOT_YET", envelope)
    assert check(envelope, now=NOW + 2 * DAY - timedelta(minutes=5))


@pytest.mark.parametrize("key", [ANNA, BEN])
def test_one_revocation_by_anyone_suffices(key: SigningKey) -> None:
    approvals = [sign(ANNA), sign(BEN), sign(CARA)]
    revoke = sign(key, "revoke", now=NOW + timedelta(hours=1))
    for order in ([*approvals, revoke], [revoke, *approvals]):
        assert "taken back" in refused("APPROVAL_REVOKED", *order)


def test_a_revocation_in_the_same_second_or_alone_holds() -> None:
    refused("APPROVAL_REVOKED", sign(), sign(BEN, "revoke"))
    refused("APPROVAL_REVOKED", sign(BEN, "revoke"))


def test_a_revocation_holds_whatever_policy_match_or_window_it_names() -> None:
    other = digest(b"other")
    revoke = sign(BEN, "revoke", policy=other, match=other, not_before=NOW + 50 * DAY, not_after=NOW + 51 * DAY)
    refused("APPROVAL_REVOKED", sign(), revoke)


def test_a_revocation_with_a_key_that_is_over_still_stops() -> None:
    trust = trust_of(anna_until="2026-11-23T12:00:00Z")
    refused("APPROVAL_REVOKED", sign(BEN), sign(ANNA, "revoke"), trust=trust)


def test_a_revocation_of_another_version_does_not_count() -> None:
    assert check(sign(), sign(BEN, "revoke", manifest=digest(b"version 1")))


def test_only_an_approval_signed_after_the_revocation_counts_again() -> None:
    first = sign()
    revoke = sign(BEN, "revoke", now=NOW + timedelta(hours=1))
    again = sign(now=NOW + timedelta(hours=2))
    assert check(first, revoke, again).digests == (again.digest,)
    refused("APPROVAL_THRESHOLD", first, sign(BEN), revoke, again, trust=trust_of(2))


def test_a_revocation_is_dated_after_what_it_ends_even_with_a_wrong_clock() -> None:
    first = sign(now=NOW + timedelta(hours=3))
    revoke = sign(BEN, "revoke", now=NOW, after=[parse_statement(first.payload)])
    assert parse_statement(revoke.payload).time == "2026-11-23T13:00:01Z"
    refused("APPROVAL_REVOKED", first, revoke)


def test_a_rejection_says_so() -> None:
    assert "rejected" in refused("APPROVAL_REJECTED", sign(BEN, "reject"))
    refused("APPROVAL_REJECTED", sign(), sign(BEN, "reject"))
    later = timedelta(hours=1)
    refused("APPROVAL_REVOKED", sign(), sign(BEN, "reject"), sign(CARA, "revoke", now=NOW + later))
    assert check(sign(BEN, "reject"), sign(now=NOW + later))


def test_another_manifest_is_refused() -> None:
    assert "another version" in refused("APPROVAL_OTHER_MANIFEST", sign(manifest=digest(b"other")))


def test_one_changed_byte_in_the_manifest_is_refused() -> None:
    body = bytearray(b"manifest")
    for place in range(len(body)):
        changed = bytes([*body[:place], body[place] ^ 1, *body[place + 1 :]])
        refused("APPROVAL_OTHER_MANIFEST", sign(), manifest=digest(changed))


def test_another_policy_or_another_match_is_refused() -> None:
    refused("APPROVAL_OTHER_POLICY", sign(), policy=digest(b"policy, version 2"))
    assert "says something else" in refused("APPROVAL_OTHER_POLICY", sign(), match=digest(b"another decision"))


def test_another_silo_or_study_is_refused() -> None:
    refused("APPROVAL_OTHER_SILO", sign(silo="site-2"))
    refused("APPROVAL_OTHER_SILO", sign(study="st-abd"))


def test_a_bad_signature_refuses_all() -> None:
    good = sign()
    name, signature = good.signatures[0]
    bad = Envelope(good.payload_type, good.payload, ((name, signature[:-1] + bytes([signature[-1] ^ 1])),))
    refused("APPROVAL_SIGNATURE", bad)
    refused("APPROVAL_SIGNATURE", sign(BEN), bad)
    refused("APPROVAL_SIGNATURE", Envelope(good.payload_type, good.payload + b" ", good.signatures))
    refused("APPROVAL_SIGNATURE", sign_envelope("application/vnd.consilium.policy+json", good.payload, ANNA))


def test_an_unknown_key_is_refused_and_passed_over_beside_a_known_one() -> None:
    stranger = forged({"signer": {"name": "Anna", "role": "steward", "keyid": STRANGER.keyid}}, STRANGER)
    refused("APPROVAL_SIGNATURE", stranger)
    assert check(stranger, sign()).people == ("Anna",)
    with pytest.raises(ApprovalError, match="does not stand"):
        sign(STRANGER)


def test_a_statement_that_names_another_signer_is_refused() -> None:
    for signer in (
        {"name": "Ben", "role": "steward", "keyid": BEN.keyid},
        {"name": "Ben", "role": "steward", "keyid": ANNA.keyid},
        {"name": "Anna", "role": "steward", "keyid": STRANGER.keyid},
    ):
        refused("APPROVAL_SIGNATURE", forged({"signer": signer}))


def test_an_approval_ends_with_its_key() -> None:
    trust = trust_of(anna_until="2026-11-24T10:00:00Z")
    assert check(sign(), trust=trust, now=NOW).not_after == NOW + DAY
    assert "no longer valid" in refused("APPROVAL_SIGNATURE", sign(), trust=trust, now=NOW + DAY)


def test_the_threshold_counts_people_not_keys() -> None:
    trust = trust_of(2)
    assert "1 of the 2" in refused("APPROVAL_THRESHOLD", sign(ANNA), trust=trust)
    refused("APPROVAL_THRESHOLD", sign(ANNA), sign(ANNA_TOO), trust=trust)
    refused("APPROVAL_THRESHOLD", sign(ANNA), sign(ANNA), trust=trust)
    refused("APPROVAL_THRESHOLD", sign(ANNA), sign(BEN, manifest=digest(b"other")), trust=trust)
    refused("APPROVAL_THRESHOLD", sign(ANNA), sign(BEN, policy=digest(b"other")), trust=trust)
    refused("APPROVAL_THRESHOLD", sign(ANNA), sign(BEN, not_after=NOW + timedelta(hours=1)), trust=trust)
    assert check(sign(ANNA), sign(ANNA_TOO), sign(BEN), trust=trust).people == ("Anna", "Ben")


def test_the_strictest_limits_and_the_shortest_time_hold() -> None:
    approved = check(
        sign(ANNA, limits=ApprovalLimits(epsilon_micro=3, max_rounds=40, min_cohort=10), not_after=NOW + 20 * DAY),
        sign(
            BEN,
            limits=ApprovalLimits(epsilon_micro=5, max_rounds=25, min_cohort=50),
            not_before=NOW + timedelta(hours=1),
        ),
        trust=trust_of(2),
    )
    assert approved.limits == ApprovalLimits(epsilon_micro=3, max_rounds=25, min_cohort=50)
    assert (approved.not_before, approved.not_after) == (NOW + timedelta(hours=1), NOW + 20 * DAY)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "consilium/approval/2"},
        {"decision": "maybe"},
        {"meaning": ""},
        {"manifest": "sha256:00"},
        {"limits": {"epsilon_micro": -1, "max_rounds": 1, "min_cohort": 1}},
        {"limits": {"epsilon_micro": 1, "max_rounds": 1}},
        {"not_after": "2026-11-23T10:00:00Z"},
        {"not_before": "yesterday"},
        {"nonce": b64(bytes(15))},
        {"nonce": "*"},
        {"signer": {"name": "Anna", "role": "admin", "keyid": ANNA.keyid}},
        {"more": 1},
        {"time": "2026-11-23 10:00:00Z"},
    ],
)
def test_a_statement_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    refused("APPROVAL_FORM", forged(changes))


def test_size_and_form_are_checked() -> None:
    for payload in (b" " * (MAX_BYTES + 1), b"{} ", b"[]"):
        refused("APPROVAL_FORM", sign_envelope(APPROVAL_TYPE, payload, ANNA))


@given(st.binary(max_size=100))
def test_no_payload_makes_the_parser_fail_otherwise_than_with_its_own_error(payload: bytes) -> None:
    with pytest.raises(ApprovalError):
        parse_statement(payload)


@given(st.lists(st.tuples(st.sampled_from([ANNA, ANNA_TOO, BEN, CARA]), st.booleans(), st.integers(0, 5)), max_size=6))
def test_enough_distinct_people_and_no_later_stop_is_exactly_what_permits(
    acts: list[tuple[SigningKey, bool, int]],
) -> None:
    people = {ANNA.keyid: "Anna", ANNA_TOO.keyid: "Anna", BEN.keyid: "Ben", CARA.keyid: "Cara"}
    envelopes = [
        sign(key, "approve" if approves else "revoke", now=NOW + timedelta(minutes=minute))
        for key, approves, minute in acts
    ]
    stopped = max((minute for _, approves, minute in acts if not approves), default=-1)
    standing = {people[key.keyid] for key, approves, minute in acts if approves and minute > stopped}
    if len(standing) >= 2:
        assert set(check(*envelopes, trust=trust_of(2)).people) == standing
    else:
        with pytest.raises(ApprovalError):
            check(*envelopes, trust=trust_of(2))


def test_times_need_a_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        utc_text(datetime(2026, 11, 23))
    with pytest.raises(ValueError, match="time zone"):
        check(sign(), now=datetime(2026, 11, 23))


def test_a_statement_opens_without_a_check() -> None:
    statement = open_statement(sign(decision="reject"), trust=TRUST)
    assert statement.decision == "reject" and statement.signer.name == "Anna"
    assert "may not use" in statement.meaning


def test_the_first_trust_is_enough_to_begin() -> None:
    trust = open_trust(first_trust(ANNA, person="Anna", not_after="2028-01-01T00:00:00Z"), None)
    assert check(sign(), trust=trust).people == ("Anna",)
