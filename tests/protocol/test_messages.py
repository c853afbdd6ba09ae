"""Each message has one spelling; anything else raises MessageError and nothing else."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canonical
from protocol.message_fields import MAX_PAYLOAD
from protocol.messages import (
    KINDS,
    Bundles,
    Check,
    Heartbeat,
    Keys,
    ListSignature,
    Message,
    MessageError,
    Metrics,
    Nonce,
    Ready,
    Reason,
    Refusal,
    SecondList,
    Sketch,
    State,
    TableRow,
    Unmask,
    Update,
    open_message,
    seal,
)
from protocol.signing import Envelope, SignatureError, SigningKey, sign_envelope

KEY = SigningKey.from_bytes(b"\x01" * 32)
D = "sha256:" + "a" * 64
HEAD = {"ctx": "0" * 64, "silo": "site-1"}
EXAMPLES: dict[str, Message] = {
    "keys": Keys(**HEAD, roster=None, hpke_public=bytes(1216)),
    "bundles": Bundles(**HEAD, roster=D, boxes={"site-2": b"box", "site-3": b"other"}),
    "ready": Ready(
        **HEAD,
        roster=D,
        list_digest=D,
        list_box=b"sealed",
        self_hash=D,
        list_hash=D,
        nonces=(D, D),
        senders=("site-2", "site-3"),
    ),
    "update": Update(**HEAD, roster=D, ready_set=D, members=("site-1", "site-2"), chunks=(D, D)),
    "list": ListSignature(**HEAD, roster=D, members=("site-1", "site-2"), ready_set=D, updates=D, nonce=bytes(32)),
    "sketch": Sketch(**HEAD, roster=D, first_list=D, nonces=D, sums=bytes(2048)),
    "second": SecondList(**HEAD, roster=D, members=("site-1", "site-2"), first_list=D, sketches=D),
    "unmask": Unmask(**HEAD, roster=D, self_shares={"site-1": bytes(32)}, list_shares={}),
    "nonce": Nonce(**HEAD, roster=D, sum=D, nonce=bytes(32)),
    "check": Check(**HEAD, roster=D, sum=D, nonces=D, word=bytes(8)),
    "state": State(
        **HEAD, roster=None, state=D, table=(TableRow("a.weight", (3, 4), "shared"), TableRow("s", (), "local"))
    ),
    "refusal": Refusal(**HEAD, roster=None, reasons=(Reason("NO_CONSENT", "Too few patients."),)),
    "metrics": Metrics(**HEAD, roster=D, auc_micro=912_345),
    "heartbeat": Heartbeat(**HEAD, roster=None, stage="training", at="2026-11-23T15:04:05.250Z"),
}
STAGES = list(EXAMPLES)


def spoilt(stage: str, /, **change: object) -> bytes:
    """The payload with some keys changed; a key with the value ... is removed."""
    value = json.loads(EXAMPLES[stage].to_payload()) | change
    return canonical.encode({name: item for name, item in value.items() if item is not ...})


def test_every_message_of_a_round_has_an_example():
    assert list(KINDS) == STAGES
    assert all(type(EXAMPLES[stage]) is kind for stage, kind in KINDS.items())


@pytest.mark.parametrize("stage", STAGES)
def test_round_trip(stage):
    message = EXAMPLES[stage]
    payload = message.to_payload()
    assert type(message).parse(payload) == message
    assert type(message).parse(payload).to_payload() == payload
    assert json.loads(payload)["schema"] == f"consilium/round/{stage}/1"
    envelope = seal(message, KEY)
    assert envelope.payload_type == f"application/vnd.consilium.round.{stage}+json"
    assert open_message(type(message), Envelope.from_dict(envelope.as_dict()), KEY.public) == message
    with pytest.raises(FrozenInstanceError):
        message.silo = "site-2"


def test_payload_of_a_list_signature_is_canonical_and_fixed():
    expected = (
        '{"ctx":"' + "0" * 64 + '","members":["site-1","site-2"],"nonce":"' + "A" * 43 + '=","ready_set":"' + D
        + '","roster":"' + D + '","schema":"consilium/round/list/1","silo":"site-1","updates":"' + D + '"}'
    )  # fmt: skip
    assert EXAMPLES["list"].to_payload() == expected.encode()


@pytest.mark.parametrize("stage", STAGES)
def test_missing_or_further_keys_are_refused(stage):
    kind = KINDS[stage]
    for name in ("schema", *(item.name for item in fields(kind))):
        with pytest.raises(MessageError, match="exactly"):
            kind.parse(spoilt(stage, **{name: ...}))
    with pytest.raises(MessageError, match="exactly"):
        kind.parse(spoilt(stage, more=1))


@pytest.mark.parametrize("stage", STAGES)
def test_payload_of_one_stage_is_no_other_message(stage):
    for other, message in EXAMPLES.items():
        if other != stage:
            with pytest.raises(MessageError):
                KINDS[stage].parse(message.to_payload())
    with pytest.raises(MessageError, match="schema"):
        KINDS[stage].parse(spoilt(stage, schema=f"consilium/round/{stage}/2"))


JUNK = [None, True, 0, -1, 2**53 - 1, "", "x", "sha256:" + "A" * 64, [], {}, [[]], [None], {"a": 1}, {"site-1": ""}]


@pytest.mark.parametrize("stage", STAGES)
def test_value_of_another_type_is_refused_by_the_name_of_its_field(stage):
    kind = KINDS[stage]
    for item in fields(kind):
        for junk in JUNK:
            payload = spoilt(stage, **{item.name: junk})
            try:
                message = kind.parse(payload)
            except MessageError as error:
                assert str(error).startswith(f"{stage}.{item.name}"), error
            else:
                # Only values that are the field's own kind come through, and unchanged.
                assert message.to_payload() == payload


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("keys", {"ctx": "0" * 63}),
        ("keys", {"ctx": "A" * 64}),
        ("keys", {"ctx": "0" * 64 + "\n"}),
        ("keys", {"silo": "Site"}),
        ("keys", {"silo": "a" * 65}),
        ("keys", {"silo": "-a"}),
        ("keys", {"roster": D}),
        ("bundles", {"roster": None}),
        ("keys", {"hpke_public": canonical.b64(bytes(1215))}),
        ("keys", {"hpke_public": "A==="}),
        ("bundles", {"boxes": {"site-2": canonical.b64(bytes(4097))}}),
        ("bundles", {"boxes": {"site-2": ""}}),
        ("bundles", {"boxes": {f"s{number}": "AA==" for number in range(256)}}),
        ("ready", {"senders": ["site-3", "site-2"]}),
        ("ready", {"senders": ["site-2", "site-2"]}),
        ("ready", {"senders": []}),
        ("ready", {"nonces": [D]}),
        ("ready", {"nonces": [D, D, D]}),
        ("update", {"chunks": []}),
        ("update", {"members": [f"s{number:03}" for number in range(256)]}),
        ("list", {"nonce": canonical.b64(bytes(31))}),
        ("unmask", {"self_shares": {"site-1": canonical.b64(bytes(33))}}),
        ("unmask", {"self_shares": {"Site": canonical.b64(bytes(32))}}),
        ("state", {"table": []}),
        ("state", {"table": [{"name": "a", "shape": [1]}]}),
        ("state", {"table": [{"name": "a", "shape": [1], "kind": "other"}]}),
        ("state", {"table": [{"name": "a", "shape": [1], "kind": ["shared"]}]}),
        ("state", {"table": [{"name": "a", "shape": [-1], "kind": "shared"}]}),
        ("state", {"table": [{"name": "a", "shape": [True], "kind": "shared"}]}),
        ("state", {"table": [{"name": "", "shape": [1], "kind": "shared"}]}),
        ("refusal", {"reasons": []}),
        ("refusal", {"reasons": [{"code": "lower", "sentence": "x"}]}),
        ("refusal", {"reasons": [{"code": "CODE", "sentence": "two\nlines"}]}),
        ("refusal", {"reasons": [{"code": "CODE", "sentence": "x" * 2001}]}),
        ("refusal", {"reasons": [{"code": "CODE"}]}),
        ("metrics", {"auc_micro": 1_000_001}),
        ("metrics", {"auc_micro": -1}),
        ("heartbeat", {"at": "2026-11-23T15:04:05+00:00"}),
        ("heartbeat", {"at": "2026-11-23"}),
        ("heartbeat", {"at": "٢٠٢٦-11-23T15:04:05Z"}),
        ("heartbeat", {"stage": "Training"}),
    ],
)
def test_value_beyond_its_limits_is_refused(stage, change):
    with pytest.raises(MessageError):
        KINDS[stage].parse(spoilt(stage, **change))


@pytest.mark.parametrize("stage", STAGES)
def test_bytes_that_are_not_canonical_json_are_refused(stage):
    payload = EXAMPLES[stage].to_payload()
    for bad in (b"", b"{}", b"[]", b"null", b"\xff", payload[:-1], payload + b" ", payload.replace(b",", b", ", 1)):
        with pytest.raises(MessageError):
            KINDS[stage].parse(bad)
    with pytest.raises(MessageError, match="at most"):
        KINDS[stage].parse(bytes(MAX_PAYLOAD + 1))


@settings(max_examples=300, deadline=None)
@given(stage=st.sampled_from(STAGES), data=st.binary(max_size=300))
def test_parsing_bytes_raises_only_message_errors(stage, data):
    with pytest.raises(MessageError):
        KINDS[stage].parse(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(max_size=20)
    | st.sampled_from([D, "AA=="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(stage=st.sampled_from(STAGES), data=st.data())
def test_parsing_nearly_valid_messages_raises_only_message_errors(stage, data):
    kind = KINDS[stage]
    name = data.draw(st.sampled_from(["schema", *(item.name for item in fields(kind))]))
    value = json.loads(EXAMPLES[stage].to_payload())
    junk = data.draw(JSON)
    if isinstance(value[name], list) and data.draw(st.booleans()):
        value[name] = [*value[name], junk]
    elif isinstance(value[name], dict) and data.draw(st.booleans()):
        value[name] = {**value[name], data.draw(st.text(max_size=8)): junk}
    else:
        value[name] = junk
    try:
        payload = canonical.encode(value)
    except canonical.CanonicalError:
        return
    try:
        message = kind.parse(payload)
    except MessageError:
        return
    assert message.to_payload() == payload


@settings(max_examples=200, deadline=None)
@given(stage=st.sampled_from(STAGES), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_envelope_with_one_flipped_bit_is_refused(stage, at, bit):
    envelope = seal(EXAMPLES[stage], KEY)
    payload = bytearray(envelope.payload)
    payload[at % len(payload)] ^= 1 << bit
    with pytest.raises(SignatureError):
        open_message(KINDS[stage], replace(envelope, payload=bytes(payload)), KEY.public)


def test_message_that_would_not_be_read_is_not_signed():
    for bad in (
        replace(EXAMPLES["list"], members=("b", "a")),
        replace(EXAMPLES["list"], nonce=bytes(31)),
        replace(EXAMPLES["keys"], roster=D),
        replace(EXAMPLES["metrics"], auc_micro=2**60),
        replace(EXAMPLES["heartbeat"], at="now"),
    ):
        with pytest.raises(MessageError):
            seal(bad, KEY)


def test_signature_of_another_key_or_type_is_refused():
    envelope = seal(EXAMPLES["list"], KEY)
    with pytest.raises(SignatureError):
        open_message(ListSignature, envelope, SigningKey.generate().public)
    with pytest.raises(SignatureError):
        open_message(Update, envelope, KEY.public)
    other = sign_envelope("application/vnd.consilium.round.list+json", b"{}", KEY)
    with pytest.raises(MessageError):
        open_message(ListSignature, other, KEY.public)
