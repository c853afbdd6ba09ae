"""`silo run` in a study of many, against a small portal over HTTP: whole studies, kill -9 at each step, a portal that lies."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from protocol.secure_aggregation.sparse import Leaf
from protocol.signing import keyid
from silo_node.rounds.many_runner import ManyRunner
from silo_node.steward.pauses import OTHER_LIST, Pause
from silo_node.steward.resumes import risk
from tests.silo_node.portal_double import PortalDouble

N = 8
STEPS = ("keys", "row", "bundles", "ready", "update/0", "update", "list", "unmask", "nonce", "sum", "check", "state")


@pytest.fixture
def portal():
    double = PortalDouble(partners=N - 1, rounds=1)
    yield double
    double.close()


@pytest.fixture
def many(silo, portal):
    """A silo that approved a study of eight, in which each draws five."""
    portal.partner_word = 1
    portal.make_study(aggregation={"fraction_bits": 9, "sparse_from": N})
    silo.decide()
    return silo


def body_of(portal, number):
    return set(np.frombuffer(b"".join(portal.sums[number][:-1]), dtype="<i4").tolist())


def test_a_study_of_many_runs_from_the_first_model_to_the_evaluation(many, portal):
    many.start()
    portal.begin()
    portal.wait(lambda: portal.finished(2))
    assert portal.refused() == []
    assert body_of(portal, 1) <= {N - 1, N}  # the constant trainer's half a unit, rounded by chance
    assert portal.round(1).members == sorted(portal.round(1).parameters.participants)
    lines = many.until(lambda: (p := many.folder / "rounds.jsonl").exists() and p.read_text().count("\n") >= 2 and p)
    rounds = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(line["round"], line["outcome"], line["verified"]) for line in rounds[:2]] == [
        (0, "finished", None),
        (1, "finished", True),
    ]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_a_round_of_many_it_goes_on_with_the_same_bytes(many, portal, step):
    """The portal gets the message, the silo dies before it hears so; `sum` dies while it fetches."""
    many.dies_and_goes_on(step)
    assert body_of(portal, 1) <= {N - 1, N}
    assert portal.round(1).members == sorted(portal.round(1).parameters.participants)


def test_nothing_secret_of_a_round_of_many_is_left(many, portal):
    many.start()
    portal.begin()
    portal.wait(lambda: portal.finished(2))
    many.until(lambda: (many.folder / "rounds.jsonl").read_text().count("\n") >= 3)
    many.close()
    node = many.node()
    left = [key for key in node.journal.keys("round/") if key.split("/")[2] in ("0", "1", "2")]
    node.close()
    assert left == []


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        ("roster", {"claim": {"root": "sha256:" + "e" * 64, "size": N}}, "BAD_PROOF"),
        ("neighbours", {"neighbours": []}, "TOO_FEW_NEIGHBOURS"),
        ("bundles", {"parcels": {}}, "TOO_FEW_NEIGHBOURS"),
        ("ready", {"leaves": []}, "TOO_FEW_NEIGHBOURS"),
        ("list", {"updates": []}, "OTHER_MESSAGE"),
        ("unmask", {"lists": []}, "TOO_FEW_SIGNATURES"),
        ("check", {"opened": {"nonces": {}, "others": {}}}, "BAD_NONCE"),
        ("state", {"checks": []}, "OTHER_MESSAGE"),
        ("ready", {"claim": None}, "BAD_MESSAGE"),
    ],
)
def test_portal_that_lies_in_a_step_of_many_is_refused(many, portal, kind, change, code):
    portal.tamper = lambda task: {**task, **change} if task["kind"] == kind and ".1.1" in task["round"] else task
    many.train_once()
    portal.wait(lambda: portal.refused())
    assert [found for found, _ in portal.refused()] == [code]


@pytest.mark.parametrize("step", ["sketch", "second"])
def test_step_of_the_other_protocol_is_refused(many, portal, step):
    """The silo speaks what the manifest says, whatever the portal asks for."""
    portal.tamper = lambda task: {**task, "kind": step} if task["kind"] == "list" else task
    many.train_once()
    portal.wait(lambda: portal.refused())
    assert [code for code, _ in portal.refused()] == ["OTHER_PROTOCOL"]


def test_step_of_many_is_refused_in_a_study_of_few(silo, portal):
    portal.make_study()
    silo.decide()
    portal.tamper = lambda task: {**task, "kind": "neighbours"} if task["kind"] == "roster" else task
    silo.train_once()
    portal.wait(lambda: portal.refused())
    assert [code for code, _ in portal.refused()] == ["OTHER_PROTOCOL"]


def test_members_that_do_not_make_the_signed_root_are_refused(many, portal):
    def tamper(task):
        if task["kind"] != "sum" or not task["round"].endswith(".1.1"):
            return task
        return {**task, "sum": {**task["sum"], "members": task["sum"]["members"][1:]}}

    portal.tamper = tamper
    many.train_once()
    portal.wait(lambda: portal.refused())
    assert [code for code, _ in portal.refused()] == ["OTHER_SET"]


def test_silo_that_was_away_at_the_list_checks_the_sum(many, portal):
    portal.away = {"site-1": {"list", "unmask"}}
    portal.tamper = lambda task: {"kind": "wait"} if task["kind"] in ("list", "unmask") else task
    many.train_once()
    portal.wait(lambda: portal.finished(1))
    assert portal.refused() == []
    played = portal.round(1)
    assert "site-1" in played.members and "site-1" not in played.mail["list"]
    assert "site-1" in played.mail["check"]


def test_round_of_many_with_known_partners_ends_well(silo, portal):
    """The policy wants all partners, whose keys the hospital compared; those that are no neighbours are asked for."""
    portal.make_study(aggregation={"fraction_bits": 9, "sparse_from": N})
    known = {name: keyid(each.key.public) for name, each in portal.partners.items()}
    silo.policy(partners={"keys": known, "min_known": N - 1})
    silo.decide()
    silo.train_once()
    portal.wait(lambda: portal.finished(1))
    assert portal.refused() == []


def test_known_partners_that_are_no_neighbours_are_asked_for_as_far_as_needed():
    """Of a hundred known ones two are among the neighbours' entries, and three are needed; 64 are asked for at once."""
    publics = {f"s{number:03}": number.to_bytes(32, "big") for number in range(101)}
    asked: list[list[str]] = []

    def get(path, *, kind, query, round_id):
        assert (path, query["set"], kind, round_id) == (
            "/api/v1/rounds/st-a.1.1/entries",
            "list",
            "entries",
            "st-a.1.1",
        )
        asked.append(query["silos"].split(","))
        # Nobody of the first 64 is in the set.
        value = None if len(asked) == 1 else "summed"
        leaves = [{"silo": name, "value": value, "path": []} for name in asked[-1]]
        return SimpleNamespace(json=lambda: {"leaves": leaves})

    def found(min_known):
        asked.clear()
        runner = object.__new__(ManyRunner)
        runner.id = "st-a.1.1"
        runner.parameters = SimpleNamespace(participants=publics)
        known = frozenset(keyid(public) for name, public in publics.items() if name != "s000")
        runner.permission = SimpleNamespace(known_partners=known, min_known=min_known)
        runner._node = SimpleNamespace(config=SimpleNamespace(name="s000"), egress=SimpleNamespace(get=get))
        given = [
            Leaf("s000", "summed", ()),
            Leaf("s001", "summed", ()),
            Leaf("s002", "summed", ()),
            Leaf("s003", None, ()),
        ]
        return runner._known("list", given)

    assert found(0) == found(2) == [] and asked == []
    assert len(found(3)) == 97
    assert [len(names) for names in asked] == [64, 33]
    assert not {"s000", "s001", "s002", "s003"} & {name for names in asked for name in names}


@pytest.mark.parametrize(("other", "words"), [("b", "may be one hospital"), ("a", "name the same hospitals")])
def test_steward_is_told_that_lists_of_many_are_known_by_their_roots_only(other, words):
    """It must not read that no two lists differ by one hospital, where nobody here can know."""
    roots = ("sha256:" + "a" * 64, "sha256:" + other * 64)
    signed = [{"round": number, "members": [root]} for number, root in enumerate(roots, start=1)]
    pause = Pause(study="st-a", code=OTHER_LIST, sentence="", model=roots[0], lists=2, unmasked=1, signed=signed)
    said = " ".join(risk(pause, "site-1"))
    assert words in said
    assert "No two of these lists differ" not in said
