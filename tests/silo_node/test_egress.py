"""The one way out: signed, believed only when signed, counted, tried again, and clear about what went wrong."""

from __future__ import annotations

import hashlib
import socket
import threading
import time

import pytest

from silo_node.errors import AnswerNotGenuine, ClockWrong, PortalRefused, PortalUnreachable, Stopping, UsageError
from silo_node.evidence.egress_log import NOT_SENT
from silo_node.pin import Pin

CHECKPOINT = "/api/v1/log/silo-checkpoint"


@pytest.fixture
def node(silo):
    node = silo.node()
    yield node
    node.close()


def test_a_request_is_signed_and_the_answer_believed(node, portal):
    node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint")
    assert portal.silo_notes == ["x"]


def test_an_answer_changed_on_the_way_is_not_believed(node, portal):
    portal.answer_tamper = lambda path, body: body + b" "
    with pytest.raises(AnswerNotGenuine, match="not signed by the portal key"):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint")


def test_another_portal_key_is_not_believed(node, portal):
    portal.answer_key = type(portal.answer_key).generate()
    with pytest.raises(AnswerNotGenuine):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint")


def test_an_unsigned_page_is_not_believed_even_with_status_200(node, portal):
    portal.fault = lambda method, path: 200
    with pytest.raises(AnswerNotGenuine):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint")


def test_a_proxy_that_answers_for_an_absent_portal_is_tried_again(node, portal):
    faults = iter([502, 0, 503])
    portal.fault = lambda method, path: next(faults, None)
    node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint")
    assert portal.silo_notes == ["x"]


def test_it_gives_up_after_the_time_allowed_and_says_where_to_look(node, portal):
    portal.fault = lambda method, path: 0
    begun = time.monotonic()
    with pytest.raises(PortalUnreachable, match="check network, proxy and CA bundle"):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint", patience=0.4)
    assert time.monotonic() - begun < 2


def test_what_must_not_be_repeated_is_not(node, portal):
    seen = []
    portal.fault = lambda method, path: seen.append(path) or 0
    with pytest.raises(PortalUnreachable):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="enrol", repeat=False)
    assert len(seen) == 1


def test_a_stop_ends_the_waiting_at_once(node, portal):
    portal.fault = lambda method, path: 0
    threading.Timer(0.3, node.stop.set).start()
    begun = time.monotonic()
    with pytest.raises(Stopping):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint", patience=30)
    assert time.monotonic() - begun < 3


def test_a_refusal_carries_the_portals_code_and_sentence(node):
    with pytest.raises(PortalRefused) as caught:
        node.egress.get("/api/v1/rounds/st-x.1.1/sum", kind="sum", query={"chunk": 0})
    assert (caught.value.status, caught.value.code) == (404, "NOT_YOUR_STUDY")
    assert caught.value.exit_code == 3


def test_a_wrong_clock_is_shown_with_both_times(node, portal):
    portal.clock_shift = 7200
    with pytest.raises(ClockWrong) as caught:
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint")
    times = [word for word in caught.value.sentence.split() if "T" in word and "Z" in word]
    assert len(times) == 2, caught.value.sentence
    assert caught.value.exit_code == 4


def test_everything_that_leaves_is_counted_and_logged_with_its_digest(node, portal):
    body = b"0123456789" * 1000
    portal.fault = lambda method, path: None
    node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint", round_id="st-x.1.1")
    with pytest.raises(PortalRefused):
        node.egress.put("/api/v1/rounds/st-x.1.1/update/0", body, kind="update", round_id="st-x.1.1")
    rows = node.egress_log.rows("st-x.1.1")
    assert [(row["kind"], row["method"], row["status"]) for row in rows] == [
        ("silo-checkpoint", "POST", 200),
        ("update", "PUT", 404),
    ]
    assert rows[1]["bytes"] == len(body)
    assert rows[1]["digest"] == "sha256:" + hashlib.sha256(body).hexdigest()
    totals = node.egress_log.totals()
    assert totals["update"]["bytes_up"] > len(body)
    up, down = node.egress_log.of_round("st-x.1.1")
    assert up > len(body)
    assert down > 0


def test_a_request_that_got_no_answer_is_in_the_log_as_perhaps_sent(node, portal):
    portal.fault = lambda method, path: 0
    with pytest.raises(PortalUnreachable):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint", patience=0, round_id="st-x.1.1")
    assert [row["status"] for row in node.egress_log.rows("st-x.1.1")] == [None]
    assert node.egress_log.totals()["silo-checkpoint"]["bytes_up"] > 0, "a connection was there, so it counts"


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:1"])
def test_what_had_no_connection_to_leave_by_is_not_counted_as_sent(node, portal, monkeypatch, proxy):
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "")
    else:
        portal.close()
    for _ in range(2):
        with pytest.raises(PortalUnreachable):
            node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint", patience=0, round_id="st-x.1.1")
        with pytest.raises(PortalUnreachable):
            node.egress.get("/api/v1/log/checkpoint", kind="poll", patience=0)
    assert [row["status"] for row in node.egress_log.rows("st-x.1.1")] == [NOT_SENT, NOT_SENT]
    totals = node.egress_log.totals()
    for kind in ("poll", "silo-checkpoint"):
        assert totals[kind] == {"requests": 0, "bytes_up": 0, "bytes_down": 0}
    assert node.egress_log.of_round("st-x.1.1") == (0, 0)


def test_a_tls_that_fails_before_the_request_is_not_counted_as_sent(silo):
    """Somebody answers at the portal's address, but not with TLS: not a byte of the request is written."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = (silo.folder / "silo.toml").read_text()
        where = f"https://127.0.0.1:{server.getsockname()[1]}"
        (silo.folder / "silo.toml").write_text(text.replace(silo.portal.address, where))
        node = silo.node()
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(PortalUnreachable):
            node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint", patience=0)
        assert node.egress_log.totals()["silo-checkpoint"]["bytes_up"] == 0
        node.close()


def test_a_hospital_may_keep_a_copy_of_every_body(silo, portal):
    text = (silo.folder / "silo.toml").read_text()
    (silo.folder / "silo.toml").write_text("keep_copies = true\n" + text)
    node = silo.node()
    node.egress.post(CHECKPOINT, {"note": "seen"}, kind="silo-checkpoint")
    [copy] = (silo.folder / "sent").iterdir()
    assert copy.read_bytes() == b'{"note":"seen"}'
    node.close()


def test_connections_stay_open(node, portal):
    accepted = []
    original = portal.server.process_request
    portal.server.process_request = lambda request, address: accepted.append(address) or original(request, address)
    for number in range(5):
        node.egress.post(CHECKPOINT, {"note": str(number)}, kind="silo-checkpoint")
    assert len(accepted) == 1


def test_a_proxy_from_the_environment_is_used(silo, portal, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    node = silo.node()
    with pytest.raises(PortalUnreachable):
        node.egress.post(CHECKPOINT, {"note": "x"}, kind="silo-checkpoint", patience=0)
    assert portal.silo_notes == []
    node.close()


def test_a_ca_bundle_that_can_not_be_read_is_named(silo):
    text = (silo.folder / "silo.toml").read_text()
    (silo.folder / "silo.toml").write_text('ca_bundle = "hospital-ca.pem"\n' + text)
    with pytest.raises(UsageError, match=r"hospital-ca\.pem can't be used"):
        _ = silo.node().egress


def test_the_pin_is_needed(tmp_path, silo):
    silo.config.pin.unlink()
    with pytest.raises(UsageError, match="not enrolled"):
        Pin.load(silo.config)
