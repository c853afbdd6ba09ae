"""Two who sign at the same moment: one after the other, and nothing that one of them was told is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from protocol.canonical import b64
from protocol.signing import SigningKey
from silo_node.errors import SiloError, UsageError
from silo_node.steward import approvals, documents, trust_changes
from silo_node.steward.one_at_a_time import one_at_a_time
from tests.silo_node.conftest import PASSPHRASE


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each returned, or raised, all begun together."""
    begin = threading.Barrier(len(calls))

    def one(call: Callable[[], Any]) -> Any:
        begin.wait(30)
        try:
            return call()
        except SiloError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def test_of_stewards_made_at_once_the_first_is_in_trust_json_and_the_others_are_told(silo):
    silo.config.trust.unlink()
    before = set(silo.config.keys.iterdir())
    people = [f"Dr. {letter}" for letter in "ABCD"]
    found = at_once(
        *(
            lambda person=person: approvals.make_steward(silo.config, person=person, passphrase=PASSPHRASE)
            for person in people
        )
    )
    [made] = [each for each in found if not isinstance(each, SiloError)]
    assert documents.load_trust(silo.config).keys == made.keys
    assert {type(each) for each in found if each is not made} == {UsageError}
    assert len(set(silo.config.keys.iterdir()) - before) == 1, "no key is left of those who were refused"


def test_of_changes_of_the_trust_proposed_at_once_none_is_lost(silo):
    people = [f"Dr. {letter}" for letter in "ABCDEFGH"]
    keys = {person: SigningKey.generate() for person in people}
    entries = {
        key.keyid: {"kind": "ed25519", "public": b64(key.public), "role": "steward", "person": person,
                    "not_after": "2030-01-01T00:00:00Z"}
        for person, key in keys.items()
    }  # fmt: skip
    found = at_once(*(lambda k=k, e=e: trust_changes.propose(silo.config, add={k: e}) for k, e in entries.items()))
    assert not [each for each in found if isinstance(each, SiloError)], found
    draft = trust_changes.read_draft(silo.config)
    assert {entry["person"] for entry in draft.document["keys"].values()} == {*people, "Dr. Steward"}


def test_a_decision_made_twice_at_once_is_signed_and_logged_once(silo, portal):
    study = portal.make_study()
    nodes = [silo.node() for _ in range(3)]
    try:
        shown = [approvals.fetch(node, study) for node in nodes]
        found = at_once(
            *(
                lambda node=node, it=it: approvals.decide(node, it, "approve", passphrase=PASSPHRASE, reason="")
                for node, it in zip(nodes, shown, strict=True)
            )
        )
    finally:
        for node in nodes:
            node.close()
    assert sum(not isinstance(each, SiloError) for each in found) == 1, found
    assert all("meanwhile" in each.sentence for each in found if isinstance(each, SiloError))
    assert len(documents.load_approvals(silo.config, study)) == 1
    entries = json.loads(silo.command("evidence", "list", str(silo.folder), "--json").stdout)["entries"]
    assert sum(each["type"] == "study.approved" for each in entries) == 1


def test_the_same_steward_may_decide_the_same_again_once_the_study_was_shown_anew(silo, portal):
    study = portal.make_study()
    silo.decide()
    silo.decide()
    assert len(documents.load_approvals(silo.config, study)) == 2


def test_who_waits_too_long_is_told_and_nothing_is_written(silo):
    with one_at_a_time(silo.config), pytest.raises(SiloError) as caught, one_at_a_time(silo.config, patience=0.1):
        pass
    assert (caught.value.code, str(silo.folder) in caught.value.sentence) == ("STEWARD_BUSY", True)
