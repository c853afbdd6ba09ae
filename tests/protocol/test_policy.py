"""Policy against study: every cell of the table, the shared cases, and words that a doctor understands."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.duo import OBLIGATIONS, PERMISSIONS, TERMS, load_closure
from protocol.policy import Match, main, match, match_digest

VECTORS = Path(os.environ.get("VECTORS", "../shared/vectors")) / "duo_decisions.json"
ANCESTORS = {
    "DOID:10155": ["DOID:3119", "DOID:162", "DOID:4"],
    "DOID:162": ["DOID:4"],
    "DOID:9352": ["DOID:9351", "DOID:4"],
}
STUDY: dict[str, Any] = {
    "study_id": "st-18",
    "purpose": "disease",
    "diseases": ["DOID:10155"],
    "methods": False,
    "commercial": False,
    "all_non_profit": True,
    "genetic": False,
    "ethics": {"ref": "EK-1", "expires": "2028-01-01"},
    "countries": ["AT", "DE"],
    "institutions": ["Hospital A", "Hospital B"],
    "users": ["a.b"],
    "accepts": [],
    "end": "2027-06-30",
    "epsilon": 3,
    "min_cohort": 30,
    "min_participants": 3,
    "max_rounds": 20,
    "model_family": "DenseNet",
    "partners": ["site-1", "site-2"],
}
GONE = object()


def decide(permission: Any = "DUO:0000042", *modifiers: Any, study: Any = None, **policy: Any) -> Match:
    answers = {key: value for key, value in {**STUDY, **(study or {})}.items() if value is not GONE}
    return match({"permission": permission, "modifiers": list(modifiers), **policy}, answers, ANCESTORS)


def outcome(result: Match) -> tuple[str, list[str | None]]:
    return result.decision, result.reason_codes


def duo(number: int, **parameters: Any) -> dict[str, Any]:
    return {"code": f"DUO:{number:07}", **parameters}


PERMIT: tuple[str, list[str | None]] = ("PERMIT", [])


def denied(*codes: str | None) -> tuple[str, list[str | None]]:
    return "DENY", list(codes)


def review(*codes: str | None) -> tuple[str, list[str | None]]:
    return "REVIEW", list(codes)


@pytest.mark.skipif(not VECTORS.exists(), reason="the shared test vectors are not here (set VECTORS)")
def test_the_shared_cases_are_decided_as_expected() -> None:
    content = json.loads(VECTORS.read_text())
    for case in content["cases"]:
        result = match(case["policy"], case["study"], content["ancestors"])
        assert (case["name"], *outcome(result)) == (case["name"], case["expect"], case["reason_codes"])


@pytest.mark.parametrize(
    ("permission", "purpose", "expected"),
    [
        *((term, purpose, PERMIT) for term in ("4", "42") for purpose in ("general", "hmb", "disease", "poa")),
        ("6", "hmb", PERMIT),
        ("6", "disease", PERMIT),
        ("6", "general", denied("HMB")),
        ("6", "poa", denied("HMB")),
        ("7", "disease", PERMIT),
        ("7", "hmb", denied("DS")),
        ("7", "general", denied("DS")),
        ("7", "poa", denied("DS")),
        ("11", "poa", PERMIT),
        ("11", "hmb", denied("POA")),
        ("11", "general", denied("POA")),
        ("11", "disease", denied("POA")),
        *((term, wrong, denied(code)) for wrong in (GONE, None, "", "marketing", 1, ["hmb"]) for term, code in
          [("4", "NRES"), ("42", "GRU"), ("6", "HMB"), ("7", "DS"), ("11", "POA")]),
    ],
)  # fmt: skip
def test_each_permission_for_each_purpose(permission: str, purpose: Any, expected: Any) -> None:
    result = decide(f"DUO:{int(permission):07}", study={"purpose": purpose}, diseases=["DOID:162"])
    assert outcome(result) == expected


@pytest.mark.parametrize(
    ("permission", "code"),
    [(GONE, None), (None, None), ("", None), (42, None), ("DUO:0000099", "DUO:0000099"), ("HMB", "HMB"),
     ("DUO:0000021", "DUO:0000021"), ("duo:0000042", "duo:0000042")],
)  # fmt: skip
def test_no_permission_or_an_unknown_one_denies(permission: Any, code: str | None) -> None:
    policy = {} if permission is GONE else {"permission": permission}
    assert outcome(match(policy, STUDY, ANCESTORS)) == denied(code)


@pytest.mark.parametrize(
    ("allowed", "studied", "expected"),
    [
        (["DOID:162"], ["DOID:162"], PERMIT),
        (["DOID:162"], ["DOID:10155"], PERMIT),
        (["DOID:4"], ["DOID:10155", "DOID:9352"], PERMIT),
        (["DOID:162", "DOID:9351"], ["DOID:10155", "DOID:9352"], PERMIT),
        (["DOID:10155"], ["DOID:162"], denied("DS")),
        (["DOID:162"], ["DOID:9352"], denied("DS")),
        (["DOID:162"], ["DOID:10155", "DOID:9352"], denied("DS")),
        (["DOID:162"], ["DOID:77777"], review("DS")),
        (["DOID:162"], ["DOID:10155", "DOID:77777"], review("DS")),
        (["DOID:162"], ["DOID:9352", "DOID:77777"], denied("DS")),
        (["DOID:77777"], ["DOID:77777"], review("DS")),
        (["DOID:77777"], ["DOID:162"], review("DS")),
        (["DOID:77777", "DOID:162"], ["DOID:10155"], PERMIT),
        (["DOID:9351"], ["DOID:9352"], PERMIT),
        (["DOID:9351"], ["DOID:9351"], PERMIT),
        (["DOID:9352"], ["DOID:9351"], denied("DS")),
        (["DOID:162"], ["DOID:4"], denied("DS")),
        (["DOID:162"], ["DOID:3119"], review("DS")),
        (["DOID:162"], [], denied("DS")),
        (["DOID:162"], None, denied("DS")),
        (["DOID:162"], "DOID:10155", denied("DS")),
        (["DOID:162"], ["DOID:10155", 4], denied("DS")),
        ([], ["DOID:10155"], denied("DS")),
        (None, ["DOID:10155"], denied("DS")),
        ("DOID:162", ["DOID:10155"], denied("DS")),
    ],
)
def test_a_disease_dataset_serves_its_disease_and_what_is_under_it(allowed: Any, studied: Any, expected: Any) -> None:
    assert outcome(decide("DUO:0000007", study={"diseases": studied}, diseases=allowed)) == expected
    in_modifier = decide("DUO:0000042", duo(7, diseases=allowed), study={"diseases": studied})
    assert outcome(in_modifier) == expected


def test_methods_alone_are_no_disease_study_but_a_disease_study_may_develop_methods() -> None:
    only = decide("DUO:0000007", study={"purpose": "general", "methods": True, "diseases": []}, diseases=["DOID:162"])
    assert outcome(only) == denied("DS") and "develops methods" in only.reasons[0].sentence
    assert outcome(decide("DUO:0000007", study={"methods": True}, diseases=["DOID:162"])) == PERMIT


FLAGS = [
    (duo(15), "NMDS", {"methods": False}, "REVIEW"),
    (duo(15), "NMDS", {"methods": True}, "DENY"),
    (duo(44), "NPOA", {"purpose": "hmb"}, "PERMIT"),
    (duo(44), "NPOA", {"purpose": "general"}, "PERMIT"),
    (duo(44), "NPOA", {"purpose": "poa"}, "DENY"),
    (duo(46), "NCU", {"commercial": False}, "PERMIT"),
    (duo(46), "NCU", {"commercial": True}, "DENY"),
    (duo(46), "NCU", {"commercial": False, "all_non_profit": False}, "PERMIT"),
    (duo(45), "NPU", {"all_non_profit": True}, "PERMIT"),
    (duo(45), "NPU", {"all_non_profit": True, "commercial": True}, "PERMIT"),
    (duo(45), "NPU", {"all_non_profit": False}, "DENY"),
    (duo(18), "NPUNCU", {"all_non_profit": True, "commercial": False}, "PERMIT"),
    (duo(18), "NPUNCU", {"all_non_profit": False, "commercial": False}, "DENY"),
    (duo(18), "NPUNCU", {"all_non_profit": True, "commercial": True}, "DENY"),
    (duo(18), "NPUNCU", {"all_non_profit": False, "commercial": True}, "DENY"),
    (duo(16), "GSO", {"genetic": True}, "PERMIT"),
    (duo(16), "GSO", {"genetic": False}, "DENY"),
    *(
        (duo(number), code, {flag: wrong}, "DENY")
        for wrong in (GONE, None, "false", "true", 0, 1)
        for number, code, flag in [
            (15, "NMDS", "methods"),
            (46, "NCU", "commercial"),
            (45, "NPU", "all_non_profit"),
            (18, "NPUNCU", "all_non_profit"),
            (18, "NPUNCU", "commercial"),
            (16, "GSO", "genetic"),
        ]
    ),
]


@pytest.mark.parametrize(("modifier", "code", "study", "decision"), FLAGS)
def test_a_flag_must_prove_it_and_no_answer_denies(modifier: Any, code: str, study: Any, decision: str) -> None:
    expected = (decision, [] if decision == "PERMIT" else [code])
    assert outcome(decide("DUO:0000042", modifier, study=study)) == expected


def test_ancestry_without_a_purpose_is_denied_twice() -> None:
    assert outcome(decide("DUO:0000042", duo(44), study={"purpose": GONE})) == denied("GRU", "NPOA")


@pytest.mark.parametrize(
    ("ethics", "end", "decision"),
    [
        ({"ref": "EK", "expires": "2028-01-01"}, "2027-06-30", "PERMIT"),
        ({"ref": "EK", "expires": "2027-06-30"}, "2027-06-30", "PERMIT"),
        ({"ref": "EK", "expires": "2027-06-29"}, "2027-06-30", "DENY"),
        ({"ref": "EK"}, "2027-06-30", "DENY"),
        ({"ref": "EK", "expires": None}, "2027-06-30", "DENY"),
        ({"ref": "EK", "expires": "2028"}, "2027-06-30", "DENY"),
        ({"ref": "EK", "expires": "2028-13-01"}, "2027-06-30", "DENY"),
        ({"ref": "EK", "expires": 20280101}, "2027-06-30", "DENY"),
        ({"ref": "", "expires": "2028-01-01"}, "2027-06-30", "DENY"),
        ({"ref": " ", "expires": "2028-01-01"}, "2027-06-30", "DENY"),
        ({"expires": "2028-01-01"}, "2027-06-30", "DENY"),
        ({"ref": "EK", "expires": "2028-01-01"}, GONE, "DENY"),
        (None, "2027-06-30", "DENY"),
        (GONE, "2027-06-30", "DENY"),
        (True, "2027-06-30", "DENY"),
        ("EK", "2027-06-30", "DENY"),
    ],
)
def test_ethics_approval_must_be_attached_and_last_to_the_end(ethics: Any, end: Any, decision: str) -> None:
    result = decide("DUO:0000006", duo(21), study={"ethics": ethics, "end": end})
    assert outcome(result) == (decision, [] if decision == "PERMIT" else ["IRB"])


@pytest.mark.parametrize(
    ("number", "code", "name", "answer"),
    [(22, "GS", "countries", "countries"), (28, "IS", "institutions", "institutions"), (26, "US", "users", "users")],
)
def test_a_list_must_hold_all_that_the_study_names(number: int, code: str, name: str, answer: str) -> None:
    for allowed, asked, decision in [
        (["A", "B"], ["A"], "PERMIT"),
        (["A", "B"], ["A", "B"], "PERMIT"),
        (["A"], ["A", "B"], "DENY"),
        (["A"], ["B"], "DENY"),
        (["A"], ["a"], "DENY"),
        (["A"], [], "DENY"),
        (["A"], GONE, "DENY"),
        (["A"], None, "DENY"),
        (["A"], "A", "DENY"),
        (["A"], ["A", None], "DENY"),
        ([], ["A"], "DENY"),
        (None, ["A"], "DENY"),
        ("A", ["A"], "DENY"),
    ]:
        result = decide("DUO:0000042", duo(number, **{name: allowed}), study={answer: asked})
        assert outcome(result) == (decision, [] if decision == "PERMIT" else [code]), (allowed, asked)
    assert outcome(decide("DUO:0000042", duo(number))) == denied(code)


@pytest.mark.parametrize(
    ("projects", "study", "decision"),
    [(["st-18"], "st-18", "PERMIT"), (["st-17", "st-18"], "st-18", "PERMIT"), (["st-17"], "st-18", "DENY"),
     (["st-18"], GONE, "DENY"), (["st-18"], None, "DENY"), (["st-18"], "", "DENY"), ([], "st-18", "DENY"),
     (None, "st-18", "DENY"), ("st-18", "st-18", "DENY")],
)  # fmt: skip
def test_a_project_must_be_on_the_list(projects: Any, study: Any, decision: str) -> None:
    result = decide("DUO:0000006", duo(27, projects=projects), study={"study_id": study})
    assert outcome(result) == (decision, [] if decision == "PERMIT" else ["PS"])


@pytest.mark.parametrize(
    ("until", "end", "decision"),
    [("2027-06-30", "2027-06-30", "PERMIT"), ("2027-07-01", "2027-06-30", "PERMIT"), ("2027-06-29", "2027-06-30", "DENY"),
     ("2027-06-30", GONE, "DENY"), ("2027-06-30", "June", "DENY"), (None, "2027-06-30", "DENY"),
     ("20270630", "2027-06-30", "DENY"),
     ("2027-W26-3", "2027-06-30", "DENY")],
)  # fmt: skip
def test_a_time_limit_includes_its_last_day(until: Any, end: Any, decision: str) -> None:
    result = decide("DUO:0000006", duo(25, until=until), study={"end": end})
    assert outcome(result) == (decision, [] if decision == "PERMIT" else ["TS"])


@pytest.mark.parametrize(("number", "code"), [(19, "PUB"), (20, "COL"), (29, "RTN"), (24, "MOR")])
def test_an_obligation_must_be_accepted_and_is_then_owed(number: int, code: str) -> None:
    modifier = duo(number, until="2028-01-01")
    for accepts, decision in [
        ([f"DUO:{number:07}"], "PERMIT"),
        ([code], "PERMIT"),
        (["DUO:0000099", f"DUO:{number:07}"], "PERMIT"),
        (["DUO:0000043"], "DENY"),
        ([], "DENY"),
        (GONE, "DENY"),
        (None, "DENY"),
        (True, "DENY"),
        (f"DUO:{number:07}", "DENY"),
    ]:
        result = decide("DUO:0000042", modifier, study={"accepts": accepts})
        assert outcome(result) == (decision, [] if decision == "PERMIT" else [code]), accepts
        assert [owed.code for owed in result.obligations] == ([code] if decision == "PERMIT" else [])


def test_a_moratorium_needs_its_date() -> None:
    accepts = {"accepts": ["DUO:0000024"]}
    assert outcome(decide("DUO:0000042", duo(24), study=accepts)) == denied("MOR")
    dated = decide("DUO:0000042", duo(24, until="2028-01-01"), study=accepts)
    assert dated.obligations[0].sentence == "Nothing may be published before 1 January 2028."


def test_clinical_use_adds_and_never_denies() -> None:
    assert outcome(decide("DUO:0000006", duo(43))) == PERMIT
    assert outcome(decide("DUO:0000006", duo(43), study={"purpose": "general"})) == denied("HMB")


def test_what_only_a_person_can_judge_goes_to_review() -> None:
    assert outcome(decide("DUO:0000042", duo(12))) == review("RS")
    assert outcome(decide("DUO:0000042", duo(99), duo(12), duo(98))) == review("DUO:0000099", "RS", "DUO:0000098")
    assert outcome(decide("DUO:0000042", {"code": "NCU"})) == review("NCU")


@pytest.mark.parametrize(
    "modifier", [{}, {"code": None}, {"code": ""}, {"code": 46}, "DUO:0000046", None, ["DUO:0000046"]]
)
def test_a_modifier_that_names_no_term_denies(modifier: Any) -> None:
    assert outcome(decide("DUO:0000042", modifier)) == denied(None)


@pytest.mark.parametrize("modifiers", ["DUO:0000046", {"code": "DUO:0000046"}, 1])
def test_modifiers_that_are_no_list_deny(modifiers: Any) -> None:
    assert outcome(match({"permission": "DUO:0000042", "modifiers": modifiers}, STUDY, ANCESTORS)) == denied(None)


def test_no_modifiers_are_none() -> None:
    assert outcome(match({"permission": "DUO:0000042"}, STUDY, ANCESTORS)) == PERMIT
    assert outcome(match({"permission": "DUO:0000042", "modifiers": None, "limits": None}, STUDY, ANCESTORS)) == PERMIT


def test_a_permission_among_the_modifiers_narrows() -> None:
    assert outcome(decide("DUO:0000042", duo(6), study={"purpose": "general"})) == denied("HMB")
    assert outcome(decide("DUO:0000042", duo(4))) == PERMIT


LIMITS = [
    ("epsilon_max", "epsilon", "epsilon", 3, [3, 2.5, 0], [3.1, 8, -1, None, GONE, "3", True, float("nan"), float("inf")]),
    ("min_cohort", "min_cohort", "min_cohort", 30, [30, 31], [29, None, GONE, "30", True]),
    ("min_participants", "min_participants", "min_participants", 3, [3, 4], [2, None, GONE]),
    ("max_rounds", "max_rounds", "max_rounds", 20, [20, 1], [21, None, GONE]),
    ("model_families", "model_family", "model_families", ["DenseNet"], ["DenseNet"], ["UNet", "", None, GONE, ["DenseNet"]]),
    ("partners", "partners", "partners", ["a", "b"], [["a"], ["b", "a"]], [["a", "c"], [], None, GONE, "a"]),
    ("countries", "countries", "countries", ["DE"], [["DE"]], [["DE", "AT"], [], GONE]),
    ("expires", "end", "expires", "2027-06-30", ["2027-06-30", "2027-01-01"], ["2027-07-01", GONE, "soon"]),
]  # fmt: skip


@pytest.mark.parametrize(("limit", "answer", "code", "value", "within", "beyond"), LIMITS)
def test_a_local_limit_permits_within_and_denies_beyond(
    limit: str, answer: str, code: str, value: Any, within: list[Any], beyond: list[Any]
) -> None:
    for stated in within:
        assert outcome(decide(study={answer: stated}, limits={limit: value})) == PERMIT, stated
    for stated in beyond:
        result = decide(study={answer: stated}, limits={limit: value})
        assert outcome(result) == denied(f"LOCAL.{code}"), stated
    for unreadable in ({"a": 1}, [], "x" if not isinstance(value, list) else 7):
        assert outcome(decide(study={answer: within[0]}, limits={limit: unreadable})) == denied(f"LOCAL.{code}")
    assert outcome(decide(study={answer: GONE if answer != "end" else within[0]}, limits={limit: None})) == PERMIT


def test_limits_that_cannot_be_read_deny() -> None:
    assert outcome(decide(limits=[1])) == denied("LOCAL")
    assert outcome(decide(limits={"phase_of_moon": "full", "other": None})) == denied("LOCAL.phase_of_moon")


def test_on_deny_only_the_denying_reasons_are_named_and_no_obligation() -> None:
    result = decide(
        "DUO:0000006",
        duo(12), duo(46), duo(19), duo(22, countries=["FR"]), duo(46),
        study={"commercial": True, "accepts": ["DUO:0000019"]},
        limits={"max_rounds": 3},
    )  # fmt: skip
    assert outcome(result) == denied("NCU", "GS", "LOCAL.max_rounds")
    assert len(result.reasons) == 4 and result.obligations == ()


def test_a_review_keeps_its_obligations_apart_from_its_reasons() -> None:
    result = decide("DUO:0000042", duo(12), duo(20), study={"accepts": ["DUO:0000020"]})
    assert outcome(result) == review("RS")
    assert [owed.code for owed in result.obligations] == ["COL"]


def test_the_strictest_of_any_two_modifiers_decides() -> None:
    kinds = {"PERMIT": (duo(43), []), "REVIEW": (duo(12), ["RS"]), "DENY": (duo(16), ["GSO"])}
    order = ["PERMIT", "REVIEW", "DENY"]
    for first, second in itertools.product(kinds, repeat=2):
        expected = max(first, second, key=order.index)
        result = decide("DUO:0000042", kinds[first][0], kinds[second][0])
        assert outcome(result) == (expected, kinds[expected][1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MODIFIERS = st.lists(
    st.fixed_dictionaries(
        {"code": st.sampled_from([*TERMS, "DUO:0000099"])},
        optional=dict.fromkeys(("countries", "until", "projects", "users", "institutions", "diseases"), JSON),
    ),
    max_size=4,
)
ANSWERS = st.fixed_dictionaries({}, optional={name: st.just(value) | JSON for name, value in STUDY.items()})
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "permission": st.sampled_from(sorted(PERMISSIONS)) | JSON,
        "modifiers": MODIFIERS | JSON,
        "diseases": JSON,
        "limits": st.dictionaries(st.sampled_from([row[0] for row in LIMITS]) | st.text(max_size=5), JSON, max_size=4)
        | JSON,
    },
)


@given(POLICIES, ANSWERS)
def test_whatever_comes_is_decided_with_reasons_in_words(policy: dict[str, Any], study: dict[str, Any]) -> None:
    result = match(policy, study, ANCESTORS)
    assert result.decision in ("PERMIT", "REVIEW", "DENY")
    assert bool(result.reasons) == (result.decision != "PERMIT")
    for reason in result.reasons:
        assert reason.sentence.endswith(".") and reason.change.endswith(".")
    assert match_digest(result) == match_digest(match(policy, study, ANCESTORS))


@given(MODIFIERS, ANSWERS, st.sampled_from(sorted(STUDY)))
def test_leaving_an_answer_out_never_makes_a_decision_milder(
    modifiers: Any, study: dict[str, Any], answer: str
) -> None:
    order = ["PERMIT", "REVIEW", "DENY"]
    policy = {"permission": "DUO:0000007", "diseases": ["DOID:162"], "modifiers": modifiers}
    fewer = {key: value for key, value in study.items() if key != answer}
    before, after = match(policy, study, ANCESTORS), match(policy, fewer, ANCESTORS)
    assert order.index(after.decision) >= order.index(before.decision)


@given(MODIFIERS, MODIFIERS, ANSWERS)
def test_another_condition_never_makes_a_decision_milder(first: Any, second: Any, study: dict[str, Any]) -> None:
    order = ["PERMIT", "REVIEW", "DENY"]
    one = match({"permission": "DUO:0000042", "modifiers": first}, study, ANCESTORS)
    both = match({"permission": "DUO:0000042", "modifiers": first + second}, study, ANCESTORS)
    assert order.index(both.decision) >= order.index(one.decision)


def test_the_sentences_name_the_diseases() -> None:
    study = {**STUDY, "diseases": ["DOID:9352"]}
    result = match({"permission": "DUO:0000007", "diseases": ["DOID:162"]}, study, load_closure())
    assert result.reasons[0].sentence == (
        "This dataset may be used only for research on cancer (DOID:162). "
        "Type 2 diabetes mellitus (DOID:9352) is not a kind of it."
    )
    several = match({"permission": "DUO:0000007", "diseases": ["DOID:552"]}, {**study, "diseases": ["DOID:4", "DOID:162"]},
                    load_closure())  # fmt: skip
    assert "cancer (DOID:162) and disease (DOID:4) are not kinds of it." in several.reasons[0].sentence.lower().replace(
        "doid", "DOID"
    )


def test_the_digest_follows_the_decision_not_the_wording() -> None:
    permit, owing = decide(), decide("DUO:0000042", duo(19), study={"accepts": ["DUO:0000019"]})
    digests = {
        match_digest(permit),
        match_digest(owing),
        match_digest(decide("DUO:0000042", duo(12))),
        match_digest(decide(None)),
    }
    assert len(digests) == 4
    assert match_digest(permit) == "sha256:253125bca719489d21f72d09d56a710165d2d6b1860e0e8d6689ba08722740af"


def test_every_term_of_the_table_can_be_judged() -> None:
    for term in TERMS:
        if term not in PERMISSIONS:
            assert decide("DUO:0000042", {"code": term}).decision in ("PERMIT", "REVIEW", "DENY")
    assert set(TERMS) > OBLIGATIONS


def test_the_command_prints_one_object_a_case(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    cases = [
        {"name": "open", "policy": {"permission": "DUO:0000042"}, "study": STUDY},
        {"name": "closed", "policy": {"permission": None}, "study": STUDY},
        {"policy": 1},
    ]
    file.write_text(json.dumps({"ancestors": ANCESTORS, "cases": cases}))
    done = subprocess.run(
        [sys.executable, "-m", "protocol.policy", "--cases", str(file), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"name": "open", "decision": "PERMIT", "reason_codes": []},
        {"name": "closed", "decision": "DENY", "reason_codes": [None]},
        {"name": "case 3", "decision": "DENY", "reason_codes": [None]},
    ]


def test_the_command_ends_with_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cases.json"
    file.write_text('{"cases": [{"name": "closed", "policy": {}, "study": {}}]}')
    monkeypatch.setattr(sys, "argv", ["protocol.policy", "--cases", str(file), "--json"])
    monkeypatch.delitem(sys.modules, "protocol.policy")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("protocol.policy", run_name="__main__")
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"name": "closed", "decision": "DENY", "reason_codes": [None]}


def test_the_command_speaks_in_words_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cases.json"
    policy = {"permission": "DUO:0000042", "modifiers": [duo(20), duo(12)]}
    study = {**STUDY, "accepts": ["COL"]}
    file.write_text(json.dumps([{"policy": policy, "study": study}, {"policy": {}, "study": {}}, "not a case"]))
    assert main(["--cases", str(file)]) == 0
    text = capsys.readouterr().out
    assert "REVIEW  case 1" in text and "RS: The hospital has further" in text and "collaboration required: " in text
    assert "no permission: This hospital has stated no permission" in text


@pytest.mark.parametrize("content", ["{}", "nonsense", '{"cases": 1}', "1"])
def test_a_file_without_cases_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cases.json"
    file.write_text(content)
    assert main(["--cases", str(file)]) == 2
    assert main(["--cases", str(tmp_path / "missing.json")]) == 2
    assert "cannot read cases" in capsys.readouterr().err
