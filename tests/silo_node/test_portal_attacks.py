"""A portal that plays false with what it may say at any time: names that are paths, rounds announced twice, made-up sums."""

from __future__ import annotations

import json
import queue

import numpy as np
import pytest

from protocol import canonical
from protocol.canonical import digest, unb64
from protocol.messages import Reason, State, seal
from protocol.messages import Refusal as Refusal_
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import StudyLedger, round_prefix
from protocol.signing import SigningKey, sign_envelope
from silo_node import gate
from silo_node.egress import Answer, _problem
from silo_node.errors import AnswerNotGenuine, Refused
from silo_node.rounds.announcement import context
from silo_node.rounds.refusals import send_refusal
from silo_node.rounds.round_runner import pieces
from silo_node.rounds.runs import Run
from silo_node.service import listeners
from silo_node.steward.reasons import reason
from silo_node.sync import Sync
from tests.silo_node.portal_double import PlayedRound, Refusal
from tests.silo_node.test_gate import Door

SUM_TYPE = "application/vnd.consilium.round.sum+json"


@pytest.fixture
def door(ready, portal):
    door = Door(ready, portal)
    yield door
    door.node.close()


@pytest.fixture
def sync(silo):
    node = silo.node()
    yield Sync(node)
    node.close()


def closed(round_id):
    return {"assignments": [{"kind": "closed", "round": round_id, "outcome": "failed", "reason": None}]}


# --- names that are paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../keys", "..", ".", "", "../runs/../keys", "st-x.1.1/../../keys", "absolute", None, 7]
)
def test_no_round_that_the_portal_calls_closed_names_a_folder_outside_the_rounds(silo, sync, tmp_path, name):
    """A folder removed by the portal's word could hold the journal of what is spent, a revocation, or the images."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "one.dcm").write_bytes(b"x")
    other = Run(silo.config.runs, "st-x.2.1")
    other.write("announce", {})
    before = sorted(str(path) for path in silo.folder.rglob("*") if "status" not in path.name)
    sync._assignments(closed(str(images) if name == "absolute" else name))
    assert (images / "one.dcm").exists()
    assert sorted(str(path) for path in silo.folder.rglob("*") if "status" not in path.name) == before


def test_a_closed_round_that_this_process_never_began_leaves_no_secret(silo, sync):
    """Refused after a restart, then closed: its keys lie in the journal since before."""
    Run(silo.config.runs, "st-x.2.1").write("refused", {"reasons": []})
    journal = sync.node.journal
    for key in (round_prefix("st-x", 2, 1) + "keys", round_prefix("st-x", 3, 1) + "keys", "study/st-x/spent/2"):
        journal.put(key, b"secret")
    sync._assignments({"assignments": []})
    sync._assignments(closed("st-x.2.1"))
    assert journal.keys() == [round_prefix("st-x", 3, 1) + "keys", "study/st-x/spent/2"]
    assert list(silo.config.runs.iterdir()) == []


@pytest.mark.parametrize(
    "body", [[], 5, None, {"assignments": [5]}, {"assignments": [["closed"]]}, {"assignments": {}}]
)
def test_assignments_of_another_shape_end_nothing(sync, body):
    sync._assignments(body)


@pytest.mark.parametrize("name", [[], {}, {"a": 1}, None])
def test_rounds_and_studies_that_are_no_names_end_nothing(silo, sync, name):
    """At the first contact too, when the rounds that an earlier process left open are taken up."""
    Run(silo.config.runs, "st-x.2.1").write("announce", {"study": "st-x"})
    kinds = ("closed", "announce", "completed", "roster", "study")
    sync._assignments({"assignments": [{"kind": kind, "round": name, "study": name} for kind in kinds]})


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b'{"title": "\\ud800"}', b'{"\\uDFFF": 1}', b'"\xed\xa0\x80"', b"\xff"]
)
def test_an_answer_that_is_too_deep_or_no_text_is_not_believed(body):
    """A lone surrogate could be written to no file and no terminal; the silo would end where it tries to."""
    with pytest.raises(AnswerNotGenuine):
        Answer(200, {}, body).json()


def test_every_text_is_read_as_it_is():
    assert Answer(200, {}, rb'["\ud83e\ude7b", "\\ud", "u00fc"]').json() == ["\U0001fa7b", "\\ud", "u00fc"]


@pytest.mark.parametrize("detail", ["e\u0301", "\ud800", "a\x1b[2Jb", "", "x" * 5000, 7])
def test_what_the_portal_says_with_a_refusal_can_be_said_back_to_it_and_shown(detail):
    """Else the silo could not refuse the round: it would end, and end again at each start."""
    error = _problem(409, json.dumps({"code": "NO\ud800", "detail": detail, "title": "t"}).encode())
    assert error.sentence.isprintable() and error.sentence.encode() and error.code.encode()
    said = reason(error)
    seal(Refusal_(ctx="0" * 64, silo="site-1", roster=None, reasons=(said,)), SigningKey.generate())


@pytest.mark.parametrize("name", ["e\u0301", "\u2126", "\ud800"])
def test_a_sentence_that_quotes_the_portal_can_be_said_to_it(name):
    said = reason(ProtocolViolation("BAD_PROOF", f"{name} is not in the manifest"))
    seal(Refusal_(ctx="0" * 64, silo="site-1", roster=None, reasons=(said,)), SigningKey.generate())


@pytest.mark.parametrize("version", ["7" * 70_000, ["7"], None, 1e999, 10**400])
def test_a_version_that_no_address_can_hold_does_not_deafen_the_silo(sync, monkeypatch, version):
    """It is named in the next question: the thread that asks must not end with it."""
    node, events, asked = sync.node, queue.SimpleQueue(), []

    class Connection:
        def get(self, path, *, query, **_):
            asked.append(query)
            if len(asked) == 2:
                node.stop.set()
            return Answer(200, {}, json.dumps({"version": 3 if len(asked) == 2 else version}).encode())

    monkeypatch.setattr(node, "connection", lambda **_: Connection())
    monkeypatch.setattr(listeners, "LONGEST_PAUSE", 0)
    listeners.Poller(node, events).run()
    assert "after" not in asked[1]
    assert [events.get()[0], events.get()[0]] == ["problem", "assignments"]


def test_pieces_that_are_no_numbers_are_not_there():
    """After a restart the silo asks which pieces of its update the portal has; 1e999 is read as infinity."""
    assert pieces(Answer(200, {}, b'{"chunks": [1e999, "0", [], null, 0.0, true, 2]}').json()) == {2}


@pytest.mark.parametrize("answer", [[], 5, None, {}, {"chunks": 5}, {"chunks": {"0": 1}}])
def test_pieces_in_another_shape_end_the_round_and_not_the_silo(answer):
    with pytest.raises(ProtocolViolation):
        pieces(answer)


# --- one attempt, announced twice ------------------------------------------------------------------------------------


def test_an_attempt_that_trained_is_not_announced_again_to_evaluate(ready, portal):
    """The portal takes keys and chunks, says no to them, and announces the same attempt as one that only evaluates.

    Its context is the same. Were it taken up, the update would leave once more, under the masks that the tail wore.
    """
    original, seen = portal._round, []

    def lying(method, round_id, rest, query, body, silo):
        if ".1.1" not in round_id:
            return original(method, round_id, rest, query, body, silo)
        if method == "GET" and rest == ["update"]:
            return json.dumps({"chunks": []}).encode()
        if method == "PUT":
            seen.append((rest[1], digest(body)))
        if method == "POST" and rest == ["update"]:
            raise Refusal(403, "NOT_NOW", "later")
        answer = original(method, round_id, rest, query, body, silo)
        if method == "POST" and rest == ["keys"]:
            raise Refusal(403, "NOT_NOW", "later")
        return answer

    def tamper(each):
        if each["kind"] == "announce" and each["number"] == 1 and len({k for k, _ in seen}) == 2:
            return {**each, "purpose": "evaluate"}
        return each

    portal._round, portal.tamper = lying, tamper
    ready.start()
    portal.begin()
    [(code, _)] = portal.wait(lambda: portal.refused())
    assert code == "OTHER_LENGTH"
    assert len(set(seen)) == 2, "each chunk left as the same bytes, however often"


def test_a_second_round_that_only_evaluates_is_refused_unless_it_is_on_the_same_model(door):
    """The steward was told of one; each more would say how another model does on the hospital's test images."""
    study = door.portal.manifest.study
    announcement = door.announcement(purpose="evaluate")
    door.node.journal.put(gate.evaluated_key(study, announcement.model), b"1")
    assert door.ask(announcement)
    door.node.journal.put(gate.evaluated_key(study, "sha256:" + "0" * 64), b"1")
    assert door.refused(announcement) == "LIMIT_EVALUATIONS"
    assert door.ask(door.announcement())


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_that_the_same_hospitals_signed_in_another_study_is_refused(door):
    portal = door.portal
    model = portal.first.digest
    ctx = context("st-another", portal.manifest_digest, 4, 1, "sha256:" + "4" * 64)
    signed = [
        seal(State(ctx=ctx, silo=name, roster="sha256:" + "5" * 64, state=model, table=None), partner.key).as_dict()
        for name, partner in portal.partners.items()
    ]
    origin = {"manifest": portal.manifest_digest, "number": 4, "attempt": 1, "model": "sha256:" + "4" * 64}
    assert door.refused(door.announcement(9, states=signed, origin=origin)) == "MODEL_NOT_SIGNED"
    # The same signatures, had they been given in this study.
    ctx = context(portal.manifest.study, portal.manifest_digest, 4, 1, "sha256:" + "4" * 64)
    signed = [
        seal(State(ctx=ctx, silo=name, roster="sha256:" + "5" * 64, state=model, table=None), partner.key).as_dict()
        for name, partner in portal.partners.items()
    ]
    assert door.ask(door.announcement(9, states=signed, origin=origin))
    assert door.refused(door.announcement(4, states=signed, origin=origin)) == "MODEL_NOT_SIGNED", "made in that round"


def test_a_model_that_came_before_one_on_which_this_silo_worked_is_refused(door):
    """Signed by everybody, of this study: the portal only goes back to it."""
    portal = door.portal
    study, model = portal.manifest.study, portal.first.digest

    def signed_in(number, attempt):
        ctx = context(study, portal.manifest_digest, number, attempt, "sha256:" + "4" * 64)
        states = [
            seal(State(ctx=ctx, silo=name, roster="sha256:" + "5" * 64, state=model, table=None), partner.key).as_dict()
            for name, partner in portal.partners.items()
        ]
        origin = {
            "manifest": portal.manifest_digest,
            "number": number,
            "attempt": attempt,
            "model": "sha256:" + "4" * 64,
        }
        return {"states": states, "origin": origin}

    StudyLedger(door.node.journal, study).work_on("sha256:" + "9" * 64, 9, 2)
    for older in ((1, 1), (9, 1), (8, 12)):
        assert door.refused(door.announcement(20, **signed_in(*older))) == "MODEL_OLDER"
    for newer in ((9, 2), (9, 3), (10, 1)):
        assert door.ask(door.announcement(20, **signed_in(*newer)))


@pytest.mark.parametrize(
    "change", [{"origin": None}, {"origin": {"attempt": 2}}, {"origin": {"model": "sha256:" + "4" * 64}}]
)
def test_a_model_is_of_the_round_that_is_said(door, change):
    origin = {**door.portal.first_origin, **change["origin"]} if change["origin"] else None
    assert door.refused(door.announcement(origin=origin)) == "MODEL_NOT_SIGNED"


@pytest.mark.parametrize("origin", [5, [], {}, {"manifest": "x", "number": 0, "attempt": 1, "model": None}])
def test_an_origin_that_is_none_is_refused_by_field(door, origin):
    with pytest.raises(Refused) as caught:
        door.announcement(origin=origin)
    assert caught.value.code == "BAD_ANNOUNCEMENT"


# --- the published sum -----------------------------------------------------------------------------------------------


def test_a_sum_that_clipped_updates_can_not_reach_is_refused_even_when_signed(ready, portal, monkeypatch):
    """The portal alone signs sums: what it makes up moves no weight further than the hospitals together may."""
    original = PlayedRound._sum

    def made_up(self):
        original(self)
        if self.number == 1:
            self.summed[0] = np.full(self.parameters.words, 1 << 29, dtype="<u4").tobytes()
            self.sum = {**self.sum, "digest": digest(b"".join(self.summed))}
            signed = {**json.loads(unb64(self.signed_sum["payload"])), **self.sum}
            self.signed_sum = sign_envelope(SUM_TYPE, canonical.encode(signed), portal.answer_key).as_dict()

    monkeypatch.setattr(PlayedRound, "_sum", made_up)
    ready.start()
    portal.begin()
    assert portal.wait(lambda: portal.refused())[0][0] == "SUM_OUT_OF_RANGE"


def test_a_sum_that_was_signed_for_another_attempt_does_not_say_so_itself(ready, portal):
    def tamper(each):
        if each["kind"] != "sum" or ".1.1" not in each["round"]:
            return each
        facts = {**each["sum"], "ctx": "0" * 64}
        payload = canonical.encode({"schema": "consilium/round/sum/1", **facts})
        return {**each, "sum": facts, "portal_signature": sign_envelope(SUM_TYPE, payload, portal.answer_key).as_dict()}

    portal.tamper = tamper
    ready.start()
    portal.begin()
    assert portal.wait(lambda: portal.refused())[0][0] == "SUM_DIFFERS"


# --- what a refusal says ---------------------------------------------------------------------------------------------


def test_a_refusal_does_not_tell_the_portal_where_things_lie(door):
    announcement = door.announcement()
    door.portal.played.append(PlayedRound(door.portal, 1, 1, "train", announcement.model))
    config = door.node.config
    sentence = f"{config.folder}/portal_log.json: not JSON; images are in {config.data}."
    send_refusal(door.node, announcement, "0" * 64, [Reason("USAGE", sentence)])
    [request] = [each for each in door.portal.received if each.path.endswith("/refusal")]
    payload = unb64(json.loads(request.body)["payload"]).decode()
    assert str(config.folder) not in payload and str(config.data) not in payload
    assert "portal_log.json: not JSON" in payload
    kept = Run(config.runs, announcement.id).read("refused")
    assert kept["reasons"][0]["sentence"] == sentence, "the hospital itself reads where"
