"""The steps after the list: a portal, or a member, that lies there gets a refusal with its reason, and nothing that counts."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from protocol import canonical
from protocol.canonical import digest, unb64
from protocol.evaluation import encode_tail
from protocol.messages import Check, ListSignature, seal
from protocol.secure_aggregation import CHUNK_WORDS
from protocol.secure_aggregation.parameters import Segment
from protocol.signing import Envelope, SigningKey, sign_envelope
from silo_node.egress import Answer
from silo_node.health import status
from silo_node.rounds import published_sum
from silo_node.rounds.runs import Run
from tests.silo_node.portal_double import SUM_TYPE, PlayedRound


def signed_by(dicts, key):
    return [each for each in dicts if each["signatures"][0]["keyid"] == key]


def lie_in(portal, kind, change):
    """In round 1 the silo is told `change(assignment)` where the portal would say something of this kind."""
    portal.tamper = lambda each: change(each) if each["kind"] == kind and ".1.1" in str(each["round"]) else each


def lying_sum(monkeypatch, portal, change):
    """The portal binds itself to, and shows to all, `change` of the pieces of round 1's sum."""
    portal.lying = True
    original = PlayedRound._sum

    def made_up(self):
        original(self)
        if self.number == 1:
            change(self.summed)
            self.publish()

    monkeypatch.setattr(PlayedRound, "_sum", made_up)


def add_to_word(k, word, dtype, value):
    def change(pieces):
        words = np.frombuffer(pieces[k], dtype=dtype).copy()
        words[word] += dtype(value)
        pieces[k] = words.tobytes()

    return change


def caught(silo, portal, code, unsent, *refs):
    """The silo said no with this code, sent nothing of `unsent`, and both its status and its log hold why.

    refs: what the log names as proof, besides nothing.
    """
    portal.wait(lambda: portal.refused())
    [(said, sentence)] = portal.refused()
    assert said == code, sentence
    assert [each.path for each in portal.received if each.path.endswith(f".1.1/{unsent}")] == []
    assert code in [problem["code"] for problem in status.report(silo.config)["problems"]]
    silo.close()
    node = silo.node()
    [record] = node.evidence.records("round.refused")
    node.close()
    assert record["reasons"] == [code]
    assert set(refs) <= record["refs"].keys(), record["refs"]
    return record["refs"]


def begin(silo, portal):
    silo.start()
    portal.begin()


# --- honest ----------------------------------------------------------------------------------------------------------


def test_a_study_with_the_sketch_check_runs_to_its_end_and_the_log_says_what_left(sketched, portal):
    begin(sketched, portal)
    portal.wait(lambda: portal.finished(3))
    assert portal.refused() == []
    assert set(np.frombuffer(b"".join(portal.sums[1][:-1]), dtype="<i4").tolist()) == {4 << 6}
    sketched.until(lambda: (sketched.folder / "rounds.jsonl").read_text().count("\n") >= 3)
    lines = [json.loads(line) for line in (sketched.folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["verified"] for line in lines[:3]] == [None, True, True]
    sketched.close()
    node = sketched.node()
    left = {(record["subject"]["id"], record["data"]["kind"]) for record in node.evidence.records("update.exported")}
    sent = [portal.round(1).mail[kind]["site-1"].digest for kind in ("update", "sketch", "check")]
    noted = [record["refs"]["message"] for record in node.evidence.records("update.exported")]
    node.close()
    study = portal.manifest.study
    assert left >= {(f"{study}.{n}.1", kind) for n in (1, 2) for kind in ("update", "sketch", "check")}
    assert set(sent) <= set(noted)


def test_the_nonce_leaves_before_the_sum_is_fetched(ready, portal):
    seen = []

    def fault(method, path):
        if ".1.1/" in path and (method, path.rsplit("/", 1)[1]) in (("POST", "nonce"), ("GET", "sum")):
            seen.append(path.rsplit("/", 1)[1])

    portal.fault = fault
    begin(ready, portal)
    portal.wait(lambda: portal.finished(1))
    assert seen[0] == "nonce" and "sum" in seen


# --- the sum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", ["ready", "sketched"])
def test_another_sum_than_the_true_one_changes_no_model_here(request, portal, monkeypatch, study):
    silo = request.getfixturevalue(study)
    lying_sum(monkeypatch, portal, add_to_word(0, 0, np.uint32, 1))
    begin(silo, portal)
    code, proof = ("SUM_NOT_TRUE", ()) if study == "ready" else ("SKETCH_DIFFERS", ("sketches",))
    refs = caught(silo, portal, code, "state", "sum", "checks", *proof)
    played = portal.round(1)
    assert refs["sum"] == Envelope.from_dict(played.signed_sum).digest
    said = [[name, played.mail["check"][name].digest] for name in sorted(played.mail["check"])]
    assert refs["checks"] == digest(canonical.encode(said))


@pytest.mark.parametrize(("word", "value"), [(0, 4), (1, 2**40), (5, 1)])
def test_an_evaluation_that_can_not_be_that_of_the_members_is_refused(ready, portal, monkeypatch, word, value):
    """More silos than were summed; a loss beyond its cap; histograms with another total."""
    lying_sum(monkeypatch, portal, add_to_word(-1, word, np.uint64, value))
    begin(ready, portal)
    caught(ready, portal, "SUM_OUT_OF_RANGE", "check", "sum")


def test_another_sum_to_one_silo_gets_no_check_word(ready, portal, monkeypatch):
    portal.lying = True
    portal.away = {name: {"check"} for name in portal.partners}
    check = PlayedRound._check
    monkeypatch.setattr(PlayedRound, "_check", lambda self, kind, env: kind == "nonce" or check(self, kind, env))

    def for_one(each):
        pieces = list(portal.round(1).summed)
        add_to_word(0, 0, np.uint32, 1)(pieces)
        facts = {**each["sum"], "digest": digest(b"".join(pieces))}
        payload = {**json.loads(unb64(each["portal_signature"]["payload"])), **facts}
        signed = sign_envelope(SUM_TYPE, canonical.encode(payload), portal.answer_key)
        return {**each, "sum": facts, "portal_signature": signed.as_dict()}

    original = portal._round

    def serve(method, round_id, rest, query, body, silo):
        data = original(method, round_id, rest, query, body, silo)
        if rest == ["sum"] and query["chunk"] == "0":
            pieces = [data]
            add_to_word(0, 0, np.uint32, 1)(pieces)
            return pieces[0]
        return data

    portal._round = serve
    lie_in(portal, "sum", for_one)
    begin(ready, portal)
    caught(ready, portal, "OTHER_SUM", "check", "nonces", "sum")


def test_a_sum_over_another_list_opens_no_nonce(ready, portal):
    """The three others sign, beside the list with this silo, one without it."""

    def other_list(each):
        lists = []
        for item in each["lists"]:
            message = ListSignature.parse(Envelope.from_dict(item).payload)
            if message.silo in portal.partners:
                other = dataclasses.replace(message, members=tuple(portal.partners))
                lists.append(seal(other, portal.partners[message.silo].key).as_dict())
        return {**each, "lists": lists}

    lie_in(portal, "sum", other_list)
    begin(ready, portal)
    caught(ready, portal, "TWO_LISTS", "nonce", "lists")


def test_a_sum_that_too_few_signed_for_opens_no_nonce(ready, portal):
    lie_in(portal, "sum", lambda each: {**each, "lists": each["lists"][:2]})
    begin(ready, portal)
    caught(ready, portal, "TOO_FEW_SIGNATURES", "nonce", "lists")


def test_a_second_sum_in_one_round_opens_no_nonce_and_both_signatures_are_kept(ready, portal):
    def another(each):
        facts = {**each["sum"], "digest": "sha256:" + "7" * 64}
        payload = {**json.loads(unb64(each["portal_signature"]["payload"])), **facts}
        signed = sign_envelope(SUM_TYPE, canonical.encode(payload), portal.answer_key)
        return {**each, "sum": facts, "portal_signature": signed.as_dict()}

    dead = ready.dies_at("nonce", arrives=False)
    begin(ready, portal)
    ready.until(dead)
    lie_in(portal, "sum", another)
    ready.start()
    refs = caught(ready, portal, "SECOND_SUM", "nonce", "sum", "first_sum", "lists")
    assert refs["first_sum"] == Envelope.from_dict(portal.round(1).signed_sum).digest != refs["sum"]


def test_after_a_restart_the_sum_is_fetched_again_and_its_digest_compared(ready, portal):
    dead = ready.dies_at("check")
    original = portal._round

    def serve(method, round_id, rest, query, body, silo):
        data = original(method, round_id, rest, query, body, silo)
        return data[:-1] + bytes([data[-1] ^ 1]) if rest == ["sum"] and dead() else data

    portal._round = serve
    begin(ready, portal)
    ready.until(dead)
    ready.start()
    caught(ready, portal, "SUM_DIFFERS", "state", "sum", "checks")


def test_a_long_sum_is_fetched_piece_by_piece_into_the_rounds_folder(ready, portal, tmp_path):
    """32 MiB of words with three pieces of memory at most; gone with the folder."""
    body = (np.arange(CHUNK_WORDS) % 1000 - 500).astype("<i4").tobytes()
    tail = encode_tail(loss=None, auc=None, histograms=np.zeros((2, 8), int)).tobytes()
    pieces = [*[body] * 8, tail]
    parameters = dataclasses.replace(
        PlayedRound(portal, 1, 1, "evaluate", "sha256:" + "1" * 64).parameters, words=8 * CHUNK_WORDS
    )
    run = Run(tmp_path, "st-x.1.1")
    run.folder.mkdir()

    class Node:
        class egress:
            @staticmethod
            def get(path, *, kind, query, round_id):
                return Answer(200, {}, bytes(pieces[query["chunk"]]))

    segments = (Segment(8 * CHUNK_WORDS, portal.manifest.aggregation.fraction_bits),)
    facts = {"digest": digest(b"".join(pieces)), "members": ["site-1", "site-2", "site-3"]}
    tracemalloc.start()
    published = published_sum.fetch(Node, parameters, portal.manifest, run, facts, segments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 4 * CHUNK_WORDS
    assert published.body.tobytes() == 8 * body
    assert published.tail.tobytes() == tail
    run.remove()
    assert not run.folder.exists()


# --- sketches and the second list ------------------------------------------------------------------------------------


def test_a_second_sketch_under_another_seed_is_never_shown(sketched, portal):
    """The first is on its way when the silo dies; the portal then shows other lists, whose nonces make another seed."""
    dead = sketched.dies_at("sketch", arrives=False)
    begin(sketched, portal)
    sketched.until(dead)
    lie_in(portal, "sketch", lambda each: {**each, "lists": each["lists"][:3]})
    sketched.start()
    caught(sketched, portal, "SECOND_SKETCH", "sketch", "lists")


def test_a_second_list_that_too_few_signed_reveals_no_share(sketched, portal):
    lie_in(portal, "unmask", lambda each: {**each, "seconds": each["seconds"][:2]})
    begin(sketched, portal)
    caught(sketched, portal, "TOO_FEW_SIGNATURES", "unmask", "lists", "seconds")


def test_sketches_without_this_silos_own_make_no_second_list(sketched, portal):
    own = sketched.node().keys.silo.keyid
    lie_in(
        portal, "second", lambda each: {**each, "sketches": [x for x in each["sketches"] if not signed_by([x], own)]}
    )
    begin(sketched, portal)
    caught(sketched, portal, "LEFT_OUT", "second", "sketches")


# --- nonces and check words ------------------------------------------------------------------------------------------


def test_a_nonce_set_without_this_silo_gets_no_check_word(ready, portal):
    own = ready.node().keys.silo.keyid
    lie_in(portal, "check", lambda each: {**each, "nonces": [x for x in each["nonces"] if not signed_by([x], own)]})
    begin(ready, portal)
    caught(ready, portal, "TOO_FEW_SIGNATURES", "check", "nonces", "sum")


def test_check_words_left_out_make_no_model(ready, portal):
    lie_in(portal, "state", lambda each: {**each, "checks": each["checks"][:-1]})
    begin(ready, portal)
    caught(ready, portal, "CHECK_MISSING", "state", "checks", "sum")


def test_a_members_forged_check_word_makes_no_model(ready, portal, monkeypatch):
    portal.lying = True
    original = PlayedRound._answer

    def forged(self, partner):
        envelope = original(self, partner)
        if self.stage != "check" or partner.name != "site-2" or self.number != 1:
            return envelope
        message = Check.parse(envelope.payload)
        return seal(dataclasses.replace(message, word=bytes(7) + bytes([message.word[-1] ^ 1])), partner.key)

    monkeypatch.setattr(PlayedRound, "_answer", forged)
    begin(ready, portal)
    caught(ready, portal, "SUM_NOT_TRUE", "state", "checks", "sum")


def test_a_check_word_that_the_portal_signed_itself_is_none(ready, portal):
    stranger = SigningKey.generate()

    def forged(each):
        *others, last = each["checks"]
        return {**each, "checks": [*others, seal(Check.parse(unb64(last["payload"])), stranger).as_dict()]}

    lie_in(portal, "state", forged)
    begin(ready, portal)
    caught(ready, portal, "BAD_SIGNATURE", "state", "checks", "sum")


def test_where_the_manifest_lets_it_a_sum_stands_without_a_word_and_everybody_sees_it(silo, portal):
    portal.make_study(aggregation={"check_words": "optional"})
    silo.decide()
    lie_in(portal, "state", lambda each: {**each, "checks": each["checks"][:3]})
    begin(silo, portal)
    portal.wait(lambda: portal.finished(1))
    assert portal.refused() == []
    silo.until(lambda: "SUM_UNVERIFIED" in [problem["code"] for problem in status.report(silo.config)["problems"]])
    lines = [json.loads(line) for line in (silo.folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["verified"] for line in lines[:2]] == [None, False]
    silo.close()
    node = silo.node()
    verified = {each["subject"]["id"]: each["data"].get("verified") for each in node.evidence.records("round.finished")}
    node.close()
    assert verified[f"{portal.manifest.study}.1.1"] is False


def test_no_sketch_is_shown_of_an_update_of_few_words(silo, portal):
    portal.make_study(aggregation={"sketch": True})
    silo.decide()
    begin(silo, portal)
    portal.wait(lambda: portal.refused())
    assert {code for code, _ in portal.refused()} == {"SKETCH_OF_TOO_FEW"}
    assert [each.path for each in portal.received if each.path.endswith("/sketch")] == []
