"""Requests of nodes as an attacker would bend them: replayed, stripped, too large, too slow, too deep, packed."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from django.test import Client

from evidence.models import Entry
from federation import node_app
from governance.models import Policy
from organisations.models import Silo
from protocol.signing import SigningKey, sign_request
from protocol.transparency.note import Checkpoint, LogKey, sign_checkpoint

POLICY = "/api/v1/silo/policy"
ENROL = "/api/v1/silo/enrol"
CHUNK = "/api/v1/rounds/st-x.1.1/update/0"


@pytest.fixture
def key(transactional_db: Any, organisation: Any) -> SigningKey:
    """Of an active silo."""
    key = SigningKey.generate()
    Silo.objects.create(
        name="site-1", organisation=organisation, state="active", public_key=key.public, keyid=key.keyid
    )
    return key


def _code(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1])["code"]


@pytest.mark.django_db
def test_each_address_refuses_a_request_that_was_stripped_of_its_signature(addresses):
    """Whatever is taken away - all, or one of the three headers - and in whatever method."""
    headers = sign_request(SigningKey.generate(), method="GET", path="/")
    for address, _, _ in addresses:
        if not address.startswith("/api/v1/") or address.startswith("/api/v1/log/"):
            continue
        if address == "/api/v1/openapi.json":
            continue  # for everybody
        for missing in (*headers, ""):
            left = {name: value for name, value in headers.items() if missing and name != missing}
            for method in ("GET", "POST", "PUT"):
                answer = Client().generic(method, address, b"{}", content_type="application/json", headers=left)
                assert answer.status_code in (401, 405, 422), f"{method} {address} without {missing or 'all'}"
                assert "Signature" not in answer.headers or left.get("Signature")


@pytest.mark.django_db
def test_reading_the_public_log_with_a_false_signature_is_refused_and_not_taken_for_public(portal_home):
    headers = sign_request(SigningKey.generate(), method="GET", path="/api/v1/log/checkpoint")
    assert Client().get("/api/v1/log/checkpoint", headers=headers).status_code == 401


def test_a_request_is_new_once_whichever_way_it_comes(wire, key):
    """The fast way (ASGI) and Django's remember the same nonces."""
    first = wire.signed(key, "GET", "/api/v1/rounds/st-x.1.1/update")
    assert _code(asyncio.run(first.go())) == (404, "NOT_YOUR_STUDY")
    again = wire.signed(key, "GET", "/api/v1/rounds/st-x.1.1/update")
    again.scope = first.scope
    assert _code(asyncio.run(again.go())) == (409, "REPLAYED")
    headers = {name.decode(): value.decode() for name, value in first.scope["headers"]}
    answer = Client().get("/api/v1/rounds/st-x.1.1/update", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "REPLAYED")


def test_an_enrolment_is_new_once(transactional_db, organisation, new_hospital):
    from organisations.services import silo_invite
    from portal.actors import SYSTEM

    _, token = silo_invite(actor=SYSTEM, organisation=organisation, name="site-9")
    hospital = new_hospital("site-9")
    body = json.dumps(hospital.enrol_body(token)).encode()
    headers = sign_request(hospital.key, method="POST", path=ENROL, body=body)
    assert hospital.node.send_raw("POST", ENROL, body, headers).status_code == 200
    assert hospital.node.send_raw("POST", ENROL, body, headers).json()["code"] == "REPLAYED"


def test_a_signed_query_can_be_neither_added_nor_dropped(wire, key):
    path = "/api/v1/rounds/st-x.1.1/sum"
    for signed, sent in (("chunk=0", ""), ("", "chunk=0"), ("chunk=0", "chunk=1"), ("chunk=0", "chunk=0&chunk=1")):
        call = wire.signed(key, "GET", path, query=signed)
        call.scope["query_string"] = sent.encode()
        assert _code(asyncio.run(call.go())) == (401, "BAD_SIGNATURE"), (signed, sent)


def test_a_body_is_not_read_before_it_is_known_who_sends_it(wire, key):
    """A piece of an update, 4 MiB: of a stranger not one byte is taken."""
    stranger = wire.signed(SigningKey.generate(), "PUT", CHUNK, body=b"x", parts=(b"x" * 2**20,) * 4)
    assert _code(asyncio.run(stranger.go())) == (401, "UNKNOWN_KEY")
    assert stranger.taken == 0
    nobody = wire("PUT", CHUNK, parts=(b"x" * 2**20,) * 4)
    assert _code(asyncio.run(nobody.go())) == (401, "BAD_SIGNATURE") and nobody.taken == 0


@pytest.mark.parametrize("path", [CHUNK, "/api/v1/rounds/st-x.1.1/keys", POLICY, ENROL, "/account/login/", "/nowhere"])
def test_no_address_takes_in_more_than_a_chunk(wire, key, path):
    """Whatever Content-Length says, and without one."""
    method = "PUT" if path in (CHUNK, POLICY) else "POST"
    call = wire.signed(key, method, path, parts=(b"x" * 2**20,) * 50)
    status, _ = asyncio.run(call.go())
    assert status in (401, 413) and call.taken <= 5, (status, call.taken)
    liar = wire.signed(key, method, path, parts=(b"x" * 2**20,) * 50)
    liar.scope["headers"].append((b"content-length", b"10"))
    status, _ = asyncio.run(liar.go())
    assert status in (401, 413) and liar.taken <= 5
    announced = wire.signed(key, method, path, parts=(b"x",))
    announced.scope["headers"].append((b"content-length", b"999999999999"))
    assert _code(asyncio.run(announced.go())) == (413, "TOO_LARGE") and announced.taken == 0


@pytest.mark.parametrize("path", [CHUNK, "/api/v1/rounds/st-x.1.1/keys", POLICY, "/account/login/"])
def test_a_body_that_never_ends_is_given_up(wire, key, settings, path):
    settings.BODY_SECONDS = 0.2
    method = "PUT" if path in (CHUNK, POLICY) else "POST"
    call = wire.signed(key, method, path, body=b"ab", parts=(b"a",), stalls=True)
    assert _code(asyncio.run(call.go())) == (408, "TOO_SLOW")


def test_one_slow_silo_does_not_keep_the_others_from_sending(wire, key, organisation, settings):
    """It opens as many uploads as bodies are read at once; another silo's piece is read meanwhile."""
    settings.BODY_SECONDS = 5
    other = SigningKey.generate()
    Silo.objects.create(
        name="site-2", organisation=organisation, state="active", public_key=other.public, keyid=other.keyid
    )

    async def attack() -> tuple[int, bytes]:
        slow = [
            wire.signed(key, "PUT", CHUNK, body=b"ab", parts=(b"a",), stalls=True) for _ in range(2 * node_app.THREADS)
        ]
        tasks = [asyncio.create_task(each.go()) for each in slow]
        await asyncio.wait({asyncio.create_task(each.reading.wait()) for each in slow}, return_when="FIRST_COMPLETED")
        answer = await asyncio.wait_for(wire.signed(other, "PUT", CHUNK, body=b"piece").go(), 4)
        assert sum(each.reading.is_set() for each in slow) == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return answer

    assert _code(asyncio.run(attack())) == (404, "NOT_YOUR_STUDY")


BOMBS = {
    "deep list": b"[" * 500_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep and closed": b'{"note":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "long number": b'{"note":' + b"9" * 500_000 + b"}",
    "not a number": b'{"note":NaN}',
    "infinite": b'{"note":1e999}',
    "twice": b'{"note":"a","note":"b"}',
    "no text": b'{"note":"\\ud800"}',
    "many members": b"{" + b",".join(b'"%d":0' % n for n in range(50_000)) + b"}",
    "packed": gzip.compress(b" " * 10_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", POLICY),
        ("POST", "/api/v1/log/silo-checkpoint"),
        ("POST", ENROL),
        ("POST", "/api/v1/rounds/st-x.1.1/keys"),
    ],
)
def test_no_bomb_is_unpacked_and_each_is_refused_in_words(wire, key, method, path, name):
    call = wire.signed(key, method, path, body=BOMBS[name])
    call.scope["headers"] += [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
    status, answer = asyncio.run(call.go())
    assert status in (404, 413, 422), (status, answer)
    assert json.loads(answer)["code"] in ("BAD_MESSAGE", "TOO_LARGE", "NOT_YOUR_STUDY") and len(answer) < 1000


@pytest.mark.django_db
def test_strangers_can_not_fill_the_log_by_enrolling(new_hospital, portal_home):
    """Anybody can make a key and sign with it; the log has no delete."""
    for number in range(20):
        hospital = new_hospital("site-1")
        answer = hospital.node.send("POST", ENROL, hospital.enrol_body(f"guess {number}"))
        assert answer.json()["code"] == "TOKEN"
    assert Entry.objects.filter(type="key.enrolled", outcome="denied").count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("size", [2**53, 2**63 - 1])
def test_a_checkpoint_of_a_size_that_no_log_has_is_refused(make_hospital, size):
    hospital = make_hospital("site-1")
    log = LogKey("site-1.example/log", hospital.log_key)
    note = sign_checkpoint(Checkpoint(log.origin, size, b"\1" * 32), log)
    answer = hospital.node.send("POST", "/api/v1/log/silo-checkpoint", {"note": note})
    assert (answer.status_code, answer.json()["code"]) == (422, "BAD_MESSAGE")


@pytest.mark.django_db
def test_the_key_of_a_silo_is_not_the_key_of_its_steward(make_hospital, make_study):
    """Who steals a node's key can neither change the policy nor decide: both need the steward's signature."""
    from governance.services import review_decide, study_submit
    from organisations.models import User
    from portal.actors import Actor
    from protocol import canonical
    from protocol.approval import APPROVAL_TYPE
    from protocol.policy import POLICY_TYPE
    from protocol.signing import sign_envelope

    hospitals = [make_hospital(f"site-{number}") for number in (1, 2, 3)]
    study, actor = make_study(["site-1", "site-2", "site-3"])
    manifest = study_submit(actor=actor, study=study)
    admin = User.objects.create_user("admin")
    review_decide(actor=Actor(str(admin.pk), "admin"), reviewer=admin, study=study, decision="approve", reason="Good.")
    thief = hospitals[0]
    payload = json.loads(thief.policy(2).payload)
    forged = sign_envelope(POLICY_TYPE, canonical.encode(payload), thief.key)
    assert thief.node.send("PUT", POLICY, forged.as_dict()).status_code == 401
    assert Policy.objects.get(silo__name="site-1").version == 1
    statement = sign_envelope(APPROVAL_TYPE, thief.statement(manifest).payload, thief.key)
    answer = thief.node.send("PUT", f"/api/v1/studies/{study.pk}/approval", statement.as_dict())
    assert (answer.status_code, answer.json()["code"]) == (422, "APPROVAL_SIGNATURE")
    assert not manifest.approvals.exists()
