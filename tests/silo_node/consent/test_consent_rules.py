"""The rules of consent: the shared cases, cases of our own by rule, and properties against a slow reference."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from silo_node.consent import cases, fhir
from silo_node.consent.rules import SENTENCES, Decision, Query, decide
from tests.silo_node.consent.fhir_examples import LONG, MII, REASON, USE, concept, consent, gics, mii, pcf, purpose

VECTORS = (
    Path(os.environ.get("VECTORS", Path(__file__).parents[3].parent / "shared" / "vectors")) / "consent_decisions.json"
)
QUERY = Query(frozenset({(MII, USE)}), frozenset({(REASON, "HRESCH")}))
NOW = datetime(2026, 11, 23, tzinfo=UTC)
OTHER = concept("2.16.840.1.113883.3.1937.777.24.5.3.37")
OLD, NEW, LAST = "2023-04-27", "2026-05-01T00:00:00Z", "2026-10-01T10:00:00+02:00"


def say(*bodies: Any, opt_out: bool = False, default: bool = False, now: datetime = NOW) -> Decision:
    return decide([fhir.parse(body) for body in bodies], opt_out, QUERY, now, default)


def code(*bodies: Any, **more: Any) -> str:
    found = say(*bodies, **more)
    assert found.permit == (found.code in ("PERMITTED", "DEFAULT_PERMIT"))
    assert found.sentence == SENTENCES[found.code]
    return found.code


def test_the_shared_cases_all_come_out_as_they_should():
    if not VECTORS.is_file():
        pytest.skip(f"no vectors at {VECTORS}; set VECTORS")
    found = cases.answers(VECTORS)
    assert len(found) >= 11
    assert [answer.name for answer in found if answer.differs or answer.expect is None] == []


@pytest.mark.parametrize(
    "provision", [gics(), mii(), pcf(), {"provision": [gics()]}, mii(gics(), {"type": "deny", "code": [OTHER]})]
)
def test_each_dialect_permits(provision):
    assert code(consent(provision)) == "PERMITTED"


@pytest.mark.parametrize(
    ("provision", "expected"),
    [
        (gics("deny"), "DENIED"),
        (mii(gics("deny")), "DENIED"),
        (pcf("deny"), "DENIED"),
        (mii({"type": "permit", "code": [OTHER]}), "DENIED"),
        (mii(gics(), gics("deny")), "DENIED"),
        (gics(provision=[{"type": "deny"}]), "DENIED"),
        (gics(provision=[{"type": "deny", "actor": [{"role": {"text": "a company"}}]}]), "DENIED"),
        ({"type": "deny", "period": {"end": "2024"}}, "DENIED"),
        ({"type": "permit"}, "NOT_NAMED"),
        ({"type": "permit", "provision": [{"type": "permit", "code": [OTHER]}]}, "NOT_NAMED"),
        ({"code": [concept()]}, "NOT_NAMED"),
        (gics(purpose=[purpose("TREAT")]), "NOT_NAMED"),
        (pcf(code=[OTHER]), "NOT_NAMED"),
        ({"type": "permit", "code": [OTHER], "provision": [gics()]}, "NOT_NAMED"),
        (gics(actor=[{"role": {"text": "somebody"}}]), "NARROWED"),
        (pcf(action=[concept("collect", "http://terminology.hl7.org/CodeSystem/consentaction")]), "NARROWED"),
        (gics(securityLabel=[{"code": "R"}]), "NARROWED"),
        (gics(**{"class": [{"code": "CT"}]}), "NARROWED"),
        (gics(dataPeriod={"end": "2020"}), "NARROWED"),
        (gics(data=[{"meaning": "instance"}]), "NARROWED"),
        (gics(invented="by somebody"), "NARROWED"),
        (mii(actor=[{}]), "NARROWED"),
        (gics(period={"start": "2027"}), "PERIOD"),
        (gics(period={"end": "2026-11-22"}), "PERIOD"),
        (mii(period={"end": "2025-01-01"}), "PERIOD"),
        (None, "NOT_NAMED"),
    ],
)  # fmt: skip
def test_the_newest_consent_does_not_permit(provision, expected):
    body = consent(provision)
    assert code(body) == expected
    assert code(body, default=True) == expected


def test_a_period_ends_with_the_last_moment_that_it_names():
    body = consent(gics(period={"start": "2026-11", "end": "2026-11-23"}))
    end = datetime(2026, 11, 24, tzinfo=UTC)
    assert code(body, now=end - timedelta(microseconds=1)) == "PERMITTED"
    assert code(body, now=end) == "PERIOD"
    assert code(body, now=datetime(2026, 10, 31, 23, 59, tzinfo=UTC)) == "PERIOD"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "rejected"}, "REJECTED"),
        ({"status": "inactive"}, "INACTIVE"),
        ({"status": "inactive", "provision": None}, "INACTIVE"),
        ({"status": "proposed"}, "NOT_ACTIVE"),
        ({"status": "granted"}, "UNREADABLE"),
        ({"status": None}, "UNREADABLE"),
        ({"status": ["active"]}, "UNREADABLE"),
        ({"implicitRules": "http://example.org/rules"}, "MODIFIER"),
        ({"modifierExtension": []}, "MODIFIER"),
        ({"verification": [{"verified": True, "modifierExtension": [{"url": "x"}]}]}, "MODIFIER"),
        ({"provision": mii(gics(modifierExtension=[{"url": "x"}]))}, "MODIFIER"),
        ({"dateTime": "2026-11-24"}, "FUTURE"),
        ({"status": "draft"}, "DEFAULT_DENY"),
        ({"status": "entered-in-error"}, "DEFAULT_DENY"),
        ({"provision": {"type": "permit", "code": [OTHER]}}, "DEFAULT_DENY"),
        ({"provision": {"type": "deny", "code": [OTHER]}}, "DEFAULT_DENY"),
    ],
)
def test_what_a_consent_is_besides_its_provision(changes, expected):
    assert code(consent(gics(), **changes)) == expected
    assert code(consent(gics(), date=OLD), consent(gics(), **{"dateTime": LAST, **changes})) == (
        "PERMITTED" if expected == "DEFAULT_DENY" else expected
    )


def test_a_consent_without_a_date_is_never_the_newest_for_sure():
    undated = consent(gics(), dateTime=None)
    assert code(undated) == "UNDATED"
    assert code(undated, consent(gics(), date=NEW)) == "TIE"


def test_the_newest_wins_in_any_order_and_zone():
    no, yes = consent(gics("deny"), date="2026-10-01T09:59:00+00:00"), consent(gics(), date="2026-10-01T12:00:00+02:00")
    assert code(no, yes) == code(yes, no) == "PERMITTED"
    assert code(consent(gics("deny"), date="2026-10-01T10:01:00Z"), yes) == "DENIED"


@pytest.mark.parametrize("date", [LAST, "2026-10-01", "2026-10", "2026"])
def test_two_that_may_be_the_newest_are_a_tie(date):
    assert code(consent(gics(), date=LAST), consent(gics(), date=date, id="another")) == "TIE"


def test_an_older_tie_does_not_matter():
    assert code(consent(gics(), date=OLD), consent(gics("deny"), date=OLD), consent(gics(), date=NEW)) == "PERMITTED"


def test_the_opt_out_list_beats_all():
    assert code(consent(gics(), date=LAST), opt_out=True, default=True) == "OPTED_OUT"


def test_without_a_record_the_default_decides():
    assert (code(), code(default=True)) == ("DEFAULT_DENY", "DEFAULT_PERMIT")


def test_the_same_code_of_another_system_is_another_code():
    assert code(consent(gics(code=[concept(system="urn:oid:1.2.3")]))) == "DEFAULT_DENY"
    assert code(consent(gics(code=[{"coding": [{"code": USE}]}]))) == "DEFAULT_DENY"
    assert code(consent(gics(code=[{"text": "research"}]))) == "DEFAULT_DENY"


def test_asking_for_nothing_is_refused():
    with pytest.raises(ValueError, match="needs a code or a purpose"):
        Query(frozenset(), frozenset())


WRONG = [
    {"provision": []},
    {"provision": "permit"},
    {"provision": {"type": "allow"}},
    {"provision": {"type": ["permit"], "code": [concept()]}},
    {"provision": mii({"code": [concept()]})},
    {"provision": gics(code={})},
    {"provision": gics(code=[])},
    {"provision": gics(code=[USE])},
    {"provision": gics(code=[{"coding": {"code": USE}}])},
    {"provision": gics(code=[{"coding": [{"system": MII, "code": 8}]}])},
    {"provision": gics(code=[{"coding": ["x"]}])},
    {"provision": gics(purpose="HRESCH")},
    {"provision": gics(period="2023")},
    {"provision": gics(period={"end": "soon"})},
    {"provision": gics(period={"end": None})},
    {"provision": gics(provision=[3])},
    {"provision": gics(provision={})},
    {"dateTime": "27.04.2023"},
    {"dateTime": 2023},
    {"dateTime": "2023-02-30"},
    {"dateTime": "2023-04-27T00:00:00"},
    {"dateTime": "0000"},
    {"dateTime": "0001-01-01T00:00:00+14:00"},
    {"patient": None},
    {"patient": "Patient/1"},
    {"patient": {"reference": 1}},
    {"patient": {"display": "somebody"}},
]


@pytest.mark.parametrize("changes", WRONG)
def test_what_does_not_fit_is_a_denial_not_an_error(changes):
    record = fhir.parse({**consent(gics()), **changes})
    assert record.fault is not None
    assert decide([record], False, QUERY, NOW, True).permit is False


def test_provisions_nested_too_deep_are_a_denial():
    provision = gics()
    for _ in range(8):
        provision = {"type": "permit", "provision": [provision]}
    assert code(consent(provision)) == "UNREADABLE"
    assert code(consent(provision["provision"][0])) == "PERMITTED"


def test_what_a_silo_keeps_says_the_same_and_no_name():
    for body in (consent(gics()), consent(mii(), modifierExtension=[{"url": "x"}]), consent(pcf(), implicitRules="x")):
        full = {
            **body,
            "performer": [{"display": "Erika Musterfrau"}],
            "patient": {**body["patient"], "display": "Erika"},
        }
        kept = fhir.reduced(full)
        assert "Erika" not in json.dumps(kept)
        assert fhir.parse(kept) == fhir.parse(full)


def test_cases_say_what_is_wrong_with_them(tmp_path):
    from silo_node.errors import UsageError

    path = tmp_path / "cases.json"
    for content, words in (
        ("{", "is not JSON"),
        ("[]", "no list `cases`"),
        ('{"cases": [{}]}', "case 1: needs consents"),
        ('{"cases": [5]}', "case 1: needs consents"),
        ('{"cases": [{"consents": 5}]}', "case 1: needs consents"),
        ('{"query": {}, "now": "2026-11-23", "cases": [{"consents": [5]}]}', "case 1: needs consents"),
        ('{"query": 5, "now": "2026-11-23", "cases": [{"consents": []}]}', "case 1: needs consents"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError, match=words):
            cases.answers(path)
    with pytest.raises(UsageError, match="No such file"):
        cases.answers(tmp_path / "none.json")


def test_a_case_with_somebody_elses_consent_is_not_about_them(tmp_path):
    query = {"codes": [[MII, USE]]}
    other = {"name": "other", "consents": [consent(gics(), "2")], "opt_out": []}
    own = {"name": "own", "consents": [consent(gics())], "opt_out": []}
    content = {
        "query": query,
        "now": "2026-11-23T00:00:00Z",
        "cases": [own, own, other, {**other, "patient": "Patient/2"}],
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({**content, "cases": [*content["cases"], own]}))
    assert [answer.decision.permit for answer in cases.answers(path)] == [True, True, False, True, True]
    path.write_text(json.dumps({**content, "cases": [own, other]}))
    assert [answer.decision.permit for answer in cases.answers(path)] == [True, True]


# ---- properties: against a reference that is slow and obvious

DATES = [
    "2024",
    "2025-01-01",
    "2025-01-01T00:00:00Z",
    "2025-06-01T00:00:00+02:00",
    "2026-11-22T00:00:00Z",
    "2027-01-01",
]
levels = st.fixed_dictionaries(
    {"type": st.sampled_from(["permit", "deny"])},
    optional={
        "code": st.lists(st.sampled_from([concept(), OTHER]), min_size=1, max_size=2),
        "purpose": st.lists(st.sampled_from([purpose(), purpose("TREAT")]), min_size=1, max_size=2),
        "period": st.sampled_from([LONG, {"end": "2025"}, {"start": "2027-01-01"}, {}]),
        "actor": st.just([{}]),
    },
)


def with_nested(inner: Any) -> Any:
    return st.builds(
        lambda level, nested: {**level, "provision": nested}, levels, st.lists(inner, min_size=1, max_size=3)
    )


provisions = st.recursive(levels, with_nested, max_leaves=5)
bodies = st.builds(
    lambda provision, date, status, extra: consent(provision, date=date, status=status, id=None, **extra),
    provisions,
    st.sampled_from(DATES),
    st.sampled_from(["active"] * 6 + ["rejected", "inactive", "draft", "entered-in-error", "proposed"]),
    st.sampled_from([{}] * 5 + [{"modifierExtension": [{"url": "x"}]}]),
)


def span(date: str) -> tuple[datetime, datetime]:
    table = {
        "2024": ("2024-01-01T00:00:00+00:00", "2024-12-31T23:59:59.999999+00:00"),
        "2025-01-01": ("2025-01-01T00:00:00+00:00", "2025-01-01T23:59:59.999999+00:00"),
        "2027-01-01": ("2027-01-01T00:00:00+00:00", "2027-01-01T23:59:59.999999+00:00"),
    }
    first, last = table.get(date, (date, date))
    return datetime.fromisoformat(first.replace("Z", "+00:00")), datetime.fromisoformat(last.replace("Z", "+00:00"))


def wanted(level: dict[str, Any]) -> bool:
    return concept() in level.get("code", []) or purpose() in level.get("purpose", [])


def paths(level: dict[str, Any], above: tuple[dict[str, Any], ...] = ()) -> list[tuple[dict[str, Any], ...]]:
    here = (*above, level)
    return [here] + [path for each in level.get("provision", []) for path in paths(each, here)]


def speaks(path: tuple[dict[str, Any], ...]) -> bool:
    level = path[-1]
    return wanted(level) or (level["type"] == "deny" and "code" not in level and "purpose" not in level)


def covers(level: dict[str, Any]) -> bool:
    named = ("code" not in level or concept() in level["code"]) and (
        "purpose" not in level or purpose() in level["purpose"]
    )
    return named and "actor" not in level and level.get("period", {}) in (LONG, {})


def reference(found: list[dict[str, Any]], opt_out: bool, default: bool) -> bool:
    if opt_out:
        return False
    counted = [
        body
        for body in found
        if body["status"] not in ("draft", "entered-in-error")
        and (
            "modifierExtension" in body
            or ("code" not in body["provision"] and "purpose" not in body["provision"])
            or any(wanted(path[-1]) for path in paths(body["provision"]))
        )
    ]
    if not counted:
        return default
    newest = [
        body for body in counted if all(span(body["dateTime"])[1] >= span(other["dateTime"])[0] for other in counted)
    ]
    if len(newest) != 1:
        return False
    body = newest[0]
    if body["status"] != "active" or "modifierExtension" in body or span(body["dateTime"])[0] > NOW:
        return False
    said = [path for path in paths(body["provision"]) if speaks(path)]
    # The deepest levels that speak are the exceptions; those above them no longer count.
    deepest = [
        path for path in said if not any(other[: len(path)] == path and len(other) > len(path) for other in said)
    ]
    if not deepest or any(path[-1]["type"] == "deny" for path in deepest):
        return False
    return any(all(map(covers, path)) for path in deepest)


@settings(max_examples=400, deadline=None)
@given(st.lists(bodies, max_size=4), st.booleans(), st.booleans())
def test_the_rules_are_those_of_the_slow_reference(found, opt_out, default):
    assert say(*found, opt_out=opt_out, default=default).permit == reference(found, opt_out, default)


@settings(max_examples=200, deadline=None)
@given(st.lists(bodies, max_size=4), st.randoms())
def test_the_order_of_records_never_matters(found, random):
    before = say(*found)
    random.shuffle(found)
    after = say(*found)
    assert (before.permit, before.code) == (after.permit, after.code)


@settings(max_examples=200, deadline=None)
@given(st.lists(bodies, max_size=3))
def test_a_newer_refusal_always_ends_it(found):
    assert not say(*found, consent(None, date="2026-11-22T23:00:00Z", status="rejected"), default=True).permit


KEYS = ["type", "code", "coding", "system", "provision", "period", "start", "purpose"]
WORDS = ["permit", "deny", "active", MII, USE]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["status", "dateTime", "patient", "provision", "modifierExtension"]), json_values)
)
def test_no_json_makes_the_reader_raise(body):
    assert isinstance(say(body).permit, bool)
    assert fhir.parse(fhir.reduced(body)) == fhir.parse(body)


def test_what_stands_beside_consents_in_a_case_costs_that_case_at_most(tmp_path):
    """A Bundle is looked into, other resources say nothing, and what is no resource may be a refusal."""
    good = consent(gics())
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": good}]}
    holds = {
        "plain": [good],
        "bundle": [bundle],
        "patient": [{"resourceType": "Patient", "id": "1"}, {"resourceType": "Provenance"}, good],
        "null": [good, None],
        "text": ["Consent"],
        "no entries": [{**bundle, "entry": 5}],
        "an entry that is none": [{**bundle, "entry": [*bundle["entry"], 5]}],
        "no name of a resource": [good, {**good, "resourceType": 5}],
    }
    path = tmp_path / "cases.json"
    made = [{"name": name, "consents": consents, "opt_out": []} for name, consents in holds.items()]
    path.write_text(
        json.dumps(
            {"query": {"codes": [[MII, USE]]}, "now": "2026-11-23T00:00:00Z", "default": "PERMIT", "cases": made}
        )
    )
    found = {answer.name: answer.decision.permit for answer in cases.answers(path)}
    assert list(found) == list(holds)
    assert [name for name, permit in found.items() if permit] == ["plain", "bundle", "patient"]
