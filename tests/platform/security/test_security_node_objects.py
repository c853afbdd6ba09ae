"""A silo's key reaches its own studies and speaks for itself: not for others, not after leaving, not outside the store."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from federation.models import ChunkReceipt, Purpose, Round, RoundMessage, Seat
from governance.models import Approval
from organisations.models import Organisation, Silo
from protocol.signing import SigningKey

pytestmark = pytest.mark.django_db(transaction=True)
KINDS = ("refusal", "keys", "bundles", "ready", "update", "list", "unmask", "state", "metrics", "heartbeat")


def _stranger() -> SigningKey:
    """An active silo that no study asks."""
    key = SigningKey.generate()
    home = Organisation.objects.create(slug="far", name="Far Hospital", country="DE")
    Silo.objects.create(name="far-1", organisation=home, state="active", public_key=key.public, keyid=key.keyid)
    return key


def _ask(wire: Any, key: SigningKey, method: str, path: str, body: bytes = b"", query: str = "") -> tuple[int, Any]:
    status, answer = asyncio.run(wire.signed(key, method, f"/api/v1/{path}", body=body, query=query).go())
    try:
        return status, json.loads(answer)
    except ValueError:
        return status, answer


def test_a_silo_outside_a_study_reads_and_writes_nothing_of_it(network, wire):
    world = network(4)
    world.play(until=lambda world: world.round.stage == "sum" or world.round.purpose == Purpose.EVALUATE)
    key, item = _stranger(), world.rounds[1]
    model, envelope = item.model_digest, b'{"payloadType":"a/b","payload":"","signatures":[]}'
    asked = [
        ("GET", f"models/{model}", b"", ""),
        ("GET", f"models/{model.removeprefix('sha256:')}", b"", "chunk=0"),
        ("GET", f"rounds/{item.key}/sum", b"", "chunk=0"),
        ("GET", f"rounds/{item.key}/update", b"", ""),
        ("PUT", f"rounds/{item.key}/update/0", b"x" * 544, ""),
        ("GET", f"studies/{item.study_id}/manifest", b"", ""),
        ("GET", f"studies/{item.study_id}/manifest", b"", f"digest={item.manifest_digest}"),
        *(("POST", f"rounds/{item.key}/{kind}", envelope, "") for kind in KINDS),
    ]
    before = RoundMessage.objects.count(), ChunkReceipt.objects.count()
    for method, path, body, query in asked:
        status, answer = _ask(wire, key, method, path, body, query)
        assert (status, answer["code"]) == (404, "NOT_YOUR_STUDY"), f"{method} {path}: {status} {answer}"
    assert (RoundMessage.objects.count(), ChunkReceipt.objects.count()) == before
    status, answer = _ask(wire, key, "GET", "silo/assignments")
    assert (status, answer["assignments"]) == (200, [])


def test_a_silo_can_not_send_the_message_of_another(network, wire):
    """The request is signed by site-2, the message by site-1; and the other way round."""
    world = network(4)
    world.play(until=lambda world: world.round.purpose == Purpose.TRAIN)
    key = world.round.key
    one, two = world.silos["site-1"], world.silos["site-2"]
    for silo in (one, two):
        silo.announced[key] = next(task for task in silo.assignments() if task["kind"] == "announce")
    from protocol.secure_aggregation import SiloRound

    machine = SiloRound(one.parameters(one.announced[key]), silo="site-1", key=one.key, journal=one.journal)
    body = json.dumps(machine.keys().as_dict()).encode()
    status, answer = _ask(wire, two.key, "POST", f"rounds/{key}/keys", body)
    assert (status, answer["code"]) == (422, "BAD_MESSAGE") and "site-1" in answer["detail"]
    assert not RoundMessage.objects.filter(round=world.round).exists()
    assert _ask(wire, one.key, "POST", f"rounds/{key}/keys", body)[0] == 200


def test_a_hospital_that_left_gets_none_of_the_models_that_came_after(network, wire):
    """The digests of all models are in the public log, so knowing one must not be enough."""
    world = network(4, max_rounds=3)
    world.play(until=lambda world: world.round.purpose == Purpose.TRAIN)
    first = world.round.model_digest
    # site-4 leaves: it is asked for no further round.
    Approval.objects.filter(silo__name="site-4").update(decision="revoke")
    gone = world.silos["site-4"]
    gone.dead = True
    world.go_on(until=lambda world: world.round.number >= 3)
    later = Round.objects.get(study=world.study, number=3).model_digest
    assert not Seat.objects.filter(round__number=3, silo__name="site-4").exists()
    assert _ask(wire, gone.key, "GET", f"models/{first}")[0] == 200  # the model it was asked to train
    status, answer = _ask(wire, gone.key, "GET", f"models/{later}")
    assert status == 404, "a hospital that left reads a later model"
    assert answer["code"] == "NOT_YOUR_STUDY"
    assert _ask(wire, world.silos["site-1"].key, "GET", f"models/{later}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "models/../../keys/answer.key",
        "models/..%2f..%2fkeys%2fanswer.key",
        "models/sha256:" + "0" * 63 + "/",
        "models/sha256:" + "A" * 64,
        "rounds/../keys/answer.key",
        "rounds/st-x.1.1/update/../../../keys",
        "rounds/st-x.1.1/update/-1",
        "rounds/st-x.1.1/update/99999999999999999999",
        "rounds/.sum.1.1/update/0",
        "rounds/st-x.1.1\n/sum",
        "rounds/st-x.1.1/sum\n",
        "rounds/st-%00.1.1/sum",
        "rounds/St-X.1.1/sum",
        "log/tile/../checkpoint",
        "log/tile/0/../../keys/answer.key",
        "log/tile/0/000.p/../../../../keys/log.key",
        "log/tile/..%2f..%2fkeys%2flog.key",
        "log/tile/0/000\n",
        "log/tile/64/000",
        "log/tile//etc/passwd",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_no_address_leads_out_of_the_store(wire, portal_home, method, path):
    """Sent with the path as servers hand it on (decoded), and with the raw path as it stood on the wire."""
    key = _stranger()
    call = wire.signed(key, method, "/api/v1/" + path.replace("\n", "%0A"))
    from urllib.parse import unquote

    call.scope["path"] = "/api/v1/" + unquote(path)
    status, answer = asyncio.run(call.go())
    assert status in (400, 404, 405, 422), (status, answer)
    for name in ("answer.key", "log.key"):
        assert (portal_home / "keys" / name).read_bytes()[30:80] not in answer
