"""The policy that a steward signs: strict in its fields, told in words, and judged as told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import encode
from protocol.data_use.document import MAX_BYTES
from protocol.duo import load_closure
from protocol.policy import PolicyError, describe_policy, freeze_policy, match, parse_policy, policy_facts


def example(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "consilium/policy/1",
        "silo": "site-1",
        "organisation": "Hospital A",
        "version": 1,
        "permission": "DUO:0000007",
        "modifiers": [{"code": "DUO:0000046"}, {"code": "DUO:0000022", "countries": ["AT", "DE"]}],
        "diseases": ["DOID:850"],
        "limits": {"epsilon_max_micro": 2_500_000, "min_cohort": 20, "partners": ["site-2"], "expires": "2028-01-01"},
        "legal_basis": None,
        "consent_default": "opt-in",
        "share_metrics": True,
        "partners": {"keys": {"site-2": "ab" * 32}, "min_known": 1},
        "log_max_age_seconds": 86_400,
        "issued": "2026-11-23T10:00:00Z",
        **changes,
    }


def test_a_frozen_policy_reads_the_same_again() -> None:
    data = freeze_policy(example())
    assert freeze_policy(parse_policy(data)) == data
    assert parse_policy(encode(example())) == parse_policy(data)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": "consilium/policy/2"}, "schema"),
        ({"more": 1}, "more"),
        ({"silo": "Site 1"}, "silo"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"permission": "HMB"}, "permission"),
        ({"diseases": []}, "diseases"),
        ({"permission": "DUO:0000006"}, "diseases"),
        ({"modifiers": [{"code": "NCU"}]}, r"modifiers\.0\.code"),
        ({"modifiers": [{"code": "DUO:0000046", "extra": 1}]}, r"modifiers\.0\.extra"),
        ({"modifiers": [{"code": "DUO:0000022"}]}, "geographical restriction"),
        ({"modifiers": [{"code": "DUO:0000022", "countries": []}]}, "geographical restriction"),
        ({"modifiers": [{"code": "DUO:0000025"}]}, "time limit"),
        ({"modifiers": [{"code": "DUO:0000025", "until": "2027"}]}, r"modifiers\.0\.until"),
        ({"modifiers": [{"code": "DUO:0000024"}]}, "moratorium"),
        ({"modifiers": [{"code": "DUO:0000027"}]}, "project"),
        ({"modifiers": [{"code": "DUO:0000026"}]}, "user"),
        ({"modifiers": [{"code": "DUO:0000028"}]}, "institution"),
        ({"limits": {"epsilon_max": 3}}, r"limits\.epsilon_max"),
        ({"limits": {"epsilon_max_micro": -1}}, r"limits\.epsilon_max_micro"),
        ({"limits": {"partners": []}}, r"limits\.partners"),
        ({"consent_default": "none"}, "consent_default"),
        ({"share_metrics": "yes"}, "share_metrics"),
        ({"partners": {"keys": {}, "min_known": 1}}, "min_known"),
        ({"partners": {"keys": {"site-2": "ab"}, "min_known": 0}}, r"partners\.keys"),
        ({"log_max_age_seconds": 1}, "log_max_age_seconds"),
        ({"issued": "2026-11-23T10:00:00"}, "issued"),
        ({"issued": "2026-11-23T10:00:00+01:00"}, "issued"),
        ({"issued": "2026-13-23T10:00:00Z"}, "issued"),
        ({"legal_basis": 1.5}, "canonical form"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError, match=field):
        freeze_policy(example(**changes))


def test_only_canonical_bytes_are_read() -> None:
    with pytest.raises(PolicyError, match="canonical JSON"):
        parse_policy(freeze_policy(example()) + b" ")
    with pytest.raises(PolicyError, match="bytes at most"):
        parse_policy(b" " * (MAX_BYTES + 1))


@given(st.binary(max_size=100))
def test_no_bytes_make_the_parser_fail_otherwise_than_with_its_own_error(data: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_policy(data)


def test_the_facts_are_those_that_the_match_asks_for() -> None:
    facts = policy_facts(parse_policy(freeze_policy(example())))
    assert facts == {
        "permission": "DUO:0000007",
        "modifiers": [{"code": "DUO:0000046"}, {"code": "DUO:0000022", "countries": ["AT", "DE"]}],
        "diseases": ["DOID:850"],
        "limits": {"epsilon_max": 2.5, "min_cohort": 20, "partners": ["site-1", "site-2"], "expires": "2028-01-01"},
    }
    study = {"purpose": "disease", "diseases": ["DOID:552"], "commercial": False, "countries": ["DE"], "end": "2027-06-30",
             "epsilon": 2.5, "min_cohort": 20, "partners": ["site-1", "site-2"]}  # fmt: skip
    assert match(facts, study, load_closure()).decision == "PERMIT"
    assert match(facts, {**study, "epsilon": 2.500001}, load_closure()).reason_codes == ["LOCAL.epsilon"]
    assert match(facts, {**study, "partners": ["site-1", "site-3"]}, load_closure()).reason_codes == ["LOCAL.partners"]


def test_a_policy_without_limits_sets_none() -> None:
    document = parse_policy(freeze_policy(example(permission="DUO:0000042", diseases=[], modifiers=[], limits={})))
    assert policy_facts(document)["limits"] == {}
    assert match(policy_facts(document), {"purpose": "general"}, load_closure()).decision == "PERMIT"


def words(**changes: Any) -> str:
    return "\n".join(describe_policy(parse_policy(freeze_policy(example(**changes)))))


def test_the_policy_is_told_in_words() -> None:
    assert words().splitlines() == [
        "Data-use policy of Hospital A (silo site-1), version 1.",
        "The data may be used only for research on the named diseases: lung disease (DOID:850), and whatever is a kind of it.",
        "The data may not be used commercially.",
        "The data may be used only in the named countries: AT and DE.",
        "A study may lose at most epsilon 2.5 of privacy; one without noise is denied.",
        "Each hospital takes part with at least 20 patients.",
        "Only these partners take part: site-2.",
        "The policy holds until 1 January 2028; a study must end by then.",
        "A patient's images are used only where the patient has agreed.",
        "This hospital's own test results may be shown to the partners.",
        "At least 1 of the partners whose keys this hospital has compared must be in every sum: site-2.",
        "A round runs only while the log was confirmed within the last 1 day.",
    ]


def test_the_words_follow_each_choice() -> None:
    other = words(
        permission="DUO:0000006",
        diseases=[],
        modifiers=[
            {"code": "DUO:0000025", "until": "2027-12-31"},
            {"code": "DUO:0000099"},
            {"code": "DUO:0000007", "diseases": ["DOID:162"]},
            {"code": "DUO:0000027", "projects": ["st-1"]},
        ],
        limits={"min_participants": 3, "max_rounds": 40, "model_families": ["DenseNet"], "countries": ["DE"]},
        consent_default="opt-out",
        legal_basis="Section 6 GDNG",
        share_metrics=False,
        partners={"keys": {}, "min_known": 0},
    )
    for sentence in [
        "The data may be used only until the named date: 31 December 2027.",
        "Condition DUO:0000099: unknown here, so a steward decides about every study.",
        "named diseases: cancer (DOID:162).",
        "named projects: st-1.",
        "A sum covers at least 3 hospitals.",
        "A study runs at most 40 rounds.",
        "Only these networks are trained: DenseNet.",
        "Only partners in these countries take part: DE.",
        "unless the patient has objected. Legal basis: Section 6 GDNG.",
        "stay here",
        "No partner has to be known",
    ]:
        assert sentence in other, sentence
    assert "no legal basis is named" in words(consent_default="opt-out")
    assert "No permission is stated" in words(permission=None, diseases=[])
    assert "DUO:0000046 is not a known permission" in words(permission="DUO:0000046", diseases=[])
    assert "kind of them." in words(diseases=["DOID:850", "DOID:162"])
