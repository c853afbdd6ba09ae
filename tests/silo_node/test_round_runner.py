"""Lies of the portal, failures of the training: the silo refuses with a reason, or drops out; it never sends another vector."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from protocol import canonical
from protocol.canonical import b64, unb64
from protocol.signing import SigningKey, sign_envelope
from silo_node.rounds.round_runner import RoundRunner
from silo_node.rounds.runs import Run


def play(ready, portal, tamper=None):
    """Start the silo and a study; `tamper` changes what it is told in round 1."""
    if tamper is not None:
        portal.tamper = lambda each: tamper(each) if str(each["round"]).split(".")[1] == "1" else each
    ready.start()
    portal.begin()


def refusal(portal):
    return portal.wait(lambda: portal.refused())[0]


def changed_sum(key, change):
    """The sum with `change` applied, signed by `key`."""

    def tamper(each):
        if each["kind"] != "sum":
            return each
        facts = {**each["sum"], **change}
        signed = json.loads(unb64(each["portal_signature"]["payload"]))
        payload = canonical.encode({**signed, **change})
        envelope = sign_envelope("application/vnd.consilium.round.sum+json", payload, key)
        return {**each, "sum": facts, "portal_signature": envelope.as_dict()}

    return tamper


def test_a_sum_that_is_not_the_signed_one(ready, portal):
    def tamper(each):
        return {**each, "sum": {**each["sum"], "total_weight": 1}} if each["kind"] == "sum" else each

    play(ready, portal, tamper)
    assert refusal(portal)[0] == "SUM_DIFFERS"


def test_a_sum_with_other_weights_or_members_even_when_signed(ready, portal):
    play(ready, portal, changed_sum(portal.answer_key, {"total_weight": 1}))
    assert refusal(portal)[0] == "SUM_DIFFERS"


def test_a_sum_signed_by_somebody_else(ready, portal):
    play(ready, portal, changed_sum(SigningKey.generate(), {}))
    assert refusal(portal)[0] == "SUM_NOT_SIGNED"


def test_other_bytes_than_the_signed_sum(ready, portal):
    original = portal._round

    def lying(method, round_id, rest, query, body, silo):
        data = original(method, round_id, rest, query, body, silo)
        if rest == ["sum"] and ".1." in round_id:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    portal._round = lying
    play(ready, portal)
    assert refusal(portal)[0] == "SUM_DIFFERS"


def test_another_model_than_the_signed_one(ready, portal):
    def tamper(each):
        return {**each, "model": "sha256:" + "5" * 64} if each["kind"] == "announce" else each

    play(ready, portal, tamper)
    assert refusal(portal)[0] == "MODEL_NOT_SIGNED"


def test_other_model_bytes_than_announced(ready, portal):
    """A silo that has no copy of its own fetches the model, and takes only the bytes of the signed digest."""
    portal.holding = True
    play(ready, portal)
    portal.wait(lambda: portal.finished(0))
    ready.close()
    for path in ready.config.models.iterdir():
        path.unlink()
    original = portal.answer

    def lying(method, path, query, body, silo):
        content, headers = original(method, path, query, body, silo)
        return (content[:-1] + b"\7", headers) if "/models/" in path else (content, headers)

    portal.answer = lying
    portal.go_on()
    ready.start()
    ready.until(lambda: "ANSWER_NOT_GENUINE" in (ready.folder / "run.log").read_text())
    assert not [path for path in ready.config.models.iterdir() if path.suffix == ".state"]
    portal.answer = original
    portal.wait(lambda: portal.finished(1))


def test_a_roster_that_leaves_this_silo_out(ready, portal):
    def tamper(each):
        if each["kind"] != "roster":
            return each
        own = portal.round(1).mail["keys"]["site-1"].as_dict()
        return {**each, "keys": [key for key in each["keys"] if key != own]}

    play(ready, portal, tamper)
    assert refusal(portal)[0] == "LEFT_OUT"


def test_a_list_that_names_fewer_than_the_threshold(ready, portal):
    def tamper(each):
        return {**each, "updates": each["updates"][:2]} if each["kind"] == "list" else each

    play(ready, portal, tamper)
    code, sentence = refusal(portal)
    assert code in ("LIST_TOO_SMALL", "SET_TOO_SMALL", "TOO_SMALL"), (code, sentence)


def test_messages_that_can_not_be_read(ready, portal):
    def tamper(each):
        return {**each, "keys": [{"nonsense": True}]} if each["kind"] == "roster" else each

    play(ready, portal, tamper)
    assert refusal(portal)[0] == "BAD_MESSAGE"


def test_a_part_that_is_missing(ready, portal):
    def tamper(each):
        return {name: value for name, value in each.items() if name != "boxes"}

    play(ready, portal, tamper)
    assert refusal(portal)[0] == "ROUND_FAILED"


def test_bundles_that_are_replayed_from_another_round(ready, portal):
    def tamper(each):
        if each["kind"] != "bundles":
            return each
        return {**each, "boxes": {sender: b64(bytes(len(unb64(box)))) for sender, box in each["boxes"].items()}}

    play(ready, portal, tamper)
    code, _ = refusal(portal)
    assert code in ("SET_TOO_SMALL", "TOO_SMALL")


@pytest.mark.parametrize("parameters", [3, 0])
def test_a_training_that_fails_refuses_with_its_reason(ready, portal, parameters):
    """The model that was agreed on does not fit the plan any more: training says so, and the round goes on without us."""
    ready.start()
    portal.holding = True
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    runs = ready.config.runs
    run = Run(runs, f"{portal.manifest.study}.1.1")
    sentence = "Training needs more memory than this node has."
    if parameters:
        run.write_result({"ok": False, "code": "OUT_OF_MEMORY", "sentence": sentence})
    else:
        for _ in range(3):
            run.begin()
    portal.go_on()
    ready.close()
    ready.start()
    code, said = refusal(portal)
    assert (code, said) == (("OUT_OF_MEMORY", sentence) if parameters else (code, said))
    if not parameters:
        assert code == "TRAINING_KILLED"
    portal.wait(lambda: portal.finished(1))
    assert "site-1" not in portal.round(1).members


def trained(ready, portal, update, **changes):
    """Round 1 begins where training has already given this update."""
    ready.start()
    portal.holding = True
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    ready.close()
    run = Run(ready.config.runs, f"{portal.manifest.study}.1.1")
    run.folder.mkdir(parents=True, exist_ok=True)
    result = {
        "ok": True,
        "loss": 0.5,
        "auc": 0.5,
        "histograms": np.ones((2, 8), int).tolist(),
        "train_seconds": 1.0,
        "evaluate_seconds": 0.0,
        **changes,
    }
    run.write_result(result, np.asarray(update, dtype=np.float32))
    portal.go_on(hold=True)
    ready.start()


@pytest.mark.parametrize(
    ("value", "changes"),
    [(np.nan, {}), (np.inf, {}), (-np.inf, {}), (0.001, {"loss": float("nan")}), (0.001, {"auc": float("inf")})],
)
def test_what_is_not_finite_is_refused_with_its_reason_and_nothing_of_it_is_sent(ready, portal, value, changes):
    update = np.full(1000, 0.001)
    update[500] = value
    trained(ready, portal, update, **changes)
    code, sentence = refusal(portal)
    assert code == "UPDATE_NOT_VALID"
    assert "NaN or infinity" in sentence or "evaluation" in sentence
    assert portal.round(1).chunks.get("site-1") is None
    assert "site-1" not in portal.round(1).mail["update"]


def test_an_update_over_the_bound_leaves_with_the_length_of_the_bound(silo, portal):
    portal.make_study(aggregation={"clip_norm": 1.0})
    silo.decide()
    trained(silo, portal, np.linspace(-2.0, 3.0, 1000))
    portal.wait(lambda: portal.finished(1))
    summed = np.frombuffer(b"".join(portal.sums[1][:-1]), dtype="<i4").astype(np.float64)
    left = (summed - 3 * portal.partner_word) / 2**16
    assert np.linalg.norm(left) == pytest.approx(1.0, abs=1e-3)
    assert np.corrcoef(left, np.linspace(-2.0, 3.0, 1000))[0, 1] > 0.999


def test_the_portals_full_disk_is_waited_for(ready, portal):
    portal.fault = lambda method, path: 507 if method == "PUT" and path.endswith("/update/0") else None
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.round(1) and "site-1" in portal.round(1).mail["ready"])
    ready.until(lambda: "PORTAL_UNREACHABLE" in (ready.folder / "run.log").read_text())
    portal.fault = lambda method, path: None
    portal.wait(lambda: portal.finished(1), 40)
    assert portal.refused() == []


def test_a_cut_upload_is_taken_up_where_it_ended(ready, portal):
    cut = iter([None, 0, None, 0])
    portal.fault = lambda method, path: next(cut, None) if method == "PUT" else None
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(1))
    assert portal.refused() == []


def test_no_heartbeat_or_message_names_more_than_it_must(ready, portal):
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    sent = b"".join(request.body for request in portal.received)
    for word in (str(ready.folder).encode(), b"Traceback", b"root@", b"/tmp/"):
        assert word not in sent


def test_a_chunk_travels_while_the_next_is_masked():
    masked, sent = threading.Event(), []

    class Machine:
        def masked_chunk(self, k: int) -> bytes:
            if k == 1:
                masked.set()
            return bytes([k])

    class Uploading(RoundRunner):
        def __init__(self) -> None:
            self.parameters = SimpleNamespace(chunk_count=3)

        def _put_chunk(self, k: int, chunk: bytes) -> None:
            assert masked.wait(10), "the second chunk was masked only after the first had travelled"
            sent.append((k, chunk))

    Uploading()._send_chunks(Machine(), set())
    assert sent == [(0, b"\0"), (1, b"\1"), (2, b"\2")]
